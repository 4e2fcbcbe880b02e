"""The bench verb: every engine in its own process, a table, a picture, and a record that `auto` goes by."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from covidnet.export.bundle import Bundle
from covidnet.inference import engine, selection


def covidnet(*arguments: object, cache: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "covidnet", "bench", *map(str, arguments)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_bench_measures_draws_and_records(toy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--bundle", toy.path, "--batches", "1,2", "--threads", "1", "--seconds", 0, "--out", tmp_path, "--json"]
    done = covidnet(*options, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert json.loads((tmp_path / "bench.json").read_text()) == found
    rows = {(row["engine"], row["batch"]): row for row in found["rows"]}
    assert set(rows) == {(name, batch) for name in ("openvino", "onnxruntime") for batch in (1, 2)}
    for row in rows.values():
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["peak_mib"] > 20
        assert row["scans_per_s"] > 0
    assert list(found["phases"]) == ["decode", "preprocess", "inference"]
    assert {"processor", "cores", "openvino"} <= set(found["machine"])
    with Image.open(tmp_path / "bench.png") as image:
        assert image.width > 1000
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recorded = selection.recorded(toy, "cpu", "float32", 1)
    assert recorded == {name: rows[name, 1]["p50_ms"] for name in ("openvino", "onnxruntime")}
    assert engine.load(toy, threads=1).name == f"{min(recorded, key=recorded.__getitem__)} (cpu)"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [(["--batches", "one"], 2, "expected numbers separated by commas"), (["--bundle", "nowhere"], 1, "nowhere")],
)
def test_wrong_use_of_bench_is_named(toy: Bundle, tmp_path: Path, options: list[str], code: int, message: str) -> None:
    done = covidnet("--bundle", toy.path, *options, cache=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
