"""A task killed in `search`: the run says so, and the next run goes on from the last checkpoint."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

TOTAL = 40  # steps of the search
OVERRIDES = [
    "data.phantom.patients=45",
    "data.phantom.detail=[16, 32, 32]",
    "data.size=[16, 32, 32]",
    "search.size=[16, 32, 32]",
    "search.warmup_steps=10",
    f"search.steps={TOTAL - 10}",
    "search.candidates=2",
    "search.random=2",
    "training.tmacs=0.0005",
    "training.evaluations=1",
    "baselines=[densenet3d121]",
]
EVERY_STEP = ("every_s: float = 30.0", "every_s: float = 0.0")


@pytest.fixture
def code(repository, tmp_path):
    """A copy of the code that saves after every step: half a minute is a long time for a test."""
    copy = tmp_path / "code"
    for name in ("covidnet", "components", "pipelines"):
        shutil.copytree(repository / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(repository / name, copy)
    file = copy / "covidnet/training/checkpoint.py"
    assert EVERY_STEP[0] in file.read_text()
    file.write_text(file.read_text().replace(*EVERY_STEP))
    return copy


def start(code, out):
    command = [sys.executable, "-m", "pipelines", "run", "--out", str(out)]
    command += [word for override in OVERRIDES for word in ("-S", override)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(code)}
    return subprocess.Popen(
        command, cwd=code, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def tasks_of(process):
    """Processes of the run's task, by their command line."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (
                os.getpgid(int(folder.name)) == process.pid
                and "kfp.dsl.executor_main" in (folder / "cmdline").read_text()
            ):
                yield int(folder.name)
        except (OSError, ProcessLookupError):
            continue


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="the task is found in /proc, which only Linux has")
def test_a_killed_search_loses_no_step_that_was_saved(code, tmp_path):
    out = tmp_path / "out"
    process = start(code, out)
    saved = 0
    while process.poll() is None and saved < 10:
        time.sleep(0.02)
        for file in (out / ".workspace").glob("search-*.partial/checkpoint.pt"):
            saved = torch.load(file, weights_only=True)["step"]
    for task in tasks_of(process):
        os.kill(task, signal.SIGKILL)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert re.search(r"Inner task failed: 'search'", told)
    (file,) = (out / ".workspace").glob("search-*.partial/checkpoint.pt")
    saved = torch.load(file, weights_only=True)["step"]
    assert 10 <= saved < TOTAL

    process = start(code, out)
    while process.poll() is None and not list((out / ".workspace").glob("search-*[0-9a-f]/search.json")):
        time.sleep(0.05)
    (file,) = (out / ".workspace").glob("search-*[0-9a-f]/search.json")
    os.killpg(process.pid, signal.SIGKILL)  # what comes after the search is other tests' matter
    told, _ = process.communicate()
    went_on = re.findall(rf"search covidnet3d-s: (\d+)/{TOTAL}$", told, re.MULTILINE)
    assert went_on == [str(saved)]
    assert [row["step"] for row in json.loads(file.read_text())["history"]] == list(range(TOTAL))
