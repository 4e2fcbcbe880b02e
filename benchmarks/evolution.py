"""Would an evolutionary search, as in EMARS, find a better network with the same supernet and the same compute?

    make demo && python -m benchmarks.evolution [results]               # an hour on two cores: three seeds of each
    python -m benchmarks.evolution results -S search.budget.size_mib=3  # settings as in the run that it is set beside

EMARS (He et al., MICCAI 2022) evolves a population of paths by three objectives: accuracy with shared weights, size, and
potential, here what a path's accuracy has gained since it was last judged, so that what learns slowly isn't lost at once.
The supernet is warmed up like ours. Then generations take turns with weight updates of paths out of the population, as many
as cost what our weight and architecture updates cost together. Parents are the better of pairs (NSGA-II: Deb et al., 2002),
children take each block from either of them and change one in ten. The best of the final front within the budget, judged as
our candidates are, is trained from scratch like ours, and both are read on the validation split. Ours goes through the
stages, and the first seed is the run's own; what is there is written after every seed.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from benchmarks.figures import save
from benchmarks.machine import facts
from benchmarks.ranking import VARIANT, write_genotype
from covidnet import folder, stages
from covidnet.config import Config, load
from covidnet.data import packed
from covidnet.evaluation.bootstrap import paired_difference
from covidnet.evaluation.metrics import Predictions
from covidnet.models import cost
from covidnet.models.covidnet3d import space_of
from covidnet.models.supernet import Supernet
from covidnet.progress import progress
from covidnet.search import dnas, result
from covidnet.search.budget import BlockChoice, Costing
from covidnet.search.run import halves
from covidnet.training.distributed import device
from covidnet.training.loop import place
from covidnet.training.volumes import Volumes, generator, select

COLORS = {"DNAS": "#0072b2", "evolution": "#d55e00"}
POPULATION, GENERATIONS, MUTATION, JUDGED_SCANS = 12, 8, 0.1, 256
UPDATES_PER_ITERATION = 1.7  # training steps that an iteration of ours costs (benchmarks/results/search_step.json)


@dataclass(slots=True)
class Individual:
    """A path and what is known of it; objectives are to be large."""

    path: BlockChoice
    size_mib: float
    accuracy: float | None = None  # before it is judged
    potential: float | None = None  # of newcomers unknown

    def objectives(self, unknown: float) -> tuple[float, float, float]:
        return self.accuracy or 0.0, unknown if self.potential is None else self.potential, -self.size_mib


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"), help="of a finished run")
    parser.add_argument("--seeds", type=int, default=3, help="searches of each kind")
    parser.add_argument("--work", type=Path, default=Path("results/evolution"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/evolution.json"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/evolution.png"))
    parser.add_argument("-S", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    config = load(None, [f"results={options.results}", *options.overrides])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    pairs = []
    print(f"{'':<10} {'seed':>4} {'MiB':>5} {'10^6 MAC':>9} {'shared':>7} {'retrained':>9} {'s':>5}")
    for seed in range(config.seed, config.seed + options.seeds):
        pairs.append(compare(config, seed, options.work / str(seed)))
        found = {**facts(), "settings": config.search.model_dump(mode="json"), **summary(pairs)}
        folder.write_json(options.out, folder.finite(found))
        for row in found["rows"][-2:]:
            print(
                f"{row['search']:<10} {seed:4} {row['size_mib']:5.2f} {row['macs'] / 1e6:9.1f} {row['shared']:7.3f} "
                f"{row['validation_accuracy']:9.3f} {row['seconds']:5.0f}",
                flush=True,
            )
    low, high = found["difference"]["interval"]
    print(f"DNAS less evolution, retrained: {found['difference']['accuracy']:+.1%} [{low:+.1%}, {high:+.1%}]")
    draw(found, options.picture)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one search led to: a row of the table, what it judged in the end, and its network's answers on validation."""

    row: dict[str, Any]
    judged: list[dict[str, Any]]
    answers: Predictions


