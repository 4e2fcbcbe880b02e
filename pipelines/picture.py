"""The compiled graph as a picture: tasks from top to bottom, loops and conditions as frames around theirs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import yaml

_WIDTH, _HEIGHT = 112, 32  # of a task
_GAP_X, _GAP_Y = 20, 30
_PAD, _HEAD = 14, 26  # of a frame
_CHAR = 6.6  # pixels of a letter of a title
Spec = Mapping[str, Any]


@dataclass(slots=True)
class Box:
    """A task, or a frame around some: size, and place within the frame around it."""

    title: str
    hint: str = ""
    width: float = _WIDTH
    height: float = _HEIGHT
    x: float = 0
    y: float = 0
    inside: dict[str, "Box"] = field(default_factory=dict)
    arrows: list[tuple[str, str]] = field(default_factory=list)


def draw(compiled: Path, stages: set[str]) -> str:
    """SVG of a compiled pipeline.

    Args:
        compiled: YAML that `python -m pipelines compile` wrote.
        stages: tasks to fill with colour: those that `dvc.yaml` has, too.
    """
    spec = next(iter(yaml.safe_load_all(compiled.read_text())))
    whole = _frame("", spec["root"]["dag"], spec)
    width, height = whole.width, whole.height + 26
    legend = (
        f'<rect x="{_PAD}" y="{height - 26}" width="12" height="12" rx="3" fill="#a6cee3" stroke="#3f8fc4"/>'
        f'<text x="{_PAD + 18}" y="{height - 16}" font-size="11">also a stage of dvc.yaml, and the same code</text>'
    )
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" xmlns="http://www.w3.org/2000/svg" role="img" '
        f'aria-label="{len(_tasks(whole))} tasks: {escape(", ".join(_tasks(whole)))}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#10212e">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#5b6b78"/></marker></defs>'
        f'<rect width="{width:g}" height="{height:g}" rx="8" fill="#fff"/>'
        f"{_contents(whole, 0, 0, stages)}{legend}</svg>\n"
    )


def waits(dag: Spec) -> dict[str, set[str]]:
    """Task to the tasks of its group that it waits for directly: what follows from the others is left out."""
    direct = {name: set(task.get("dependentTasks", [])) for name, task in dag["tasks"].items()}

    def before(name: str) -> set[str]:
        return direct[name].union(*(before(other) for other in direct[name]))

    return {
        name: {one for one in others if not any(one in before(other) for other in others - {one})}
        for name, others in direct.items()
    }


def _frame(title: str, dag: Spec, spec: Spec, hint: str = "") -> Box:
    """Lay a group out: each task one row below the last that it waits for."""
    order = waits(dag)

    def row(name: str) -> int:
        return 1 + max((row(other) for other in order[name]), default=-1)

    boxes = {name: _box(task, spec) for name, task in sorted(dag["tasks"].items())}
    rows: dict[int, list[Box]] = {}
    for name, box in boxes.items():
        rows.setdefault(row(name), []).append(box)
    widths = {i: sum(box.width for box in row) + _GAP_X * (len(row) - 1) for i, row in rows.items()}
    inner = max(*widths.values(), _CHAR * len(title))
    y = float(_PAD + (_HEAD - _PAD if title else 0))
    for i in sorted(rows):
        x = _PAD + (inner - widths[i]) / 2
        for box in rows[i]:
            box.x, box.y = x, y
            x += box.width + _GAP_X
        y += max(box.height for box in rows[i]) + _GAP_Y
    arrows = [(other, name) for name, others in order.items() for other in sorted(others)]
    return Box(title, hint, inner + 2 * _PAD, y - _GAP_Y + _PAD, inside=boxes, arrows=arrows)


def _box(task: Spec, spec: Spec) -> Box:
    name, inner = task["taskInfo"]["name"], spec["components"][task["componentRef"]["name"]].get("dag")
    if inner is None:
        return Box(name)
    if "parameterIterator" in task:
        return _frame(f"for each of {name}", inner, spec)
    condition = task.get("triggerPolicy", {}).get("condition")
    return _frame(f"if {name}" if condition else name, inner, spec, condition or "")


def _contents(frame: Box, left: float, top: float, stages: set[str]) -> str:
    lines = "".join(_arrow(frame.inside[one], frame.inside[other], left, top) for one, other in frame.arrows)
    return lines + "".join(_drawn(box, left + box.x, top + box.y, stages) for box in frame.inside.values())


def _drawn(box: Box, x: float, y: float, stages: set[str]) -> str:
    shape = f'<rect x="{x:g}" y="{y:g}" width="{box.width:g}" height="{box.height:g}" '
    if not box.inside:
        colour = 'fill="#a6cee3" stroke="#3f8fc4"' if box.title in stages else 'fill="#fff" stroke="#5b6b78"'
        text = f'<text x="{x + box.width / 2:g}" y="{y + box.height / 2 + 4:g}" text-anchor="middle">{box.title}</text>'
        return f'{shape}rx="6" {colour}/>{text}'
    hint = f"<title>{escape(box.hint)}</title>" if box.hint else ""
    frame = f'{shape}rx="10" fill="#5b6b78" fill-opacity=".06" stroke="#5b6b78" stroke-opacity=".5" stroke-dasharray="4 3"/>'
    title = f'<text x="{x + _PAD:g}" y="{y + 17:g}" font-size="11" fill="#44525d">{box.title}</text>'
    return f"<g>{hint}{frame}{title}</g>{_contents(box, x, y, stages)}"


def _arrow(one: Box, other: Box, left: float, top: float) -> str:
    """From the bottom of a box to the top of a later one."""
    x1, y1 = left + one.x + one.width / 2, top + one.y + one.height
    x2, y2 = left + other.x + other.width / 2, top + other.y
    bend = _GAP_Y / 2
    path = f"M{x1:g} {y1:g}C{x1:g} {y2 - bend / 2:g} {x2:g} {y2 - bend:g} {x2:g} {y2:g}"
    return f'<path d="{path}" fill="none" stroke="#5b6b78" marker-end="url(#tip)"/>'


def _tasks(box: Box) -> list[str]:
    """Titles of all tasks, in reading order."""
    ordered = sorted(box.inside.values(), key=lambda inner: (inner.y, inner.x))
    return [title for inner in ordered for title in (_tasks(inner) if inner.inside else [inner.title])]
