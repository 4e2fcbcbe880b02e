"""Does the evolutionary search find a better network than DNAS with the same supernet and the same compute?

    make demo && python -m benchmarks.evolution [results]               # an hour on two cores: three seeds of each
    python -m benchmarks.evolution results -S search.budget.size_mib=3  # settings as in the run that it is set beside

The supernet is warmed up alike; then evolution (`covidnet.search.evolution`, after EMARS) has as many weight updates as cost
what our weight and architecture updates cost together. What each finds is trained from scratch, and both are read on the
validation split. All goes through the stages, and the first seed of DNAS is the run's own; what is there is written after
every seed.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.figures import save
from benchmarks.machine import facts
from benchmarks.ranking import VARIANT, costing_of
from covidnet import folder, stages
from covidnet.config import Config, load
from covidnet.evaluation.bootstrap import paired_difference
from covidnet.evaluation.metrics import Predictions
from covidnet.search.budget import Costing
from covidnet.search.evolution import GENERATIONS

COLORS = {"DNAS": "#0072b2", "evolution": "#d55e00"}
UPDATES_PER_ITERATION = 1.4  # training steps that an iteration of ours costs (benchmarks/results/search_step.json)


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
    steps = GENERATIONS * round(config.search.steps * UPDATES_PER_ITERATION / GENERATIONS)
    evolving = config.search.model_copy(update={"method": "evolution", "steps": steps})
    evolved = work / "evolution" / "search", work / "evolution" / "retrain"
    stages.search(config.model_copy(update={"search": evolving}), dataset, evolved[0], VARIANT)
    stages.retrain(config, dataset, *evolved, VARIANT)
    costing = costing_of(config)
    return outcome("DNAS", seed, searched, trained, costing), outcome("evolution", seed, *evolved, costing)


def outcome(name: str, seed: int, searched: Path, trained: Path, costing: Costing) -> Outcome:
    """Of a search whose network is trained."""
    told = json.loads((searched / "search.json").read_text())
    metrics = json.loads((trained / "metrics.json").read_text())
    figures = {key: metrics[key] for key in ("size_mib", "macs", "validation_accuracy")}
    seconds, shared = folder.provenance(searched)["seconds"], told["found"]["accuracy"]
    judged = [{**row, "size_mib": costing.size_mib(row["path"])} for row in told["candidates"]]
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