def compare(config: Config, seed: int, work: Path) -> tuple[Outcome, Outcome]:
    """Ours and the evolutionary search of one seed, each with its network trained from scratch."""
    dataset = stages.dataset_of(config)
    searched, trained = stages.search_of(config, VARIANT), stages.retrain_of(config, VARIANT)
    if seed != config.seed:
        searched, trained = work / "search", work / "retrain"
    config = config.model_copy(update={"seed": seed})
    stages.search(config, dataset, searched, VARIANT)
    stages.retrain(config, dataset, searched, trained, VARIANT)
    start = time.perf_counter()
    evolved = search(config, packed.read(folder.require(dataset, "ingest")))
    seconds = time.perf_counter() - start
    write_genotype(config, evolved["path"], work / "evolution" / "search")
    stages.retrain(config, dataset, work / "evolution" / "search", work / "evolution" / "retrain", VARIANT)
    ours = json.loads((searched / "search.json").read_text())
    costing = evolved["costing"]
    candidates = [{**row, "size_mib": costing.size_mib(row["path"])} for row in ours["candidates"]]
    ours_seconds = folder.provenance(searched)["seconds"]
    return (
        outcome("DNAS", seed, ours_seconds, ours["found"]["accuracy"], candidates, trained),
        outcome("evolution", seed, seconds, evolved["accuracy"], evolved["front"], work / "evolution" / "retrain"),
    )


def outcome(
    name: str, seed: int, seconds: float, shared: float, judged: list[dict[str, Any]], trained: Path
) -> Outcome:
    """Of a search whose network is trained."""
    metrics = json.loads((folder.require(trained, "retrain") / "metrics.json").read_text())
    figures = {key: metrics[key] for key in ("size_mib", "macs", "validation_accuracy")}
    row = {"search": name, "seed": seed, "seconds": seconds, "shared": shared, **figures}
    return Outcome(row, judged, Predictions.load(trained / "validation.csv"))


def summary(pairs: Sequence[tuple[Outcome, Outcome]]) -> dict[str, Any]:
    """All rows, and the difference over all seeds, where a patient is drawn or left out with all its scans and seeds."""
    outcomes = [one for pair in pairs for one in pair]
    paired = paired_difference(*(over_seeds([pair[i].answers for pair in pairs]) for i in (0, 1)))
    judged = {name: [row for one in outcomes if one.row["search"] == name for row in one.judged] for name in COLORS}
    return {
        "rows": [one.row for one in outcomes],
        "judged": judged,
        "difference": {"accuracy": paired.difference, "interval": [paired.low, paired.high]},
    }


def over_seeds(answers: Sequence[Predictions]) -> Predictions:
    """The answers of several networks to the same scans as one."""
    first = answers[0]
    return Predictions(
        tuple(f"{seed}/{scan}" for seed, one in enumerate(answers) for scan in one.scan_ids),
        first.patients * len(answers),
        np.tile(first.labels, len(answers)),
        np.concatenate([one.logits for one in answers]),
        first.classes,
    )


def search(config: Config, data: packed.Packed) -> dict[str, Any]:
    """Warm up, evolve, judge the front; the chosen path, its accuracy on validation, and the front."""
    settings, on = config.search, device()
    space = space_of(VARIANT, settings.strides)
    costing = Costing(cost.table(space, settings.size, config.channels, len(config.classes)), settings.budget)
    weight_half, judge_half = halves(config, data, on)
    validation = select(data, data.split("validation"), config.classes, settings.size, on)
    torch.manual_seed(config.seed)
    supernet = place(Supernet(space, config.channels, len(config.classes), settings.share_weights), on)
    each = round(settings.steps * UPDATES_PER_ITERATION / GENERATIONS)
    total = settings.warmup_steps + GENERATIONS * each
    still = settings.model_copy(update={"warmup_steps": total, "steps": 1})  # alpha never moves
    run = dnas._Run(supernet, costing, weight_half, judge_half, still, config.augment, config.seed)
    rng = np.random.default_rng(config.seed)
    sample = judge_half.batch(0, JUDGED_SCANS, config.seed)

    def judge(path: BlockChoice, held_out: Volumes, batches: int = 6) -> result.Judgement:
        genotype = result.genotype_of(path, supernet, VARIANT, config.classes, settings.size)
        return result.judge(supernet, genotype, weight_half, held_out, batches)

    with progress("evolve", total, 0) as advance:
        for _ in range(settings.warmup_steps):
            run.iterate()
            advance(note="warm-up")
        paths = result.random_paths(costing, POPULATION, generator(config.seed, 20))
        population = [Individual(path, costing.size_mib(path)) for path in paths]
        for generation in range(GENERATIONS):
            for _ in range(each):
                train(run, population[int(rng.integers(len(population)))].path)
                advance(note=f"generation {generation + 1}, best {max(i.accuracy or 0.0 for i in population):.3f}")
            known = {individual.path for individual in population}
            population += [
                Individual(path, costing.size_mib(path))
                for path in children(population, costing, POPULATION, known, rng)
            ]
            for individual in population:
                accuracy = judge(individual.path, Volumes(*sample), 3).accuracy
                individual.potential = None if individual.accuracy is None else accuracy - individual.accuracy
                individual.accuracy = accuracy
            population = survivors(population, POPULATION)
    judged = [(judge(individual.path, judge_half), individual) for individual in population]
    _, best = min(judged, key=lambda pair: pair[0].loss)
    return {
        "path": best.path,
        "accuracy": judge(best.path, validation).accuracy,
        "costing": costing,
        "front": [
            {"path": individual.path, "size_mib": individual.size_mib, "loss": j.loss, "accuracy": j.accuracy}
            for j, individual in judged
        ],
    }


