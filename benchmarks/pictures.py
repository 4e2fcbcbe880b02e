"""The dashboards' rows drawn from what Prometheus answers to their queries, for docs and for those without Grafana.

    python -m benchmarks.pictures http://127.0.0.1:9090 covidnet docs/images      # of a Prometheus that runs

Grafana draws the same queries better; this shows what they give. Panels without data are left out.
"""

import json
import math
import re
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from serving.monitoring import local
from serving.monitoring.dashboards import DASHBOARDS, JOB, WINDOW, Panel

COLUMNS = 3
MINUTES = 2.0  # that a curve shows
MOST_LINES = 10
INK, FAINT, BAD = "#1f2933", "#9aa5b1", "#c2410c"
UNITS: dict[str, Callable[[float], str]] = {
    "percentunit": lambda value: f"{100 * value:.3g} %",
    "s": lambda value: f"{value:g} s" if value >= 1 or not value else f"{1000 * value:g} ms",
    "bytes": lambda value: f"{value / 1e6:.0f} MB",
    "reqps": lambda value: f"{value:g}/s",
    "lengthm": lambda value: f"{1000 * value:g} mm",
    "litre": lambda value: f"{value:g} l",
    "none": lambda value: f"{value:g}",
}


class Line(NamedTuple):
    """One series.

    Args:
        name: by the panel's legend.
        seconds: before the end, ``(n,)``, ascending to 0.
        values: ``(n,)``.
    """

    name: str
    seconds: np.ndarray
    values: np.ndarray


def dashboards(prometheus: str, job: str, folder: Path) -> list[Path]:
    """Write ``dashboard_<name>_<row>.png`` for each row of each dashboard.

    Args:
        prometheus: its address.
        job: that fills the dashboards' variable.
        folder: for the pictures.

    Returns:
        the files.
    """
    now = time.time()
    written = []
    for name, rows in DASHBOARDS.items():
        for title, panels in rows.items():
            answered = [(panel, found) for panel in panels if (found := _answers(prometheus, panel, job, now))]
            path = folder / f"dashboard_{name}_{title.lower()}.png"
            _draw(f"{name}: {title.lower()}", answered, path)
            written.append(path)
    return written


def page(url: str, path: Path) -> None:
    """Write a picture of a page as Chromium draws it."""
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        options += [f"--user-data-dir={profile}", "--window-size=1280,1110", f"--screenshot={path.resolve()}"]
        subprocess.run(["chromium", *options, url], check=True, capture_output=True, timeout=60)


def _draw(title: str, answered: list[tuple[Panel, list[Line]]], path: Path) -> None:
    height = -(-len(answered) // COLUMNS)
    inches = 0.5 + (1.0 if all(panel.kind == "stat" for panel, _ in answered) else 2.5) * height
    figure, axes = plt.subplots(height, COLUMNS, figsize=(12, inches), layout="constrained", squeeze=False, dpi=90)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", color=INK)
    for axis in axes.flat[len(answered) :]:
        axis.set_axis_off()
    for axis, (panel, lines) in zip(axes.flat, answered, strict=False):
        axis.set_title(panel.title, fontsize=9, loc="left", color=INK)
        axis.tick_params(labelsize=7, colors=INK)
        axis.spines[["top", "right"]].set_visible(False)
        _KINDS[panel.kind](axis, panel, lines)
    figure.savefig(path)
    plt.close(figure)


def _timeseries(axis: Axes, panel: Panel, lines: list[Line]) -> None:
    told = [line for line in lines if line.values.any()][:MOST_LINES] or lines[:2]
    for line in told:
        axis.plot(line.seconds, line.values, label=line.name, linewidth=1.3)
    if panel.limit is not None:
        axis.axhline(panel.limit, color=BAD, linewidth=0.9, linestyle="--")
    top = max(float(np.nanmax(line.values)) for line in told)
    axis.set_ylim(min(0.0, *(float(np.nanmin(line.values)) for line in told)), 1.1 * max(top, panel.limit or 0.0) or 1)
    axis.yaxis.set_major_formatter(_formatter(panel))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} s"))
    axis.legend(fontsize=6, frameon=False, ncols=2, loc="best")


def _stat(axis: Axes, panel: Panel, lines: list[Line]) -> None:
    axis.set_axis_off()
    value = float(lines[0].values[-1])
    bad = panel.limit is not None and value < panel.limit
    text = "\n".join(line.name for line in lines) if panel.limit is None else UNITS[panel.unit](round(value, 4))
    size, color = (12, INK) if panel.limit is None else (26, BAD if bad else "#15803d")
    axis.text(0.02, 0.5, text, fontsize=size, color=color, va="center", transform=axis.transAxes)


def _bars(axis: Axes, panel: Panel, lines: list[Line]) -> None:
    names, values = [line.name for line in lines], [float(line.values[-1]) for line in lines]
    axis.barh(names, values, color="#3b82f6", height=0.7)
    axis.invert_yaxis()
    if panel.limit is not None:
        axis.axvline(panel.limit, color=BAD, linewidth=0.9, linestyle="--")
    axis.xaxis.set_major_formatter(_formatter(panel))


def _heatmap(axis: Axes, panel: Panel, lines: list[Line]) -> None:
    """Counts between neighbouring bounds, as Prometheus' buckets hold all that is below."""
    ordered = sorted(lines, key=lambda line: float(line.name))
    below = np.stack([line.values for line in ordered])  # (bounds, times)
    counts = np.diff(below, axis=0, prepend=0.0)
    axis.pcolormesh(ordered[0].seconds, np.arange(len(ordered)), counts, cmap="Oranges", shading="nearest")
    bounds = [UNITS[panel.unit](float(line.name)) if line.name != "+Inf" else "more" for line in ordered]
    axis.set_yticks(range(len(bounds)), bounds)
    axis.tick_params(axis="y", labelsize=6)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} s"))


_KINDS: dict[str, Callable[[Axes, Panel, list[Line]], None]] = {
    "timeseries": _timeseries,
    "stat": _stat,
    "bars": _bars,
    "heatmap": _heatmap,
}


def _formatter(panel: Panel) -> FuncFormatter:
    return FuncFormatter(lambda value, _: UNITS[panel.unit](value))


def _answers(prometheus: str, panel: Panel, job: str, now: float) -> list[Line]:
    lines = []
    for legend, query in panel.queries.items():
        asked = query.replace(JOB, f'job="{job}"').replace(WINDOW, "10s").replace("[1h]", "[60s]")
        for row in _ask(prometheus, asked, now):
            name = re.sub(r"{{(\w+)}}", lambda match, row=row: row["metric"].get(match[1], ""), legend)
            times, values = zip(*((float(at), float(value)) for at, value in row["values"]), strict=True)
            if not all(math.isnan(value) for value in values):
                lines.append(Line(name.strip(), np.array(times) - now, np.array(values)))
    return sorted(lines, key=lambda line: -float(np.nanmax(line.values))) if panel.kind == "timeseries" else lines


def _ask(prometheus: str, query: str, now: float) -> list[dict[str, Any]]:
    window = {"query": query, "start": now - 60 * MINUTES, "end": now, "step": 1}
    reply = json.loads(local.get(f"{prometheus}/api/v1/query_range?{urllib.parse.urlencode(window)}") or b"{}")
    found: list[dict[str, Any]] = reply.get("data", {}).get("result", [])
    return found


if __name__ == "__main__":
    url, of, to = sys.argv[1:]
    for file in dashboards(url, of, Path(to)):
        print(file)
