"""Accuracy against milliseconds and megabytes: the baselines and the found network of a finished run, in one picture.

    python -m benchmarks.tradeoff results        # a minute; benchmarks/results/tradeoff.json, docs/images/tradeoff.png

Accuracy and interval are those of the run's evaluation on its test split; the time is one scan at the run's size in the
default engine, all cores, the networks taking turns, with a rest between.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.engines import take_turns
from benchmarks.machine import facts
from covidnet.export.onnx import export
from covidnet.inference import selection
from covidnet.inference.engine import open_model
from covidnet.models import saved
from covidnet.models.cost import count

SECONDS = 20.0
COLORS = ("#1f6f8b", "#c8793c", "#7a9e49", "#8a5a83", "#555555")


def main() -> None:
    """Measure, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder with baseline/, retrain/ and evaluate/")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tradeoff.json"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/tradeoff.png"))
    options = parser.parse_args()
    evaluated = json.loads((options.results / "evaluate" / "results.json").read_text())
    rows = measure(trained(options.results), evaluated)
    print(f"{'network':>16} | {'accuracy':>8} | {'interval':>15} | {'ms':>8} | {'MiB':>8}")
    for row in rows:
        low, high = row["interval"] or (float("nan"),) * 2
        interval = f"{low:.3f} to {high:.3f}"
        print(
            f"{row['name']:>16} | {row['accuracy']:8.3f} | {interval:>15} | {row['ms']:8.2f} | {row['size_mib']:8.2f}"
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**facts(), "rows": rows}, indent=2) + "\n")
    draw(rows, options.picture)


def trained(results: Path) -> list[Path]:
    """Folders of the trained networks."""
    found = sorted([*results.glob("baseline/*/model.json"), *results.glob("retrain/*/model.json")])
    if not found:
        raise SystemExit(f"no trained network under {results}; run `dvc repro` first")
    return [path.parent for path in found]


def measure(folders: list[Path], evaluated: dict[str, Any]) -> list[dict[str, Any]]:
    """Figures of each network, the fastest first."""
    threads = len(os.sched_getaffinity(0))
    rows, runs, size = [], {}, (0, 0, 0)
    with tempfile.TemporaryDirectory() as scratch:
        for folder in folders:
            model, description = saved.load(folder)
            name, size = description.name, description.size
            path = Path(scratch) / f"{name}.onnx"
            export(model, path, size=size, channels=description.channels, temperature=1.0, metadata={})
            runs[name] = open_model(path, "cpu", "openvino", threads).run
            rows.append(
                {
                    "name": name,
                    "accuracy": evaluated["metrics"][name]["accuracy"],
                    "interval": evaluated["intervals"][name]["accuracy"],
                    "size_mib": round(count(model, size, description.channels).size_mib, 3),
                }
            )
        times = take_turns(runs, np.zeros((1, 1, *size), np.uint8), SECONDS, rest_s=selection.REST_S)
    for row in rows:
        row["ms"] = round(float(np.median(times[row["name"]])), 3)
    return sorted(rows, key=lambda row: row["ms"])


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """Two panels that share the accuracy axis; up and to the left is better."""
    figure = Figure(figsize=(10, 4.2), layout="constrained", dpi=140)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, key, label in zip(
        panels, ("ms", "size_mib"), ("ms per scan on this CPU", "MiB of float32"), strict=True
    ):
        labelled: list[tuple[float, float]] = []
        for row, color in zip(rows, COLORS, strict=False):
            accuracy = 100 * row["accuracy"]
            ends = [100 * abs(end - row["accuracy"]) for end in row["interval"] or (row["accuracy"],) * 2]
            panel.errorbar(row[key], accuracy, yerr=[[ends[0]], [ends[1]]], fmt="o", ms=8, capsize=3, color=color)
            right = row[key] > np.sqrt(min(r[key] for r in rows) * max(r[key] for r in rows))
            place = (float(np.log10(row[key])), accuracy)
            crowded = any(abs(place[0] - x) < 0.4 and abs(place[1] - y) < 10 for x, y in labelled)
            labelled.append(place)
            panel.annotate(
                f"{row['name']}\n{row[key]:.3g} {'ms' if key == 'ms' else 'MiB'}",
                (row[key], accuracy),
                xytext=(-10 if right else 10, -26 if crowded else 6),
                textcoords="offset points",
                ha="right" if right else "left",
                fontsize=9,
                color=color,
            )
        panel.set_xscale("log")
        panel.margins(x=0.18, y=0.14)
        panel.set_xlabel(f"{label} (log scale)")
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("accuracy on the test split, %")
    figure.suptitle("Accuracy against time and size; bars are 95 % intervals over patients", fontsize=11)
    figure.savefig(out)


if __name__ == "__main__":
    main()
