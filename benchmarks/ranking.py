"""Is a found architecture better than a random one of the same budget, once both are trained from scratch?

    python -m benchmarks.ranking                                        # for real: hours on two cores; a GPU takes minutes
    python -m benchmarks.ranking --seeds 1 --random 6 -S training.tmacs=0.4 -S search.warmup_steps=250 -S search.steps=200
                                                                        # 20 minutes on two cores
    python -m benchmarks.ranking --difficulty 0 --masked 0 --jobs 2 --out benchmarks/results/ranking_demo.json \\
        --picture docs/images/ranking-demo.png                          # the demo's task and search; 2 hours on two cores
    python -m benchmarks.ranking --jobs 8                               # a GPU that one training alone doesn't fill
    OMP_NUM_THREADS=1 python -m benchmarks.ranking --complete --jobs 2  # the random ones that a stopped ranking lacks

Three kinds of architecture of the S space under one size budget, each retrained with the same settings and read on the
validation split: found by the search, one per seed; found with the boolean mask of the authors' released code, whose
architecture parameters get no gradient, one per seed; drawn at random under the budget, those that the first search was
compared with. Their accuracy with shared weights stands beside the retrained one, with Kendall's tau. Everything goes
through the stages, so that a stopped run goes on where it was, and what is there is written after every network. Where
neither its supernets nor its machine are at hand any more, `--complete` draws the random ones anew, which takes no
supernet, and trains those that the result lacks, cheapest first; their rows say on what. The demo's search is too short for
phantoms as hard as the paper's data; `ranking.json` says what was set.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import binomtest, kendalltau

from benchmarks.figures import save
from benchmarks.machine import facts
from covidnet import folder, stages
from covidnet.config import Config, load
from covidnet.data import packed
from covidnet.models import cost
from covidnet.models.covidnet3d import Genotype, space_of
from covidnet.search import gumbel
from covidnet.search.budget import Costing
from covidnet.search.run import comparison
from covidnet.training.distributed import device

VARIANT = "S"
COLORS = {"found": "#0072b2", "boolean mask": "#d55e00", "random": "#777777"}
RESULTS = Path(__file__).parent / "results" / "ranking.json"


def main() -> None:
    """Search, retrain, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="searches of each kind")
    parser.add_argument("--masked", type=int, help="searches with the boolean mask; as many as seeds")
    parser.add_argument("--random", type=int, default=20, help="random architectures")
    parser.add_argument("--difficulty", type=float, default=1.0, help="of the phantoms")
    parser.add_argument("--patients", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("--work", type=Path, default=Path("results/ranking"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=Path("docs/images/ranking.png"))
    parser.add_argument("--complete", action="store_true", help="train what the result at --out lacks, as it was set")
    parser.add_argument("-S", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    overrides = [
        f"search.random={options.random}",
        f"data.phantom.difficulty={options.difficulty}",
        f"data.phantom.patients={options.patients}",
    ]
    found: dict[str, Any] = {}
    if options.complete:
        found = json.loads(options.out.read_text())
        overrides = found["settings"]["overrides"]
    overrides += options.overrides
    configs = [load(None, [*overrides, f"results={options.work}", f"seed={seed}"]) for seed in range(options.seeds)]
    dataset = options.work / "dataset"
    stages.ingest(configs[0], dataset)
    if options.complete:
        trained = complete(found["rows"], configs[0], dataset, options.work, options.jobs)
    else:
        settings = {"search": configs[0].search.model_dump(mode="json"), "overrides": overrides}
        scans = len(packed.read(dataset).split("validation"))
        found = {**facts(), "device": device().type, "settings": settings, "validation_scans": scans}
        trained = compare(configs, configs[: options.masked], dataset, options.work, options.jobs)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for rows in trained:
        found |= {"rows": rows, **summary(rows)}
        folder.write_json(options.out, folder.finite(found))
    print(f"{'':>14} {'seed':>5} | {'retrained':>9} | {'shared':>7} | {'MiB':>5} | random ones beaten")
    for row in found["rows"]:
        beaten = f"{row['beaten']:.0%}" if "beaten" in row else ""
        shared = f"{row['shared']:.3f}" if "shared" in row else ""
        print(
            f"{row['kind']:>14} {row['seed']:>5} | {row['retrained']:9.3f} | {shared:>7} | {row['size_mib']:5.2f} | {beaten}"
        )
    print(
        f"\nKendall's tau of shared against retrained accuracy: {found['kendall_tau']:.2f} (p {found['kendall_p']:.2g})"
    )
    draw(found, options.picture)


def compare(
    configs: Sequence[Config], masked: Sequence[Config], dataset: Path, work: Path, jobs: int
) -> Iterator[list[dict[str, Any]]]:
    """A row for every architecture that is retrained so far: kind, seed, size, shared and retrained accuracy."""
    tasks = [(config, dataset, work, "found") for config in configs]
    tasks += [(config, dataset, work, "boolean mask") for config in masked]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        rows = list(pool.map(searched, *zip(*tasks, strict=True)))
        for number, other in enumerate(json.loads((work / "search" / "found-0" / "search.json").read_text())["random"]):
            write_genotype(configs[0], other["path"], work / "search" / name_of("random", number))
            rows.append({"kind": "random", "seed": number, "shared": other["accuracy"]})
        training = {pool.submit(retrain, configs[0], dataset, row, work): at for at, row in enumerate(rows)}
        done: dict[int, dict[str, Any]] = {}
        for ended in as_completed(training):
            done[training[ended]] = ended.result()
            yield [done[at] for at in sorted(done)]


def complete(
    rows: Sequence[dict[str, Any]], config: Config, dataset: Path, work: Path, jobs: int
) -> Iterator[list[dict[str, Any]]]:
    """The rows of a stopped ranking with, one after the other, those of the random architectures that it lacks."""
    costing = costing_of(config)
    paths = dict(enumerate(comparison(config, costing)))
    for row in rows:
        if row["kind"] == "random" and row["macs"] != costing.macs(paths.pop(row["seed"])):
            raise SystemExit(
                f"random architecture {row['seed']} of the result is drawn otherwise now: set what it was set"
            )
    for number, path in paths.items():
        write_genotype(config, path, work / "search" / name_of("random", number))
    here = facts()
    on = {"date": here["date"], "device": f"{device().type}, {here['machine']['processor']}"}
    lacking = sorted(paths, key=lambda number: costing.macs(paths[number]))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        training = [
            pool.submit(retrain, config, dataset, {"kind": "random", "seed": number, **on}, work) for number in lacking
        ]
        for ended in as_completed(training):
            rows = sorted([*rows, ended.result()], key=lambda row: (list(COLORS).index(row["kind"]), row["seed"]))
            yield rows


def costing_of(config: Config) -> Costing:
    """Costs of the architectures that a configuration's search chooses among."""
    space = space_of(VARIANT, config.search.strides)
    table = cost.table(space, config.search.size, config.channels, len(config.classes))
    return Costing(table, config.search.budget)


def name_of(kind: str, seed: int) -> str:
    """Of an architecture's folders."""
    return f"{kind.replace(' ', '-')}-{seed}"


def searched(config: Config, dataset: Path, work: Path, kind: str) -> dict[str, Any]:
    """Search; kind, seed, and the found architecture's accuracy with shared weights."""
    out = work / "search" / name_of(kind, config.seed)
    with patch("covidnet.search.dnas.sample", boolean) if kind == "boolean mask" else nullcontext():
        stages.search(config, dataset, out, VARIANT)
    shared = json.loads((out / "search.json").read_text())["found"]["accuracy"]
    return {"kind": kind, "seed": config.seed, "shared": shared}


def boolean(alpha: torch.Tensor, temperature: float, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """The authors' estimator: the mask is cast to bool, which cuts the gradient of alpha."""
    path, gates = gumbel.sample(alpha, temperature, rng)
    return path, gates.bool().float() + 0.0 * alpha.sum()  # a gradient of zero, so that the update runs


def write_genotype(config: Config, path: Sequence[int], out: Path) -> None:
    """A folder as `search` leaves it, for one architecture."""
    space = space_of(VARIANT, config.search.strides)
    genotype = Genotype.of_path(path, space, VARIANT, config.classes, config.channels, config.search.size)
    with folder.write(out, "random", {"genotype": genotype.to_dict()}, {}) as work:
        if work is not None:
            genotype.save(work / "genotype.json")
            folder.write_json(work / "metrics.json", {})


def retrain(config: Config, dataset: Path, row: dict[str, Any], work: Path) -> dict[str, Any]:
    """The row with its size, multiply-accumulates, and accuracy on the validation split when trained from scratch."""
    name = name_of(row["kind"], row["seed"])
    found = stages.retrain(config, dataset, work / "search" / name, work / "retrain" / name, VARIANT)
    return {**row, "size_mib": found["size_mib"], "macs": found["macs"], "retrained": found["validation_accuracy"]}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the rows say together; those not drawn at random get the share of random ones that they beat."""
    by_kind = {kind: np.array([row["retrained"] for row in rows if row["kind"] == kind]) for kind in COLORS}
    both = [(row["shared"], row["retrained"]) for row in rows if "shared" in row]
    tau = kendalltau(*zip(*both, strict=True))
    for row in rows:
        if row["kind"] != "random":
            row["beaten"] = share(row["retrained"] > by_kind["random"])
    return {
        "mean_accuracy": {kind: share(accuracy) for kind, accuracy in by_kind.items()},
        "beaten": {
            kind: share(np.array([row["beaten"] for row in rows if row["kind"] == kind])) for kind in list(COLORS)[:2]
        },
        "kendall_tau": float(tau.statistic),
        "kendall_p": float(tau.pvalue),
    }


def share(values: np.ndarray) -> float:
    """Their mean; not a number where there is none yet."""
    return float(values.mean()) if len(values) else float("nan")


def draw(found: dict[str, Any], out: Path) -> None:
    """Retrained accuracies of each kind, open for another device; then over multiply-accumulates and shared accuracy."""
    figure = Figure(figsize=(12, 3.8), layout="constrained", dpi=100)
    strips, macs, shared = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
    kinds = [kind for kind in COLORS if any(row["kind"] == kind for row in found["rows"])]
    for at, kind in enumerate(kinds):
        rows = [row for row in found["rows"] if row["kind"] == kind]
        accuracy = 100 * np.array([row["retrained"] for row in rows])
        spread = np.linspace(-0.15, 0.15, len(rows)) if len(rows) > 1 else np.zeros(1)
        look = {"edgecolors": COLORS[kind], "s": 34, "alpha": 0.8}
        faces = np.array(["white" if "device" in row else COLORS[kind] for row in rows])
        strips.scatter(accuracy, at + spread, facecolors=faces, **look)
        macs.scatter([row["macs"] / 1e6 for row in rows], accuracy, facecolors=faces, **look)
        known = np.array(["shared" in row for row in rows])
        within = [100 * row["shared"] for row in rows if "shared" in row]
        shared.scatter(within, accuracy[known], facecolors=faces[known], **look)
        scans = found["validation_scans"]
        ends = binomtest(round(accuracy.mean() / 100 * scans), scans).proportion_ci()
        strips.plot([100 * ends.low, 100 * ends.high], [at + 0.3] * 2, color=COLORS[kind], linewidth=1)
    strips.set_yticks(range(len(kinds)), kinds)
    strips.set_xlabel("retrained, % on validation\n(lines: 95 % interval of the mean's scans)")
    strips.invert_yaxis()
    for axes, what in ((macs, "10⁶ multiply-accumulates"), (shared, "with shared weights, %")):
        axes.set_xlabel(what)
        axes.set_ylabel("retrained, %")
    shared.set_title(f"Kendall's tau {found['kendall_tau']:.2f}", fontsize=10)
    handles = [Line2D([], [], color=COLORS[kind], marker="o", linestyle="", label=kind) for kind in kinds]
    macs.legend(handles=handles, frameon=False, fontsize=8)
    save(figure, out)


if __name__ == "__main__":
    main()
