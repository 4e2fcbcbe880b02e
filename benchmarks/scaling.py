"""How do the costs grow? Each is measured at three sizes, in turns, and told as the exponent of a power law.

    python -m benchmarks.scaling [--rounds 7]       # two minutes on two cores

A training step and a search iteration against the voxels of a scan and against the batch (space S, random paths), intervals
and a paired test against scans. What other benchmarks measure over sizes already stands in their results (engines,
ingest, audit); docs/scaling.md has all of it together.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import facts
from benchmarks.search_step import prepare, timed
from covidnet.evaluation import bootstrap
from covidnet.evaluation.metrics import Predictions

SIZES = ("16,64,64", "24,96,96", "32,128,128")
BATCHES = (2, 4, 8)
SCANS = (500, 2000, 8000)


def exponent(x: list[float], seconds: list[float]) -> float:
    """Slope of log time over log size: 1 is linear."""
    return round(float(np.polyfit(np.log(x), np.log(seconds), 1)[0]), 2)


def steps(kind: str, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step over sizes (batch 2) and over batches (smallest size)."""
    settings = [{"variant": "S", "size": size, "batch": 2, "separate": False} for size in SIZES]
    settings += [{"variant": "S", "size": SIZES[0], "batch": batch, "separate": False} for batch in BATCHES[1:]]
    ready = [prepare(kind, one) for one in settings]
    seconds: list[list[float]] = [[] for _ in settings]
    for number in range(rounds + 1):
        for place, step in enumerate(ready):
            took = timed(kind, step, number)
            if number:  # the first one allocates
                seconds[place].append(took)
    ms = [round(1e3 * float(np.median(taken)), 1) for taken in seconds]
    by_batch = [ms[0], *ms[len(SIZES) :]]
    voxels = _voxels(SIZES)
    return {
        "by_size": dict(zip(SIZES, ms, strict=False)),
        "voxels_exponent": exponent(voxels, ms[: len(SIZES)]),
        "by_batch": dict(zip(map(str, BATCHES), by_batch, strict=True)),
        "batch_exponent": exponent([float(batch) for batch in BATCHES], by_batch),
    }


def drawn(scans: int, seed: int) -> Predictions:
    """So many scans of as many patients, predicted with some skill."""
    rng = np.random.default_rng(seed)
    labels = np.arange(scans) % 3
    logits = rng.normal(size=(scans, 3)) + 2 * np.eye(3)[labels]
    names = tuple(f"{number:05d}" for number in range(scans))
    return Predictions(names, names, labels, logits, ("NCP", "CP", "Normal"))


def statistics(call: Callable[[int], object], rounds: int) -> dict[str, Any]:
    """Milliseconds over scans, 1,000 resamples."""
    seconds: dict[int, list[float]] = {scans: [] for scans in SCANS}
    for _ in range(rounds):
        for scans, taken in seconds.items():
            started = time.perf_counter()
            call(scans)
            taken.append(time.perf_counter() - started)
    ms = [round(1e3 * float(np.median(taken)), 1) for taken in seconds.values()]
    return {"by_scans": dict(zip(map(str, SCANS), ms, strict=True)), "exponent": exponent([*map(float, SCANS)], ms)}


def table(results: Path) -> str:
    """Markdown of every slope that the committed results hold."""
    rows = ["| cost | grows with | measured | slope |", "|---|---|---|---:|"]
    engines = json.loads((results / "engines.json").read_text())["rows"]
    for engine in ("OpenVINO", "ONNX Runtime", "torch eager"):
        for network in ("S", "L"):
            ms = {row["size"]: row["ms"][engine] for row in engines if row["network"] == network}
            rows.append(
                _row(f"an answer, {network}, {engine}", "voxels", "ms", ms, exponent(_voxels(ms), [*ms.values()]))
            )
    step = json.loads((results / "search_step.json").read_text())["batches"]["16"]["rows"]
    for unit in ("ms", "mib"):
        kinds = ("training step", "search iteration", "all paths")
        ms = {kind: step[kind][unit] for kind in kinds}
        rows.append(_row("a step of the search", "operations per block", unit.replace("mib", "MiB"), ms, None))
    if (results / "scaling.json").is_file():
        found = json.loads((results / "scaling.json").read_text())
        for kind in ("training step", "search iteration"):
            one = found[kind]
            rows.append(_row(f"{kind}, batch 2", "voxels", "ms", one["by_size"], one["voxels_exponent"]))
            rows.append(
                _row(f"{kind}, {SIZES[0].replace(',', 'x')}", "batch", "ms", one["by_batch"], one["batch_exponent"])
            )
        for kind in ("intervals", "paired test"):
            rows.append(
                _row(f"{kind}, 1,000 resamples", "scans", "ms", found[kind]["by_scans"], found[kind]["exponent"])
            )
    return "\n".join(rows) + "\n"


def _row(cost: str, grows_with: str, unit: str, values: dict[str, float], slope: float | None) -> str:
    listed = ", ".join(f"{name.replace(',', 'x')}: {value:.4g}" for name, value in values.items())
    return f"| {cost} | {grows_with} | {listed} {unit} | {'one path is drawn' if slope is None else f'{slope:.2f}'} |"


def _voxels(sizes: Iterable[str]) -> list[float]:
    return [float(np.prod([int(side) for side in size.replace(",", "x").split("x")])) for size in sizes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scaling.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {**facts(), "threads": options.threads, "load": round(os.getloadavg()[0], 2)}
    for kind in ("training step", "search iteration"):
        found[kind] = steps(kind, options.rounds)
    ours, other = ({scans: drawn(scans, seed) for scans in SCANS} for seed in (0, 1))
    found["intervals"] = statistics(lambda n: bootstrap.intervals(ours[n], "NCP", resamples=1000), 3)
    found["paired test"] = statistics(lambda n: bootstrap.paired_difference(ours[n], other[n], resamples=1000), 3)
    for name in ("training step", "search iteration", "intervals", "paired test"):
        print(f"{name:<18} {json.dumps(found[name])}")
    options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
