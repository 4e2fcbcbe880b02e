"""What the Kubeflow graph adds to the stages: `python -m pipelines run` beside `dvc repro`, in one clone, from nothing.

    python -m benchmarks.pipeline           # the demo twice: half an hour on two cores
    python -m benchmarks.pipeline --tiny    # a few minutes; start-up dominates, so the ratio says little

The graph runs every task in a process of its own, audits the dataset, and decides at the gate. Both must end with the same
figures and the same bundle, byte for byte. The target is 10 % more time at most, and 5 s for `compile`. Seconds of CPU stand
beside those of the clock: other work on the machine disturbs them less.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.machine import facts

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "pipeline.json"
MOST_ADDED, MOST_COMPILE_S = 0.10, 5.0
TINY: dict[str, Any] = {
    "data.phantom.patients": 60,
    "data.phantom.detail": [24, 48, 48],
    "search.warmup_steps": 4,
    "search.steps": 4,
    "search.candidates": 2,
    "search.random": 2,
    "training.tmacs": 0.002,
    "training.evaluations": 1,
    "baselines": ["densenet3d121"],
    "evaluate.bootstrap": 100,
}
OPEN_GATE: dict[str, Any] = {  # so that both export, whatever a short training gives
    "gate.at_least": {"accuracy": 0.0},
    "gate.at_most": {"ece_after": 1.0},
    "gate.margin": -1.0,
    "gate.false_alarms": 1.0,
    "gate.foreign_flagged": 0.0,
}


def main() -> None:
    """Print the table and write it as JSON; exit 1 where results differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="60 phantoms and a few steps")
    parser.add_argument("--out", type=Path, help=f"default: {RESULTS.name} beside the others; with --tiny nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="covidnet-") as folder:
        row = measure(Path(folder) / "clone", {**OPEN_GATE, **(TINY if options.tiny else {})})
    print(f"{'':<24}{'dvc repro':>12}{'graph':>12}")
    for stage, (one, other) in row["stages_s"].items():
        print(f"{stage:<24}{one:>10.1f} s{other:>10.1f} s")
    limit = f" (at most {MOST_ADDED:.0%})"
    for name, kind, said in (("all", "", limit), ("all, CPU", "cpu_", "")):
        one, other = row[f"dvc_{kind}s"], row[f"graph_{kind}s"]
        print(f"{name:<24}{one:>10.1f} s{other:>10.1f} s   {other / one - 1:+.1%}{said}")
    spent = f"{row['compile_s']:.1f} s, {row['compile_cpu_s']:.1f} s of CPU"
    print(f"compile {spent} (at most {MOST_COMPILE_S:g} s); same results: {row['same']}")
    if out := options.out or (None if options.tiny else RESULTS):
        out.write_text(json.dumps({**facts(), "tiny": options.tiny, **row}, indent=2) + "\n")
        print(f"Results: {out}")
    sys.exit(0 if row["same"] else 1)


def measure(clone: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Both ways in a clone of what is committed here.

    Args:
        clone: made.
        changes: of `params.yaml`, by dotted key.
    """
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], check=True)
    params = yaml.safe_load((clone / "params.yaml").read_text())
    for key, value in changes.items():
        *above, name = key.split(".")
        tree = params
        for part in above:
            tree = tree.setdefault(part, {})
        tree[name] = value
    (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    compile_s, compile_cpu_s = _timed(clone, "pipelines", "compile", "--out", "graph.yaml")
    dvc_s, dvc_cpu_s = _timed(clone, "dvc", "repro")
    graph_s, graph_cpu_s = _timed(clone, "pipelines", "run", "--out", "graph")
    stages = {
        str(path.parent.relative_to(clone / "results")): (_seconds(path), _seconds(clone / "graph" / name / path.name))
        for path in sorted((clone / "results").rglob("provenance.json"))
        for name in [path.parent.relative_to(clone / "results")]
    }
    compared = ["evaluate/metrics.json", "export/bundle/SHA256SUMS"]
    same = all((clone / "results" / name).read_bytes() == (clone / "graph" / name).read_bytes() for name in compared)
    return {
        "compile_s": compile_s,
        "compile_cpu_s": compile_cpu_s,
        "dvc_s": dvc_s,
        "dvc_cpu_s": dvc_cpu_s,
        "graph_s": graph_s,
        "graph_cpu_s": graph_cpu_s,
        "added": graph_s / dvc_s - 1,
        "same": same,
        "stages_s": stages,
    }


def _timed(clone: Path, module: str, *arguments: str) -> tuple[float, float]:
    """Seconds of ``python -m module`` with the clone's code, and of CPU; its output is shown only when it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(clone), "PATH": path}
    started, before = time.perf_counter(), _children_cpu_s()
    ended = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        sys.exit(
            f"{module} {' '.join(arguments)} ended with {ended.returncode}\n{ended.stdout[-3000:]}{ended.stderr[-3000:]}"
        )
    return time.perf_counter() - started, _children_cpu_s() - before


def _children_cpu_s() -> float:
    """Seconds of CPU of all ended processes below this one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _seconds(provenance: Path) -> float:
    return float(json.loads(provenance.read_text())["seconds"])


if __name__ == "__main__":
    main()
