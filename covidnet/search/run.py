"""The whole of a search on a packed dataset: halves, search, selection, comparison with random draws."""

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from covidnet import folder
from covidnet.config import Config
from covidnet.data import splits
from covidnet.data.packed import Packed
from covidnet.errors import UsageError
from covidnet.models import cost
from covidnet.models.covidnet3d import Genotype, Space, space_of
from covidnet.models.supernet import Supernet
from covidnet.models.synchronised import synchronise
from covidnet.progress import first_process, progress, tell
from covidnet.search import dnas, evolution, result
from covidnet.search.budget import BlockChoice, Costing
from covidnet.search.latency import LatencyTable, cached
from covidnet.training import distributed
from covidnet.training.logs import Log, silent
from covidnet.training.loop import place
from covidnet.training.volumes import Volumes, generator, select


def run(
    config: Config, packed: Packed, variant: str, device: torch.device, work: Path, log: Log = silent
) -> dict[str, Any]:
    """Search and write `genotype.json`, `search.json` (history, comparison), `history.csv`, `probabilities.npy` (of each
    operation, ``(rows of the history, blocks, operations)``) and `metrics.json` into ``work``.

    Raises:
        UsageError: the budget is outside of the space's range.
        CovidnetError: too few patients for two halves, or a diverged or interrupted search.
    """
    settings, space = config.search, space_of(variant, config.search.strides)
    costs = cost.table(space, settings.size, config.channels, len(config.classes))
    latency = _latencies(config, packed, space)
    costing = Costing(costs, settings.budget, latency)
    for remark in costing.ineffective():
        tell(remark)
    weight_half, alpha_half = halves(config, packed, device)
    validation = select(packed, packed.split("validation"), config.classes, settings.size, device)
    torch.manual_seed(config.seed)
    supernet = place(Supernet(space, config.channels, len(config.classes), settings.share_weights), device)
    synchronise(supernet)
    random = comparison(config, costing)

    def genotype_of(path: BlockChoice) -> Genotype:
        return Genotype.of_path(path, space, variant, config.classes, config.channels, settings.size)

    def judge(path: BlockChoice, held_out: Volumes, batches: int = 6) -> result.Judgement:
        return result.judge(supernet, genotype_of(path), weight_half, held_out, batches)

    def accuracy_before_alpha_moves() -> float:
        return float(np.mean([judge(path, validation).accuracy for path in random[:4]]))

    method = dnas.Run if settings.method == "dnas" else partial(evolution.Evolution, judge=judge)
    searched = dnas.search(
        method(supernet, costing, weight_half, alpha_half, settings, config.augment, config.seed),
        work=work, title=f"search {space.name}", after_warmup=accuracy_before_alpha_moves, log=log,
    )  # fmt: skip
    selection = _select(searched.candidates, random, judge, alpha_half, validation, f"judge {space.name}")
    genotype = genotype_of(selection.chosen)
    genotype.save(work / "genotype.json")
    metrics = _metrics(searched, selection, costing, genotype, validation)
    if latency is not None:
        metrics["latency_ms"] = costing.latency_ms(selection.chosen)
        latency.save(work / "latency.json")
    details = {
        "variant": variant,
        "operations": [operation.name for operation in space.operations],
        "method": settings.method,
        "alpha": searched.alpha.tolist() if settings.method == "dnas" else None,
        "history": searched.history,
        "collapse": searched.collapse,
        "budget": settings.budget.model_dump(),
        "candidates": [{"path": path, **asdict(judged)} for path, judged in selection.candidates.items()],
        "random": [{"path": path, **asdict(judged)} for path, judged in selection.random.items()],
        "found": {"path": selection.chosen, **asdict(selection.found)},
    }
    folder.write_json(work / "search.json", details)
    np.save(work / "probabilities.npy", searched.probabilities.numpy().astype(np.float16), allow_pickle=False)
    with (work / "history.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(searched.history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(searched.history)
    folder.write_json(work / "metrics.json", metrics)
    (work / "checkpoint.pt").unlink()
    return metrics


@dataclass(frozen=True, slots=True)
class Selection:
    """What was judged inside the supernet, and what came of it.

    Args:
        candidates: on the architecture half.
        chosen: the candidate of least loss.
        found: how it does on validation.
        random: the architectures that it is compared with, on validation.
    """

    candidates: dict[BlockChoice, result.Judgement]
    chosen: BlockChoice
    found: result.Judgement
    random: dict[BlockChoice, result.Judgement]


def _select(
    candidates: Sequence[BlockChoice],
    random: Sequence[BlockChoice],
    judge: Callable[[BlockChoice, Volumes], result.Judgement],
    alpha_half: Volumes,
    validation: Volumes,
    title: str,
) -> Selection:
    """The best candidate on the architecture half, beside random architectures on validation."""
    with progress(title, len(candidates) + 1 + len(random)) as advance:

        def judged(what: str, path: BlockChoice, held_out: Volumes) -> result.Judgement:
            judgement = judge(path, held_out)
            advance(note=f"{what}, loss {judgement.loss:.3f}, accuracy {judgement.accuracy:.3f}")
            return judgement

        tried = {path: judged("candidate", path, alpha_half) for path in candidates}
        chosen = min(tried, key=lambda path: tried[path].loss)
        found = judged("found", chosen, validation)
        return Selection(tried, chosen, found, {path: judged("random", path, validation) for path in random})


def _metrics(
    searched: dnas.Searched, selection: Selection, costing: Costing, genotype: Genotype, validation: Volumes
) -> dict[str, Any]:
    """The figures of `metrics.json`."""
    chance = float(np.bincount(validation.labels.cpu().numpy()).max() / len(validation))
    chosen, found, others = selection.chosen, selection.found, list(selection.random.values())
    return {
        "size_mib": costing.size_mib(chosen),
        "macs": costing.macs(chosen),
        "receptive_field": costing.receptive_field(chosen),
        "identity_blocks": sum(not operation.kernel for operation in genotype.operations),
        "entropy": searched.history[-1]["entropy"],
        "collapsed": searched.collapse is not None,
        "chance": chance,
        "warmup_accuracy": searched.warmup_accuracy,
        "supernet_learned": above_chance(searched.warmup_accuracy, chance, len(validation)),
        "supernet_accuracy": found.accuracy,
        "random_accuracy_mean": float(np.mean([other.accuracy for other in others])),
        "random_accuracy_max": float(np.max([other.accuracy for other in others])),
        "random_beaten": sum(found.loss < other.loss for other in others) / len(others),
    }


def comparison(config: Config, costing: Costing) -> list[BlockChoice]:
    """The random architectures that a search is compared with: a function of its seed and budget alone."""
    return result.random_paths(costing, config.search.random, generator(config.seed, 10))


def _latencies(config: Config, packed: Packed, space: Space) -> LatencyTable | None:
    """The table that a limit on latency needs: as given, or measured by the first process at the size to be served.

    Raises:
        UsageError: the table isn't one, is of another space, or was measured at another size than that of the dataset.
    """
    depth, height, width = packed.scans.shape[1:]
    size = (depth, height, width)
    if config.search.budget.latency_ms is None:
        return None
    if config.search.latency_table is None:
        measured = cached(space, size, config.channels, "cpu", "auto") if first_process() else None
        return cast(LatencyTable, distributed.from_first(measured))
    table = LatencyTable.load(Path(config.search.latency_table), space)
    if table.size != size:
        raise UsageError(
            f"{config.search.latency_table} was measured at {table.size}, the dataset has scans of {size}; "
            f"run `covidnet latency --input {','.join(map(str, size))}`"
        )
    return table


def halves(config: Config, packed: Packed, device: torch.device) -> tuple[Volumes, Volumes]:
    """Training scans of two disjoint sets of patients: one for the weights, one for the architecture.

    Raises:
        CovidnetError: a class has a single training patient.
    """
    train = packed.split("train")
    rows = [packed.rows[i] for i in train]
    shares = {"weights": 0.5, "architecture": 0.5}
    side = splits.assign([r.patient_id for r in rows], [r.label for r in rows], shares, config.seed)
    pick = {name: train[[side[row.patient_id] == name for row in rows]] for name in shares}
    first, second = (select(packed, pick[name], config.classes, config.search.size, device) for name in shares)
    return first, second


def above_chance(accuracy: float, chance: float, scans: int) -> bool:
    """Whether an accuracy on so many scans is more than three standard errors above chance."""
    return accuracy > chance + 3 * math.sqrt(chance * (1 - chance) / scans)
