"""Many scans into a file: resumed, shared between runs, as lines or as a table."""

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import toy_bundle

from covidnet.errors import UsageError
from covidnet.export.bundle import Bundle
from covidnet.inference.many import classify


class Answering:
    """Stands for the network: answers by file name, and can be interrupted."""

    def __init__(self, stop_after: int | None = None, broken: tuple[str, ...] = ()) -> None:
        self.asked: list[tuple[int, str]] = []
        self.stop_after, self.broken = stop_after, broken

    def __call__(self, paths: Sequence[Path], ordinals: Sequence[int]) -> Iterator[dict]:
        for path, ordinal in zip(paths, ordinals, strict=True):
            if len(self.asked) == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append((ordinal, path.name))
            if path.name in self.broken:
                yield {"scan": ordinal, "error": "damaged"}
            else:
                yield {
                    "scan": ordinal,
                    "label": "NCP",
                    "probabilities": {"NCP": 0.75, "CP": 0.25},
                    "flags": ["a", "b"],
                    "seconds": {"decode": 0.5},
                    "bundle": "v1",
                }


PATHS = [Path(f"{i}.nii") for i in range(5)]
SCANS = list(enumerate(PATHS, start=1))


def numbers(path: Path) -> list[int]:
    return [json.loads(line)["scan"] for line in path.read_text().splitlines()]


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        classify(SCANS, out, "v1", Answering(stop_after=2))
    assert numbers(out) == [1, 2]
    with out.open("a") as stream:
        stream.write('{"scan": 3, "lab')  # killed while writing
    second = Answering()
    assert classify(SCANS, out, "v1", second) == {"scans": 5, "resumed": 2, "failed": 0}
    assert second.asked == [(3, "2.nii"), (4, "3.nii"), (5, "4.nii")]
    assert numbers(out) == [1, 2, 3, 4, 5]
    third = Answering()
    assert classify(SCANS, out, "v1", third)["resumed"] == 5
    assert third.asked == []


def test_failures_are_tried_again(tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    assert classify(SCANS, out, "v1", Answering(broken=("1.nii",)))["failed"] == 1
    again = Answering()
    assert classify(SCANS, out, "v1", again) == {"scans": 5, "resumed": 4, "failed": 0}
    assert again.asked == [(2, "1.nii")]
    assert sorted(numbers(out)) == [1, 2, 3, 4, 5]


def test_no_answer_is_written_again_before_all_are_there(tmp_path: Path) -> None:
    """Else a kill, or a full disk, while it is would lose answers."""
    out = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        classify(SCANS, out, "v1", Answering(stop_after=4, broken=("1.nii",)))
    kept = out.read_text()
    with pytest.raises(KeyboardInterrupt):
        classify(SCANS, out, "v1", Answering(stop_after=1))
    assert out.read_text().startswith(kept)
    classify(SCANS, out, "v1", Answering())
    assert sorted(numbers(out)) == [1, 2, 3, 4, 5]


def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("notes\n")
    with pytest.raises(UsageError, match="no answers"):
        classify(SCANS, tmp_path / "a.jsonl", "v1", Answering())
    assert (tmp_path / "a.jsonl").read_text() == "notes\n"


def test_tables_have_a_row_per_scan_and_a_column_per_figure(tmp_path: Path) -> None:
    classify(SCANS, tmp_path / "a.csv", "v1", Answering(broken=("4.nii",)))
    classify(SCANS, tmp_path / "b.parquet", "v1", Answering(broken=("4.nii",)))
    with (tmp_path / "a.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0].pop("id")
    assert rows[0] == {
        "scan": "1", "label": "NCP", "probability_NCP": "0.75", "probability_CP": "0.25", "flags": "a; b",
        "decode_s": "0.5", "bundle": "v1", "error": "",
    }  # fmt: skip
    assert [row["error"] for row in rows] == ["", "", "", "", "damaged"]
    table = pyarrow.parquet.read_table(tmp_path / "b.parquet").to_pylist()
    assert [row["scan"] for row in table] == [1, 2, 3, 4, 5]
    assert not {path.name for path in PATHS} & {str(value) for row in table for value in row.values()}
    assert table[0]["probability_NCP"] == 0.75
    assert table[4]["label"] is None


def test_answers_of_two_bundles_are_not_mixed(tmp_path: Path) -> None:
    classify(SCANS, tmp_path / "a.jsonl", "v1", Answering())
    before = (tmp_path / "a.jsonl").read_text()
    with pytest.raises(UsageError, match="has answers of bundle v1, this one is v2"):
        classify(SCANS, tmp_path / "a.jsonl", "v2", Answering())
    with pytest.raises(UsageError, match="has answers of bundle v1, this one is v1 in int8"):
        classify(SCANS, tmp_path / "a.jsonl", "v1", Answering(), "int8")
    assert (tmp_path / "a.jsonl").read_text() == before


def test_two_runs_do_not_write_to_one_file(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another run is writing to it"):
            classify(SCANS, tmp_path / "a.csv", "v1", Answering())
    with pytest.raises(UsageError, match=r"ends in \.jsonl, \.csv or \.parquet"):
        classify(SCANS, tmp_path / "a.txt", "v1", Answering())


@pytest.fixture
def volumes(tmp_path: Path) -> list[Path]:
    """Prepared volumes."""
    random = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.npy" for i in range(7)]
    for path in paths:
        np.save(path, random.integers(0, 256, toy_bundle.SIZE, dtype=np.uint8))
    return paths


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "covidnet", "predict", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


def test_shards_share_the_list_without_gap_or_overlap(toy: Bundle, volumes: list[Path], tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in volumes))
    options = ["--list", tmp_path / "list.txt", "--bundle", toy.path]
    runs = [start(*options, "--shard", f"{i}/2", "--out", tmp_path / f"{i}.jsonl") for i in (1, 2)]
    assert [(run.communicate()[1], run.returncode)[1] for run in runs] == [0, 0]
    assert numbers(tmp_path / "1.jsonl") == [1, 3, 5, 7]
    assert numbers(tmp_path / "2.jsonl") == [2, 4, 6]


SLOW_READER = """
import sys, time
from covidnet import cli
from covidnet.inference import predict
read = predict._read_prepared
def slow(path, spec):
    time.sleep(2 if path.name == "2.npy" else 0)
    return read(path, spec)
predict._read_prepared = slow
cli.main()
"""


def test_ctrl_c_keeps_what_is_done_and_says_so(toy: Bundle, volumes: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    command = [sys.executable, "-c", SLOW_READER, "predict", *volumes, "--bundle", toy.path, "--out", out]
    run = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not out.exists() or len(numbers(out)) < 2:
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    assert f"covidnet: interrupted; {out} has 2 of 7, the same command goes on" in errors
    assert "Traceback" not in errors
    assert numbers(out) == [1, 2]
