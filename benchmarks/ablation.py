"""What is each guard of the search worth? The demo's search again, one of them left out at a time.

    make demo && python -m benchmarks.ablation [results]                # an hour on two cores
    python -m benchmarks.ablation results --without "warm-up"           # one of them

Left out are: the warm-up with uniform paths; the exact budget, for a penalty on expected cost in the loss of alpha, as
FBNet and ProxylessNAS have it; starting every candidate as identity; and gating the residual branch alone. A row says
whether the supernet learned, how much of the probability went to identity, whether the budget was met, what the found
architecture and random ones of the same budget reach inside the supernet on validation, and what the found one reaches
trained from scratch. Accuracy with shared weights tells paths of one supernet apart, not supernets: one that few paths
share knows these better.
"""

import argparse
import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.figures import save
from benchmarks.machine import facts
from covidnet import folder, stages
from covidnet.config import Config, load
from covidnet.models.covidnet3d import MBConv, Operation
from covidnet.models.supernet import SharedBlock, Supernet
from covidnet.search import budget, dnas, run

VARIANT = "S"
PENALTY = 0.3  # of a cost as large as its limit, in nats
ALL = "all guards"
CURVE_EVERY = 4  # rows of the history; more than that a picture does not show
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#777777")


@contextmanager
def penalised() -> Iterator[None]:
    """Paths drawn from softmax(alpha) as it is, and expected cost over limit added to the loss of alpha."""
    whole, begin = dnas.Run._loss, dnas.Run.__init__

    def without_limit(self: dnas.Run, supernet: Supernet, costing: budget.Costing, *others: Any) -> None:
        free = copy.copy(costing)
        free.within = lambda alpha: alpha  # type: ignore[method-assign]
        begin(self, supernet, free, *others)

    def loss(self: dnas.Run, scans: Tensor, labels: Tensor, stream: int, path: Any, gates: Tensor | None) -> Any:
        found, accuracy = whole(self, scans, labels, stream, path, gates)
        if gates is None:
            return found, accuracy
        p = torch.softmax(self.alpha, dim=1)
        shares = [(p * torch.from_numpy(share).to(p)).sum() for share in self.costing._shares.values()]
        return found + PENALTY * torch.stack(shares).sum(), accuracy

    with patch.object(dnas.Run, "__init__", without_limit), patch.object(dnas.Run, "_loss", loss):
        yield


@contextmanager
def random_residuals() -> Iterator[None]:
    """Candidates that start with residuals of random size."""

    class Loud(Supernet):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            for module in self.modules():
                if isinstance(module, MBConv):
                    nn.init.ones_(module.bn3.weight)

    with patch.object(run, "Supernet", Loud):
        yield


@contextmanager
def gated_whole() -> Iterator[None]:
    """The gate on the whole block, identity part and all."""

    def forward(self: SharedBlock, x: Tensor, operation: Operation, gate: Tensor | None) -> Tensor:
        y = x + self.candidates[operation.name](x) if operation.kernel else x
        return y if gate is None else y * gate

    with patch.object(SharedBlock, "forward", forward):
        yield


