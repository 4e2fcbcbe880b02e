"""The probability of every operation over the course of a search, a panel per block."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from covidnet.models.covidnet3d import Genotype, Operation, Space

# hue says the kernel, shade the expansion (dark is wide); told apart by the colour-blind
COLORS = {
    3: ("#9ecae1", "#4292c6", "#084594"),
    5: ("#fdd0a2", "#f16913", "#a63603"),
    7: ("#a1d99b", "#41ab5d", "#005a32"),
}
IDENTITY, OTHER = "#d9d9d9", "#bcbddc"
POINTS = 120  # per panel: more than its pixels gains nothing


def draw(searched: Path) -> None:
    """Write `probabilities.png` beside a search's `search.json`, `probabilities.npy` and `genotype.json`."""
    space = Genotype.load(searched / "genotype.json").space
    told = json.loads((searched / "search.json").read_text())
    probabilities = np.load(searched / "probabilities.npy", allow_pickle=False).astype(np.float64)
    begin = next((row["step"] for row in told["history"] if row["phase"] != "warm-up"), None)
    steps = [row["step"] for row in told["history"]]
    picture(space, steps, probabilities, begin, told["found"]["path"]).savefig(searched / "probabilities.png")


def picture(
    space: Space, steps: Sequence[int], probabilities: np.ndarray, begin: int | None, found: Sequence[int]
) -> Figure:
    """Stacked shares of the operations over steps.

    Args:
        space: of the search.
        steps: of each row.
        probabilities: ``(rows, blocks, operations)``.
        begin: step at which the architecture begins to move; a dashed line.
        found: index of the chosen operation per block, its name above the panel.
    """
    chosen = np.unique(np.linspace(0, len(steps) - 1, POINTS).round().astype(int))
    x, shares = np.array(steps)[chosen], probabilities[chosen]
    columns, colors = max(space.blocks), [color(operation, space) for operation in space.operations]
    figure = Figure(figsize=(2.1 * columns + 1.2, 1.25 * len(space.blocks) + 0.7), layout="constrained", dpi=100)
    panels = figure.subplots(len(space.blocks), columns, sharex=True, sharey=True, squeeze=False)
    block = 0
    for layer, (row, count, width) in enumerate(zip(panels, space.blocks, space.widths, strict=True), start=1):
        for at, axes in enumerate(row):
            if at >= count:
                axes.set_axis_off()
                continue
            axes.stackplot(x, shares[:, block].T, colors=colors, linewidth=0)
            axes.set_title(space.operations[found[block]].name, fontsize=7, pad=2)
            axes.set(xlim=(x[0], max(x[-1], x[0] + 1)), ylim=(0, 1), yticks=[])
            axes.tick_params(labelsize=7, length=2)
            if begin is not None:
                axes.axvline(begin, color="black", linewidth=0.8, linestyle=(0, (3, 3)))
            block += 1
        row[0].set_ylabel(f"layer {layer}\n{width} channels", fontsize=7)
    legend = [Patch(color=c, label=o.name) for c, o in zip(colors, space.operations, strict=True)]
    figure.legend(handles=legend, loc="outside lower center", ncols=min(4, len(legend)), fontsize=7, frameon=False)
    figure.suptitle("Probability of each operation by step; above each block what was found", fontsize=9)
    return figure


def color(operation: Operation, space: Space) -> str:
    """By kernel and by the rank of the expansion among those of that kernel."""
    if not operation.kernel:
        return IDENTITY
    expansions = sorted(o.expansion for o in space.operations if o.kernel == operation.kernel)
    shades = COLORS.get(operation.kernel, (OTHER,))
    return shades[min(expansions.index(operation.expansion), len(shades) - 1)]
