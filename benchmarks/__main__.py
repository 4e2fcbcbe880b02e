"""All headline figures in one table: measured, aimed at, and what the repository had before.

    python -m benchmarks            # the table, of benchmarks/results/*.json
    python -m benchmarks --write    # the same table into docs/benchmarks.md, and slopes into docs/scaling.md

`make bench` measures everything on this machine first, which takes about two hours; each benchmark runs alone as well.
"""

import argparse
import json
import subprocess
from pathlib import Path

from benchmarks import scaling
from benchmarks.headlines import HEADLINES, Headline

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
SCALING = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->\n"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md; slopes into docs/scaling.md")
    options = parser.parse_args()
    found = table()
    if options.write:
        PAGE.write_text(with_table(PAGE.read_text(), found))
        SCALING.write_text(with_table(SCALING.read_text(), scaling.table(RESULTS)))
    print(found, end="")


def table() -> str:
    """Markdown: a row per headline."""
    lines = ["| benchmark | figure | measured | aimed at | before | machine, date |", "|---|---|---:|---:|---:|---|"]
    for headline in HEADLINES:
        now, before = (_read(headline, text) for text in (_here(headline.source), _committed(headline.source)))
        measured = "not measured" if now is None else f"{now[0]:.3g}" + ("" if headline.met(now[0]) else " **missed**")
        earlier = f"{before[0]:.3g}" if before and now and before != now else ""
        cells = (f"`{headline.source}`", headline.text, measured, headline.target, earlier, now[1] if now else "")
        lines.append(f"| {' | '.join(cells)} |")
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
    if tree.get("device") not in (None, "cpu"):
        kind = tree["device"]  # a GPU
    return float(headline.value(tree)), f"{kind}, {tree['date']}"


if __name__ == "__main__":
    main()
