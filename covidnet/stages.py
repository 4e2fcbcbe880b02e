"""One function per stage: (config, input folders, output folder) -> results.

`dvc.yaml`, the CLI and the KFP components call these and nothing deeper. Each writes its folder whole or not at all and
does nothing where the folder is complete for the same inputs (`covidnet.folder`).
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covidnet import folder
from covidnet.config import Config
from covidnet.errors import CovidnetError, UsageError

if TYPE_CHECKING:
    import torch

    from covidnet.data.audit import Audit
    from covidnet.data.packed import Packed
    from covidnet.data.versions import Version
    from covidnet.deploy.findings import Findings
    from covidnet.models.saved import Description
    from covidnet.training.volumes import Volumes

Metrics = dict[str, Any]


def dataset_of(config: Config) -> Path:
    return Path(config.results) / "dataset"


def baseline_of(config: Config, model: str) -> Path:
    return Path(config.results) / "baseline" / model


def search_of(config: Config, variant: str) -> Path:
    return Path(config.results) / "search" / variant


def retrain_of(config: Config, variant: str) -> Path:
    return Path(config.results) / "retrain" / variant


def evaluate_of(config: Config) -> Path:
    return Path(config.results) / "evaluate"


def export_of(config: Config) -> Path:
    return Path(config.results) / "export"


def candidates_of(config: Config) -> list[Path]:
    """Folders of all trained models that `evaluate` compares."""
    found = [retrain_of(config, variant) for variant in config.search.variants]
    return found + [baseline_of(config, model) for model in config.baselines]


def logs_of(config: Config, out: Path) -> Path:
    """Folder of the logs of the stage that writes ``out``, as `config.log` asks for them."""
    return Path(config.results) / "logs" / out.parent.name / out.name


def shards_of(dataset: Path) -> Path:
    """Folder of a dataset's shards."""
    return dataset.with_name(dataset.name + ".shards")


def ingest_shard(config: Config, dataset: Path, shard: tuple[int, int]) -> Metrics:
    """Read every n-th scan of the source, into a folder of its own under `shards_of` the dataset."""
    from covidnet.data import ingest as data_ingest
    from covidnet.data import versions

    out = shards_of(dataset) / f"{shard[0]}-of-{shard[1]}"
    version = versions.find(config.data)
    with folder.write(out, "ingest-shard", {**_ingest_parameters(config, version), "shard": shard}, {}) as work:
        if work is None:
            return _unchanged(out)
        metrics = data_ingest.ingest_shard(versions.fetched(config, version), work, shard)
        folder.write_json(work / "metrics.json", metrics)
    return metrics


def ingest(config: Config, out: Path, *, merge: bool = False) -> Metrics:
    """Source to packed dataset (`covidnet.data.ingest`) with a contact sheet; with ``merge``, from its shards."""
    from covidnet.data import audit, contact_sheet, packed, versions
    from covidnet.data import ingest as data_ingest

    version = versions.find(config.data)
    shards = sorted(shards_of(out).glob("*-of-*[0-9]")) if merge else []
    with folder.write(out, "ingest", _ingest_parameters(config, version), {}) as work:
        if work is not None:
            local = versions.fetched(config, version)
            metrics = data_ingest.merge(local, shards, work) if merge else data_ingest.ingest(local, work, out)
            if local.data.splits is not None:
                metrics |= data_ingest.write_missing(local.data, work / "missing.csv")
            contact_sheet.write(packed.read(work), config.classes, work / "contact_sheet.png")
            audit.write(work)
            folder.write_json(work / "preprocess.json", data_ingest.spec_of(config.data).to_dict())
            folder.write_json(work / "metrics.json", metrics)
    audit.require_clean(out, config.data.allow)  # after the dataset is whole, so that its audit can be read
    return _unchanged(out) if work is None else metrics


def baseline(config: Config, dataset: Path, out: Path, model: str) -> Metrics:
    """Train one of the paper's baselines."""
    from covidnet.models import baselines
    from covidnet.models.saved import Description

    if model not in baselines.BASELINES:
        raise UsageError(f"--model {model}: unknown; the registered baselines are {', '.join(baselines.BASELINES)}")
    description = Description(model, config.classes, config.channels, _packed(config, dataset)[1])
    training = config.training.model_copy(update={"cutmix": 0.0})  # which is the found network's
    config = config.model_copy(update={"training": training})
    return _train(config, dataset, out, description, "baseline", {})