def train(run: dnas._Run, path: BlockChoice) -> None:
    """One weight update of a path: the search's own, with the path given instead of drawn."""
    certain = nn.functional.one_hot(torch.tensor(path), run.scores.shape[1]) * 1e4
    run.scores = certain.to(run.scores)
    run.iterate()


def children(
    population: Sequence[Individual], costing: Costing, count: int, known: set[BlockChoice], rng: np.random.Generator
) -> list[BlockChoice]:
    """New paths within the budget, each block of either parent, some of them changed."""
    ranks = rank(population)
    made: list[BlockChoice] = []
    while len(made) < count:
        pairs = rng.integers(len(population), size=(2, 2))
        parents = [population[min(pair, key=lambda i: ranks[i])].path for pair in pairs]
        pick, changed = rng.integers(2, size=costing.blocks), rng.random(costing.blocks) < MUTATION
        drawn = rng.integers(costing.operations, size=costing.blocks)
        path = tuple(
            int(drawn[i]) if changed[i] else parents[pick[i]][i] for i in range(costing.blocks)
        )  # fmt: skip
        if path not in known and costing.fits(path):
            known.add(path)
            made.append(path)
    return made


def survivors(population: Sequence[Individual], count: int) -> list[Individual]:
    """The first by rank."""
    ranks = rank(population)
    return [population[i] for i in sorted(range(len(population)), key=lambda i: ranks[i])[:count]]


def rank(population: Sequence[Individual]) -> list[tuple[int, float]]:
    """Number of the non-dominated front and, within it, how crowded it is there (NSGA-II); smaller is better."""
    gains = [i.potential for i in population if i.potential is not None]
    unknown = float(np.median(gains)) if gains else 0.0
    points = np.array([individual.objectives(unknown) for individual in population])
    ranks: list[tuple[int, float]] = [(0, 0.0)] * len(points)
    left, front = set(range(len(points))), 0
    while left:
        first = [i for i in left if not any(dominates(points[j], points[i]) for j in left)]
        for i, distance in zip(first, crowding(points[first]), strict=True):
            ranks[i] = (front, -distance)
        left -= set(first)
        front += 1
    return ranks


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    """No worse in anything and better in something."""
    return bool((a >= b).all() and (a > b).any())


def crowding(points: np.ndarray) -> list[float]:
    """Sum over the objectives of the distance between a point's two neighbours, as a share of the range; ends: infinite."""
    distance = np.zeros(len(points))
    for values in points.T:
        order = np.argsort(values)
        width = float(np.ptp(values)) or 1.0
        distance[order[[0, -1]]] = np.inf
        distance[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / width
    return [float(value) for value in distance]


def draw(found: dict[str, Any], out: Path) -> None:
    """Left what both judged in the end, shared accuracy over size; right what their networks reach when retrained."""
    figure = Figure(figsize=(9.6, 3.8), layout="constrained", dpi=110)
    inside, retrained = figure.subplots(1, 2, sharex=True)
    for name, color in COLORS.items():
        judged, rows = found["judged"][name], [row for row in found["rows"] if row["search"] == name]
        for axes, points, key in ((inside, judged, "accuracy"), (retrained, rows, "validation_accuracy")):
            size, accuracy = [one["size_mib"] for one in points], [100 * one[key] for one in points]
            axes.scatter(size, accuracy, color=color, s=30 if axes is inside else 60, alpha=0.8, label=name)
    for row in found["rows"]:
        at = (row["size_mib"], 100 * row["validation_accuracy"])
        retrained.annotate(f"seed {row['seed']}", at, (6, 4), textcoords="offset points", fontsize=8, color="#555555")
    for axes, what in (
        (inside, "accuracy with shared weights, %"),
        (retrained, "accuracy of the retrained network, %"),
    ):
        axes.set_xlabel("MiB")
        axes.set_ylabel(what)
    inside.legend(frameon=False)
    save(figure, out)


if __name__ == "__main__":
    main()
