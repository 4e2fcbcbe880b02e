"""All headline figures in one table: measured, aimed at, and what the repository had before.

    python -m benchmarks            # the table, of benchmarks/results/*.json
    python -m benchmarks --write    # the same table into docs/benchmarks.md

`make bench` measures everything on this machine first, which takes about two hours; each benchmark runs alone as well.
"""

import argparse
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->\n"
Tree = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Headline:
    """One row.

    Args:
        source: benchmark and name of its result's file.
        text: what is measured, against what.
        value: the figure, from the result.
        target: what is aimed at.
        least: True where the figure is to be at least the target, False where at most.
    """

    source: str
    text: str
    value: Callable[[Tree], float]
    target: float
    least: bool = False

    def met(self, value: float) -> bool:
        """Does a figure reach the target?"""
        return value >= self.target if self.least else value <= self.target


def _engines(of: Callable[[list[float]], float], value: Callable[[Tree], float], network: str = "SL") -> Any:
    return lambda tree: of([value(row) for row in tree["rows"] if row["network"] in network])


HEADLINES = (
    Headline(
        "engines",
        "default engine / best engine, one scan, worst case",
        _engines(max, lambda r: r["default_to_best"]),
        1.1,
    ),
    Headline(
        "engines",
        "plain ONNX Runtime / default, S, worst case",
        _engines(min, lambda r: r["ratios"]["ONNX Runtime"], "S"),
        7,
        True,
    ),
    Headline(
        "engines",
        "torch eager / default, S, worst case",
        _engines(min, lambda r: r["ratios"]["torch eager"], "S"),
        2,
        True,
    ),
    Headline("predict", "cold process to the first answer, s", lambda t: t["cold"]["median_s"], 2),
    Headline(
        "predict",
        "100 NIfTI files: share of the slower of decoding and network",
        lambda t: t["many"]["of_the_bound"],
        0.9,
        True,
    ),
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    options = parser.parse_args()
    found = table()
    if options.write:
        PAGE.write_text(with_table(PAGE.read_text(), found))
    print(found, end="")


def table() -> str:
    """Markdown: a row per headline."""
    lines = ["| benchmark | figure | measured | aimed at | before | machine, date |", "|---|---|---:|---:|---:|---|"]
    for headline in HEADLINES:
        now, before = (_read(headline, text) for text in (_here(headline.source), _committed(headline.source)))
        sign = "≥" if headline.least else "≤"
        measured = "not measured" if now is None else f"{now[0]:.3g}" + ("" if headline.met(now[0]) else " **missed**")
        earlier = f"{before[0]:.3g}" if before and now and before != now else ""
        cells = (f"`{headline.source}`", headline.text, measured, f"{sign} {headline.target:g}", earlier)
        lines.append(f"| {' | '.join(cells)} | {now[1] if now else ''} |")
    return "\n".join(lines) + "\n"


def with_table(page: str, found: str) -> str:
    """The page with its table replaced."""
    head, _, rest = page.partition(BEGIN)
    return head + BEGIN + found + END + rest.partition(END)[2]


def _here(source: str) -> str | None:
    path = RESULTS / f"{source}.json"
    return path.read_text() if path.is_file() else None


def _committed(source: str) -> str | None:
    """The result in the last commit; None where there is none, or no git."""
    name = f"HEAD:{(RESULTS / f'{source}.json').relative_to(ROOT)}"
    try:
        shown = subprocess.run(["git", "show", name], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return shown.stdout if shown.returncode == 0 else None


def _read(headline: Headline, text: str | None) -> tuple[float, str] | None:
    """The figure, and what it was measured on; None where it wasn't measured."""
    if text is None:
        return None
    tree = json.loads(text)
    machine = tree["machine"]
    kind = f"{machine['cores']} cores of {machine['processor']}" if isinstance(machine, dict) else machine
    return float(headline.value(tree)), f"{kind}, {tree['date']}"


if __name__ == "__main__":
    main()