def search(config: Config, dataset: Path, out: Path, variant: str) -> Metrics:
    """Architecture search on the training split (`covidnet.search`), compared with random architectures."""
    from covidnet.models.covidnet3d import SPACES
    from covidnet.training import distributed

    if variant not in SPACES:
        raise UsageError(f"--variant {variant}: unknown; the search spaces are {', '.join(SPACES)}")
    parameters = {**_parameters(config, "search", "augment", "classes", "channels", "seed"), "variant": variant}
    inputs = {"dataset": _dataset(config, dataset)}
    if config.search.budget.latency_ms is not None and config.search.latency_table is not None:
        inputs["latency"] = Path(config.search.latency_table)
    with distributed.write(out, "search", parameters, inputs) as work:
        if work is None:
            return _unchanged(out)
        from covidnet.search.run import run
        from covidnet.training import logs

        packed, _ = _packed(config, dataset)
        with logs.opened(config.log, logs_of(config, out)) as log:
            metrics = run(config, packed, variant, distributed.device(), work, log)
        _draw_search(work)
    return metrics


def retrain(config: Config, dataset: Path, searched: Path, out: Path, variant: str) -> Metrics:
    """Train the found architecture from scratch."""
    from covidnet.models.covidnet3d import Genotype
    from covidnet.models.saved import of_genotype

    genotype = Genotype.load(folder.require(searched, f"search --variant {variant}") / "genotype.json")
    if genotype.classes != config.classes:
        raise CovidnetError(
            f"{searched} was searched for classes {list(genotype.classes)}, the configuration has {list(config.classes)}"
        )
    description = of_genotype(genotype, _packed(config, dataset)[1])
    return _train(config, dataset, out, description, "retrain", {"genotype": searched / "genotype.json"})


def evaluate(config: Config, dataset: Path, candidates: Sequence[Path], out: Path) -> Metrics:
    """Choose the winner on validation, read the test split once, write the report."""
    inputs = {"dataset": _dataset(config, dataset)}
    for candidate in candidates:
        verb = (
            f"{candidate.parent.name} --{'variant' if candidate.parent.name == 'retrain' else 'model'} {candidate.name}"
        )
        inputs[f"{candidate.parent.name}/{candidate.name}"] = folder.require(candidate, verb)
    with folder.write(out, "evaluate", _parameters(config, "evaluate", "export", "classes", "seed"), inputs) as work:
        if work is None:
            return _unchanged(out)
        from covidnet.evaluation import seal
        from covidnet.evaluation.run import run
        from covidnet.training import distributed

        return run(config, dataset, candidates, distributed.device(), work, out.parent / seal.LOG)


def export(config: Config, dataset: Path, evaluated: Path, candidates: Sequence[Path], out: Path) -> Metrics:
    """Write the winner's bundle and check it against torch on real batches."""
    folder.require(evaluated, "evaluate")
    winner_name = json.loads((evaluated / "results.json").read_text())["winner"]["folder"]
    winner = next((c for c in candidates if f"{c.parent.name}/{c.name}" == winner_name), None)
    if winner is None:
        raise CovidnetError(f"the winner {winner_name} is not among the candidates; run `covidnet evaluate` again")
    inputs = {"dataset": _dataset(config, dataset), "winner": folder.require(winner, "retrain"), "evaluate": evaluated}
    with folder.write(out, "export", _parameters(config, "export", "classes", "seed"), inputs) as work:
        if work is None:
            return _unchanged(out)
        from covidnet.export.run import run

        return run(config, dataset, winner, evaluated, work)


def audit(dataset: Path) -> "Audit":
    """Look for leaks between the splits (`covidnet.data.audit`)."""
    from covidnet.data.audit import audit_packed

    return audit_packed(folder.require(dataset, "ingest"))


def gate(config: Config, dataset: Path, evaluated: Path, winner: Path, baselines: Sequence[Path]) -> "Findings":
    """Is the winner good enough to be handed over, beside the deployed model or the baselines?"""
    from covidnet.deploy import gate

    deployed = None
    if config.deploy.service:
        from covidnet.deploy import run

        deployed = run.rollout(config.deploy).stable()
    return gate.decide(config, dataset, evaluated, winner, baselines, deployed)


def deploy(config: Config, bundle: Path, uri: str) -> str:
    """Load a bundle beside the served model, without traffic; says what was done."""
    from covidnet.deploy import run

    return run.deploy(config.deploy, bundle, uri)


def smoke_test(config: Config, dataset: Path, bundle: Path) -> "Findings":
    """Compare the answers of what was deployed with those of its bundle."""
    from covidnet.deploy import run

    return run.smoke_test(config.deploy, dataset, bundle)


def release(config: Config, dataset: Path, passed: bool) -> "Findings":
    """Give what was deployed the traffic in steps, or take it back."""
    from covidnet.deploy import run

    return run.release(config.deploy, dataset, passed)


def register(
    config: Config, evaluated: Path, bundle: Path, uri: str, lineage: dict[str, str], run: dict[str, str]
) -> str:
    """Register a bundle in the Model Registry; says as what."""
    from covidnet.deploy import registry

    if config.deploy.registry is None:
        raise UsageError("deploy.registry: expected the address of a Model Registry, found null")
    return registry.register(config.deploy.registry, evaluated, bundle, uri, lineage, run)


