import json
import os
import signal
import subprocess
import sys
import time

import pytest

from covidnet import folder

TINY = [
    "data.phantom.patients=60",
    "data.phantom.detail=[24, 48, 48]",
    "search.warmup_steps=4",
    "search.steps=4",
    "search.candidates=2",
    "search.random=2",
    "training.tmacs=0.002",
    "training.evaluations=1",
    "baselines=[densenet3d121]",
    "evaluate.bootstrap=100",
]
OVERRIDES = [word for override in TINY for word in ("-S", override)]
CONDITIONS = ["at_least.accuracy=0", "at_most.ece_after=1", "margin=-1", "false_alarms=1", "foreign_flagged=0"]
OPEN_GATE = [word for condition in CONDITIONS for word in ("-S", f"gate.{condition}")]
STAGES = ["dataset", "baseline/densenet3d121", "search/S", "retrain/S", "evaluate", "export"]
VERBS = [
    ["ingest"],
    ["baseline", "--model", "densenet3d121"],
    ["search", "--variant", "S"],
    ["retrain", "--variant", "S"],
    ["evaluate"],
    ["export"],
]


def run(repository, out, *arguments):
    command = [sys.executable, "-m", "pipelines", "run", "--out", str(out), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=repository, env=environment, check=False)


def test_a_failed_task_is_named_and_leaves_no_half_written_folder(repository, tmp_path):
    out = tmp_path / "out"
    result = run(repository, out, "-S", "data.source=nifti", "-S", f"data.root={tmp_path / 'nowhere'}")
    assert result.returncode == 1
    assert "no such folder" in result.stdout
    assert "Inner task failed: 'configure' inside" in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in out.iterdir()] == [".workspace"]
    assert list((out / ".workspace").iterdir()) == []


def killed_in_search(repository, out, *arguments):
    """Start a run and kill all of it as soon as it searches; the provenance of its dataset."""
    command = [sys.executable, "-m", "pipelines", "run", "--out", str(out), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=repository, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    while process.poll() is None and not list((out / ".workspace").glob("search-*")):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (dataset,) = (out / ".workspace").glob("ingest-????????????????")
    return folder.provenance(dataset)


@pytest.mark.slow
def test_a_local_run_leaves_what_the_command_line_leaves(repository, tmp_path):
    """Same stages, same bytes: the graph adds an order, an audit and a gate, and changes no result."""
    graph, plain = tmp_path / "graph", tmp_path / "plain"
    kept = killed_in_search(repository, graph, *OVERRIDES, *OPEN_GATE)
    result = run(repository, graph, *OVERRIDES, *OPEN_GATE)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    assert "Gate passed" in result.stdout
    assert folder.provenance(graph / "dataset") == kept  # of the run that was killed: nothing was read again
    assert not (graph / ".workspace").exists()
    assert not list(graph.glob(".run-*"))
    for verb in VERBS:
        command = [sys.executable, "-m", "covidnet", *verb, *OVERRIDES, "-S", f"results={plain}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=repository, env=environment, check=True, capture_output=True)
    for stage in STAGES:
        assert folder.is_complete(graph / stage), stage
        assert (graph / stage / "metrics.json").read_text() == (plain / stage / "metrics.json").read_text(), stage
        assert folder.provenance(graph / stage)["parameters"] == folder.provenance(plain / stage)["parameters"], stage
    assert (graph / "export/bundle/SHA256SUMS").read_text() == (plain / "export/bundle/SHA256SUMS").read_text()


@pytest.mark.slow
def test_a_gate_that_is_not_met_ends_the_run_well_without_a_bundle(repository, tmp_path):
    result = run(repository, tmp_path, *OVERRIDES, "-S", "gate.at_least.accuracy=1.01")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    assert "Gate not passed: no bundle is exported." in result.stdout
    assert "(at least 1.01)" in result.stdout
    assert "Run SUCCEEDED." in result.stdout  # of the last task, which passes on what the gate said
    assert result.stdout.count("Gate not passed: no bundle is exported.") == 3
    assert folder.is_complete(tmp_path / "evaluate")
    assert json.loads((tmp_path / "evaluate/results.json").read_text())["winner"]
    assert not (tmp_path / "export").exists()
