"""Two processes are one with the same batch: real `torchrun`, gloo, and the verb itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from covidnet.models.synchronised import synchronise

REPOSITORY = Path(__file__).parent.parent.parent
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
PARAMS = {
    "data": {"phantom": {"patients": 45, "detail": [24, 48, 48]}, "size": [16, 32, 32]},
    "search": {"size": [16, 32, 32], "batch": 8, "warmup_steps": 1, "steps": 1, "candidates": 1, "random": 2},
}


def python(*arguments, cwd):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """The same search and the same training, in one process and in two."""
    folder = tmp_path_factory.mktemp("outcomes")
    script = Path(__file__).with_name("data_parallel.py")
    for name, launcher in (("one", []), ("two", TORCHRUN)):
        result = python(*launcher, script, folder / name, cwd=folder)
        assert result.returncode == 0, result.stderr
    return torch.load(folder / "one"), torch.load(folder / "two")


@pytest.mark.parametrize("what", ["search", "evolution", "training"])
def test_two_processes_end_where_one_does(outcomes, what):
    """Twelve search steps with both updates, twenty training steps with dropout, all augmentation on."""
    one, two = (outcome[what] for outcome in outcomes)
    assert one.keys() == two.keys()
    for name, expected in one.items():
        torch.testing.assert_close(
            two[name], expected, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.slow
def test_the_search_verb_runs_under_torchrun_and_speaks_once(tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    assert python("-m", "covidnet", "ingest", cwd=tmp_path).returncode == 0
    result = python(*TORCHRUN, "-m", "covidnet", "search", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["metrics"] == json.loads((tmp_path / "results/search/S/metrics.json").read_text())
    refused = python(*TORCHRUN, "-m", "covidnet", "search", "-S", "search.batch=7", "--out", "odd", cwd=tmp_path)
    assert refused.returncode != 0
    assert "search.batch is 7, which 2 processes can't share evenly" in refused.stderr
    refused = python(*TORCHRUN, "-m", "covidnet", "search", "-S", "search.alpha_batch=3", "--out", "odd", cwd=tmp_path)
    assert "search.alpha_batch is 3, which 2 processes can't share evenly" in refused.stderr
    assert not (tmp_path / "odd").exists()


def test_in_one_process_synchronised_layers_are_the_plain_ones():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4))
    x = torch.randn(2, 1, 6, 6, 6)
    expected = plain(x)
    names = set(plain.state_dict())
    synchronise(plain)
    assert torch.equal(plain(x), expected)
    assert set(plain.state_dict()) == names