def _train(
    config: Config, dataset: Path, out: Path, description: "Description", stage: str, inputs: dict[str, Path]
) -> Metrics:
    """Train a described network from scratch: what baseline and retrain have in common."""
    from covidnet.training import distributed

    inputs = {"dataset": _dataset(config, dataset), **inputs}
    parameters = {
        **_parameters(config, "training", "augment", "classes", "channels", "seed"),
        "model": description.to_dict(),
    }
    with distributed.write(out, stage, parameters, inputs) as work:
        if work is None:
            return _unchanged(out)
        import torch

        from covidnet.evaluation.metrics import Predictions
        from covidnet.models import saved
        from covidnet.models.cost import count
        from covidnet.models.synchronised import synchronise
        from covidnet.training import logs, loop

        packed, size = _packed(config, dataset)
        device = distributed.device()
        train, validation = (_volumes(config, packed, name, device) for name in ("train", "validation"))
        torch.manual_seed(config.seed)
        model = loop.place(description.build(), device)
        cost = count(model, size, config.channels)
        synchronise(model)
        with logs.opened(config.log, logs_of(config, out)) as log:
            fitted = loop.fit(
                model,
                train,
                validation,
                config.training,
                config.augment,
                scans=loop.planned_scans(config.training, len(train), cost.macs),
                seed=config.seed,
                work=work,
                title=f"train {description.name}",
                log=log,
            )
        saved.save(work, model, description)
        rows = [packed.rows[i] for i in packed.split("validation")]
        Predictions(
            scan_ids=tuple(row.scan_id for row in rows),
            patients=tuple(row.patient_id for row in rows),
            labels=validation.labels.cpu().numpy(),
            logits=fitted.validation_logits,
            classes=config.classes,
        ).save(work / "validation.csv")
        metrics = {
            "validation_accuracy": fitted.best["accuracy"],
            "validation_loss": fitted.best["loss"],
            "steps": fitted.steps,
            "scans_seen": fitted.scans_seen,
            "epochs": fitted.scans_seen / len(train),
            "training_tmacs": fitted.scans_seen * cost.macs / 1e12,
            "parameters": cost.parameters,
            "size_mib": cost.size_mib,
            "macs": cost.macs,
        }
        folder.write_json(work / "history.json", fitted.history)
        folder.write_json(work / "metrics.json", metrics)
    return metrics


def _draw_search(work: Path) -> None:
    """Pictures of the found architecture and of how the search went."""
    from covidnet.evaluation import alpha, plots
    from covidnet.evaluation.architecture import draw_architecture
    from covidnet.models.covidnet3d import Genotype

    genotype = Genotype.load(work / "genotype.json")
    alpha.draw(work)
    drawn = {"widths": genotype.space.widths, "strides": genotype.space.strides, "blocks": genotype.blocks}
    (work / "architecture.svg").write_text(draw_architecture(drawn))
    history = json.loads((work / "search.json").read_text())["history"]
    for title, svg in plots.search_curves(history, genotype.space.name).items():
        (work / f"{title.split(' (')[0].lower().replace(' ', '_')}.svg").write_text(svg)


def _dataset(config: Config, dataset: Path) -> Path:
    """The folder of the packed dataset, refused where it leaks and ``data.allow`` doesn't name the leak."""
    from covidnet.data import audit

    audit.require_clean(folder.require(dataset, "ingest"), config.data.allow)
    return dataset


def _packed(config: Config, dataset: Path) -> "tuple[Packed, tuple[int, int, int]]":
    from covidnet.data import packed

    opened = packed.read(folder.require(dataset, "ingest"))
    opened.labels(config.classes)
    depth, height, width = opened.scans.shape[1:]
    return opened, (depth, height, width)


def _volumes(config: Config, packed: "Packed", split: str, device: "torch.device") -> "Volumes":
    from covidnet.training.volumes import select

    depth, height, width = packed.scans.shape[1:]
    return select(packed, packed.split(split), config.classes, (depth, height, width), device)


def _ingest_parameters(config: Config, version: "Version | None") -> dict[str, Any]:
    """All that a packed dataset depends on: settings and raw files, not how many processes worked or what it may leak."""
    from covidnet.data import ingest as data_ingest

    parameters = _parameters(config, "data", "classes", "seed")
    del parameters["data"]["workers"], parameters["data"]["allow"]
    return parameters | ({} if config.data.source == "phantom" else data_ingest.listing(config, version))


def _parameters(config: Config, *names: str) -> dict[str, Any]:
    tree = config.model_dump(mode="json")
    return {name: tree[name] for name in names}


def _unchanged(out: Path) -> Metrics:
    """An output that is complete already: say so, and hand back its numbers."""
    print(f"{out}: complete for the same inputs, nothing to do", file=sys.stderr)
    metrics: Metrics = json.loads((out / "metrics.json").read_text())
    return metrics