WITHOUT = {
    "warm-up": nullcontext,
    "exact budget": penalised,
    "identity at the start": random_residuals,
    "gate on the residual alone": gated_whole,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"), help="of a finished run")
    parser.add_argument("--without", nargs="*", default=list(WITHOUT), choices=list(WITHOUT))
    parser.add_argument("--work", type=Path, default=Path("results/ablation"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ablation.json"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/ablation.png"))
    parser.add_argument("-S", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    config = load(None, [f"results={options.results}", *options.overrides])
    dataset, rows = stages.dataset_of(config), [row(ALL, config)]
    print(line(rows[0]), flush=True)
    for name in options.without:
        less = without_warm_up(config) if name == "warm-up" else config
        less = less.model_copy(update={"results": str(options.work / name.replace(" ", "-"))})
        searched = stages.search_of(less, VARIANT)
        with WITHOUT[name]():
            stages.search(less, dataset, searched, VARIANT)
        stages.retrain(less, dataset, searched, stages.retrain_of(less, VARIANT), VARIANT)
        rows.append(row(f"without {name}", less))
        print(line(rows[-1]), flush=True)
        found = {**facts(), "settings": config.search.model_dump(mode="json"), "rows": rows}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        folder.write_json(options.out, folder.finite(found))
        draw(rows, options.picture)


def without_warm_up(config: Config) -> Config:
    """Both updates from the first step on, as many steps in all."""
    steps = config.search.warmup_steps + config.search.steps
    search = config.search.model_copy(update={"warmup_steps": 0, "steps": steps})
    return config.model_copy(update={"search": search})


def row(name: str, config: Config) -> dict[str, Any]:
    """The figures of one search."""
    searched = folder.require(stages.search_of(config, VARIANT), "search")
    trained = folder.require(stages.retrain_of(config, VARIANT), "retrain")
    metrics = json.loads((searched / "metrics.json").read_text())
    told = json.loads((searched / "search.json").read_text())
    probabilities = np.load(searched / "probabilities.npy").astype(np.float32)  # (rows, blocks, operations)
    identity = probabilities[:, :, told["operations"].index("Identity")].mean(axis=1)
    limit = config.search.budget.size_mib
    expected = told["history"][-1]["expected_size_mib"]
    kept = ("warmup_accuracy", "supernet_accuracy", "random_accuracy_mean", "random_accuracy_max", "size_mib")
    return {
        "name": name,
        **{key: metrics[key] for key in kept},
        "retrained_accuracy": json.loads((trained / "metrics.json").read_text())["validation_accuracy"],
        "identity": float(identity[-1]),
        "largest_excess": max(one["expected_size_mib"] for one in told["history"]) / limit - 1 if limit else None,
        "expected_size_mib": expected,
        "collapse": told["collapse"],
        "curve": {
            "step": [one["step"] for one in told["history"][::CURVE_EVERY]],
            "identity": [round(float(value), 4) for value in identity[::CURVE_EVERY]],
        },
    }


def line(one: dict[str, Any]) -> str:
    collapsed = f", collapsed at step {one['collapse']['step']}" if one["collapse"] else ""
    random = f"random {one['random_accuracy_mean']:.3f} (best {one['random_accuracy_max']:.3f})"
    return (
        f"{one['name']:<36} found {one['supernet_accuracy']:.3f}, {random}, retrained {one['retrained_accuracy']:.3f}, "
        f"{one['size_mib']:.2f} MiB, identity {one['identity']:.0%}, "
        f"expected size {one['expected_size_mib']:.2f} MiB{collapsed}"
    )


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """Left the probability of identity over the search, right what found and random architectures reach."""
    figure = Figure(figsize=(10.4, 3.8), layout="constrained", dpi=110)
    curves, strips = figure.subplots(1, 2)
    grey = "#777777"
    bar = {"linewidth": 6, "solid_capstyle": "butt", "alpha": 0.4}
    strips.plot([], [], color=grey, label="random ones in the supernet, mean to best", **bar)
    strips.scatter([], [], color=grey, s=40, label="found one in the supernet")
    strips.scatter([], [], facecolor="white", edgecolor=grey, s=40, label="found one trained from scratch")
    for at, (one, color) in enumerate(zip(rows, COLORS, strict=False)):
        curves.plot(one["curve"]["step"], [100 * value for value in one["curve"]["identity"]], color=color)
        strips.plot([100 * one["random_accuracy_mean"], 100 * one["random_accuracy_max"]], [at] * 2, color=color, **bar)
        strips.scatter(100 * one["supernet_accuracy"], at, color=color, s=40, zorder=3)
        strips.scatter(100 * one["retrained_accuracy"], at, facecolor="white", edgecolor=color, s=40, zorder=3)
    curves.set_xlabel("step")
    curves.set_ylabel("probability of identity, %")
    strips.set_yticks(range(len(rows)), [one["name"] for one in rows])
    strips.set_ylim(len(rows) + 0.7, -0.5)  # the first on top, the legend below
    strips.set_xlabel("accuracy on validation, %")
    strips.legend(loc="lower left", fontsize=8, frameon=False)
    save(figure, out)


if __name__ == "__main__":
    main()
