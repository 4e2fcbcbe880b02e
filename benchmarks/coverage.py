"""Which lines do the tests run? Of the library and the endpoint, stages and servers in processes of their own included.

make coverage                      # all tests, then this
python -m benchmarks.coverage      # from .coverage as it is
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.headlines import judge
from benchmarks.machine import facts


def by_package(files: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Statements, those that ran, and their share: of `covidnet` and `serving`, and of each folder in them.

    Args:
        files: path to ``{"summary": {"num_statements": ..., "covered_lines": ...}}``, as ``coverage json`` gives them.
    """
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, file in files.items():
        for folder in Path(name).parents:
            if str(folder) != ".":
                counts[str(folder)][0] += file["summary"]["num_statements"]
                counts[str(folder)][1] += file["summary"]["covered_lines"]
    return {
        name: {"statements": every, "run": run, "share": round(run / every, 4)}
        for name, (every, run) in sorted(counts.items())
        if every
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without", nargs="*", default=[], help="tests that were left out, to be told")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/coverage.json"))
    options = parser.parse_args()
    command = [sys.executable, "-m", "coverage", "json", "-q", "-o", "-"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    packages = by_package(json.loads(told[told.index("{") :])["files"])
    for name, found in packages.items():
        print(f"{name:<32} {found['run']:>6} of {found['statements']:>6} statements  {found['share']:.1%}")
    tree = {**facts(), "without": options.without, "packages": packages}
    judge("coverage", tree)
    options.out.write_text(json.dumps(tree, indent=2) + "\n")


if __name__ == "__main__":
    main()
