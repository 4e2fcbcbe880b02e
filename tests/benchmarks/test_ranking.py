"""A ranking in the small, whole and stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.ranking import summary

TINY = ["--seeds", "1", "--masked", "0", "--random", "3", "--patients", "45", "--difficulty", "0"]
SETTINGS = {
    "data.phantom.detail": "[24,48,48]",
    "data.size": "[16,32,32]",
    "search.size": "[16,32,32]",
    "search.batch": "8",
    "search.warmup_steps": "1",
    "search.steps": "1",
    "search.candidates": "1",
    "training.tmacs": "0.001",
}


def ranking(folder: Path, work: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = ["--work", work, "--out", "ranking.json", "--picture", "ranking.png"]
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.ranking", *paths, *arguments],
        cwd=folder, capture_output=True, text=True, check=False, timeout=500,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_a_stopped_ranking_is_completed_elsewhere_with_what_it_lacks(tmp_path):
    told = ranking(tmp_path, "here", *TINY, *(word for pair in SETTINGS.items() for word in ("-S", "=".join(pair))))
    assert told.returncode == 0, told.stderr
    whole = json.loads((tmp_path / "ranking.json").read_text())
    assert [row["kind"] for row in whole["rows"]] == ["found", "random", "random", "random"]
    stopped = {**whole, "rows": [row for row in whole["rows"] if row["seed"] != 1]}
    (tmp_path / "ranking.json").write_text(json.dumps(stopped))
    (tmp_path / "ranking.png").unlink()

    told = ranking(tmp_path, "there", "--seeds", "1", "--complete")
    assert told.returncode == 0, told.stderr
    completed = json.loads((tmp_path / "ranking.json").read_text())
    added = completed["rows"].pop(2)
    assert completed["rows"][1:] == stopped["rows"][1:]
    expected = whole["rows"][2]
    assert {key: added[key] for key in ("seed", "macs", "size_mib", "retrained")} == {
        key: expected[key] for key in ("seed", "macs", "size_mib", "retrained")
    }
    assert "shared" not in added  # that supernet is gone
    assert added["device"].startswith("cpu")
    assert completed["beaten"] == whole["beaten"]
    assert (tmp_path / "ranking.png").exists()

    refused = ranking(tmp_path, "there", "--complete", "-S", "search.budget.size_mib=3.5")
    assert refused.returncode != 0
    assert "is drawn otherwise now" in refused.stderr
    assert json.loads((tmp_path / "ranking.json").read_text())["rows"][2] == added


def test_those_without_a_supernet_count_for_what_is_beaten_and_not_for_tau():
    rows = [
        {"kind": "found", "shared": 0.9, "retrained": 0.92},
        {"kind": "random", "shared": 0.8, "retrained": 0.90},
        {"kind": "random", "shared": 0.7, "retrained": 0.85},
        {"kind": "random", "retrained": 0.95},
    ]
    found = summary(rows)
    assert rows[0]["beaten"] == pytest.approx(2 / 3)
    assert found["beaten"]["found"] == pytest.approx(2 / 3)
    assert found["kendall_tau"] == pytest.approx(1.0)
    assert found["mean_accuracy"]["random"] == pytest.approx(0.9)
