"""The report's charts as inline SVG: small, legible on a phone, in the page's own text colour and font.

Ink becomes ``currentColor`` and each series a CSS variable with a fallback, so that one drawing serves a light and a
dark page and still stands alone. Series colours are Okabe and Ito's, told apart by the colour-blind.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from sklearn.metrics import roc_curve

from covidnet.evaluation import calibration, decisions
from covidnet.evaluation.metrics import FloatArray, IntArray, Predictions, confusion

_INK = "#010203"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
}


@mpl.rc_context(_STYLE)
def roc(curves: Mapping[str, tuple[IntArray, FloatArray]], name: str) -> str:
    """ROC curves.

    Args:
        curves: legend entry to (``int (N,)`` 1 for positive, ``float (N,)`` score).
        name: of the chart, unique within a page.
    """
    figure, axes = _figure(4.0, 3.9)
    axes.plot([0, 1], [0, 1], color=_INK, alpha=0.3, linewidth=0.8, linestyle=(0, (4, 4)))
    for (label, (target, score)), color in zip(curves.items(), _colors(len(curves)), strict=True):
        false_positive, sensitivity, _ = roc_curve(target, score)
        axes.plot(false_positive, sensitivity, color=color, label=label)
    axes.set(xlabel="False positive rate", ylabel="Sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), aspect="equal")
    axes.legend(loc="lower right", handlelength=1.4)
    _grid(axes)
    return _svg(figure, name)


@mpl.rc_context(_STYLE)
def confusion_matrix(predictions: Predictions, name: str) -> str:
    """Counts, shaded by the share of the true class, so that a rare class reads as well as a frequent one."""
    counts = confusion(predictions.labels, predictions.predicted, len(predictions.classes))
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = len(predictions.classes)
    figure, axes = _figure(4.0, 3.7)
    for row in range(size):
        for column in range(size):
            color = SERIES[0] if row == column else SERIES[1]
            corner = (column - 0.47, row - 0.47)
            axes.add_patch(mpl.patches.Rectangle(corner, 0.94, 0.94, color=color, alpha=0.7 * share[row, column]))
            axes.text(column, row - 0.07, str(counts[row, column]), ha="center", va="center", fontsize=15)
            axes.text(column, row + 0.24, f"{share[row, column]:.0%}", ha="center", va="center", fontsize=9)
    ticks = range(size)
    axes.set(xlabel="Predicted", ylabel="True", xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal")
    axes.set_xticks(ticks, predictions.classes)
    axes.set_yticks(ticks, predictions.classes, rotation=90, va="center")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _svg(figure, name)


@mpl.rc_context(_STYLE)
def reliability(predictions: Predictions, temperature: float, name: str) -> str:
    """Confidence against accuracy before and after temperature scaling; the diagonal is perfect."""
    figure, axes = _figure(4.0, 3.9)
    axes.plot([0, 1], [0, 1], color=_INK, alpha=0.3, linewidth=0.8, linestyle=(0, (4, 4)))
    for label, value, color, marker in (("before", 1.0, SERIES[1], "s"), ("after", temperature, SERIES[0], "o")):
        probabilities = predictions.probabilities(value)
        points = calibration.reliability(predictions.labels, probabilities, bins=10)
        error = calibration.expected_calibration_error(predictions.labels, probabilities)
        label = f"{label}: ECE {error:.3f}"
        axes.plot(points.confidence, points.accuracy, color=color, marker=marker, markersize=4, label=label)
    low = 1 / len(predictions.classes)
    axes.set(xlabel="Probability of the predicted class", ylabel="Share predicted correctly")
    axes.set(xlim=(min(low, 0.5) - 0.02, 1.02), ylim=(-0.02, 1.04))
    axes.legend(loc="lower right", handlelength=1.4)
    _grid(axes)
    return _svg(figure, name)


@mpl.rc_context(_STYLE)
def decision(target: IntArray, score: FloatArray, model: str, name: str) -> str:
    """Net benefit of acting on a probability, between acting on everybody and on nobody.

    Args:
        target: ``int (N,)`` 1 for positive.
        score: ``(N,)``.
        model: legend entry.
    """
    figure, axes = _figure(4.0, 3.9)
    everybody = decisions.net_benefit(target, np.ones(len(score)))
    ours = decisions.net_benefit(target, score)
    axes.plot(decisions.THRESHOLDS, everybody, color=SERIES[1], linestyle=(0, (4, 3)), label="everybody")
    axes.axhline(0, color=_INK, alpha=0.5, linewidth=0.9, linestyle=(0, (4, 3)), label="nobody")
    axes.plot(decisions.THRESHOLDS, ours, color=SERIES[0], label=model)
    top = max(float(ours.max()), float(np.mean(target)))
    axes.set(xlabel="Probability from which one acts", ylabel="Net benefit", xlim=(0, 1), ylim=(-0.3 * top, 1.15 * top))
    axes.legend(loc="lower left", handlelength=1.6)
    _grid(axes)
    return _svg(figure, name)


@mpl.rc_context(_STYLE)
def risk_coverage(curve: decisions.RiskCoverage, name: str) -> str:
    """Share of wrong answers among the surest, by how many are answered."""
    figure, axes = _figure(4.0, 3.9)
    axes.plot(curve.coverage, curve.risk, color=SERIES[0], label=f"mean {curve.area:.3f}")
    axes.set(
        xlabel="Share of scans answered, the surest first", ylabel="Share of these answered wrongly", xlim=(0, 1.01)
    )
    axes.set_ylim(bottom=0, top=max(0.05, 1.1 * float(curve.risk.max())))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(loc="upper left", handlelength=1.4)
    _grid(axes)
    return _svg(figure, name)


def search_curves(history: Sequence[Mapping[str, Any]], name: str) -> dict[str, str]:
    """How a search went, one small chart each: title to SVG.

    Args:
        history: rows with ``step`` and, where known, ``entropy``, ``temperature``, ``weight_loss``, ``alpha_loss`` and
            ``expected_size_mib``. The warm-up ends where ``alpha_loss`` begins.
    """
    charts = {
        "Entropy (nats)": ["entropy"],
        "Temperature": ["temperature"],
        "Loss": ["weight_loss", "alpha_loss"],
        "Expected size (MiB)": ["expected_size_mib"],
    }
    begin = next((row["step"] for row in history if row.get("alpha_loss") is not None), None)
    return {
        title: _steps(history, keys, begin, f"{name}-{keys[0]}")
        for title, keys in charts.items()
        if any(row.get(key) is not None for row in history for key in keys)
    }


@mpl.rc_context(_STYLE)
def supernet_comparison(found: float, random: Sequence[float], chance: float, warmup: float | None, name: str) -> str:
    """The found architecture's accuracy inside the supernet, among random architectures' and chance."""
    figure, axes = _figure(4.4, 1.75)
    heights = np.linspace(-0.18, 0.18, len(random)) if len(random) > 1 else np.zeros(len(random))
    axes.scatter(random, heights, s=26, color=_INK, alpha=0.45, linewidths=0, label="random")
    axes.scatter([found], [0], s=80, marker="D", color=SERIES[0], label="found", zorder=3)
    references = [("chance", chance)] + ([("after warm-up", warmup)] if warmup is not None else [])
    for label, value in references:
        axes.axvline(value, color=_INK, alpha=0.5, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.text(value, 0.5, label, ha="center", va="bottom")
    values = [found, chance, *random]
    axes.set(xlim=(max(0, min(values) - 0.06), min(1.0, max(values) + 0.06)), ylim=(-0.5, 0.5), yticks=[])
    axes.set_xlabel("Validation accuracy inside the supernet")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.spines["left"].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.42), ncols=2, handletextpad=0.2)
    return _svg(figure, name)


@mpl.rc_context(_STYLE)
def _steps(history: Sequence[Mapping[str, Any]], keys: Sequence[str], begin: int | None, name: str) -> str:
    labels = {"weight_loss": "weights", "alpha_loss": "architecture"}
    figure, axes = _figure(2.8, 1.75)
    if begin:
        axes.axvline(begin, color=_INK, alpha=0.5, linewidth=0.8, linestyle=(0, (4, 3)))
    for key, color in zip(keys, SERIES, strict=False):
        rows = [(row["step"], row[key]) for row in history if row.get(key) is not None]
        steps, values = np.array(rows, dtype=np.float64).reshape(-1, 2).T
        if len(keys) > 1 and len(values):
            axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.7)
            values = _smooth(values)
        axes.plot(steps, values, color=color, label=labels.get(key))
    if len(keys) > 1:
        axes.legend(loc="upper right", handlelength=1.2)
    axes.set_xlabel("Step")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    _grid(axes)
    return _svg(figure, name)


def _smooth(values: FloatArray) -> FloatArray:
    """Centred running mean over a twentieth of the values."""
    window = max(1, len(values) // 20)
    kernel = np.ones(window)
    mean: FloatArray = np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
    return mean


def _colors(count: int) -> list[str]:
    return [SERIES[i % len(SERIES)] for i in range(count)]


def _grid(axes: Axes) -> None:
    axes.grid(color=_INK, alpha=0.1, linewidth=0.6)
    axes.set_axisbelow(True)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of that size in inches with one set of axes."""
    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot()


def _svg(figure: Figure, name: str) -> str:
    """The figure as a part of a page: no prologue, size or clashing ids; colours and font are the page's."""
    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):  # ids of clip paths and markers, apart between charts
        figure.savefig(stream, format="svg", transparent=True)
    text = stream.getvalue()
    svg = text[text.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', rf'\1 role="img" aria-label="{name}"', svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r"font-family: [^;\"]+; ?", "", svg)
    svg = svg.replace(_INK, "currentColor")
    for index, color in enumerate(SERIES):
        svg = svg.replace(color, f"var(--series-{index + 1}, {color})")
    return svg
