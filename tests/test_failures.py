"""What a machine may do to a run, done to the real command line: no finished result is lost, the same command goes on.

`docs/failure-drills.md` shows the same drills by hand.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from covidnet import folder
from covidnet.data.sources import read_scan
from covidnet.errors import CovidnetError, fault_of_machine

ROOT = Path(__file__).parents[1]
PHANTOMS = {"patients": 30, "detail": [16, 48, 48]}
PARAMS = {"data": {"phantom": PHANTOMS, "size": [16, 32, 32], "workers": 1}}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a small configuration."""
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    return tmp_path


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "covidnet", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def ended(run: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what it said, which is never a traceback."""
    errors = run.communicate(timeout=300)[1]
    assert "Traceback" not in errors
    return run.returncode, errors


Disk = Callable[[str], Path]


def test_ingest_stops_on_a_full_disk_and_goes_on_once_there_is_room(project: Path, disk: Disk) -> None:
    results = disk("size=400k")
    code, said = ended(start("ingest", cwd=project))
    assert code == 1
    assert "ingest stopped: the disk is full; free some space. What it had done is kept in" in said
    lines = results / "dataset.unfinished" / ".records.jsonl"
    done = lines.read_text().count("\n")
    assert 0 < done < 30
    disk("size=16m")
    told = start("ingest", cwd=project)
    while not lines.exists() or lines.read_text().count("\n") <= done:
        assert told.poll() is None
        time.sleep(0.005)
    assert lines.read_text().count("\n") >= done  # nothing of before was thrown away
    assert ended(told)[0] == 0
    assert folder.is_complete(results / "dataset")
    assert len(np.load(results / "dataset" / "scans.npy")) == 30


def test_a_zip_that_finds_no_room_to_be_unpacked_is_not_called_damaged(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "scan.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.dcm", np.random.default_rng(0).integers(0, 4, 2**20, np.uint8).tobytes())
    monkeypatch.setattr(tempfile, "tempdir", str(disk("size=400k")))
    with pytest.raises(OSError, match="No space left"):
        read_scan(tmp_path / "scan.zip")


def train(out: Path, meanwhile: Callable[[], object]) -> None:
    """A stage with half of its work done when something happens."""
    with folder.write(out, "train", {"epochs": 2}, {}) as work:
        assert work is not None
        (work / "checkpoint").write_text("half")
        meanwhile()


def torch_save(path: Path) -> None:
    import torch

    torch.save({"weights": torch.zeros(10**6)}, path)


def safetensors_save(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"weights": torch.zeros(10**6)}, path)


@pytest.mark.parametrize(
    "save",
    [torch_save, safetensors_save, lambda path: np.save(path, np.zeros(10**6)), lambda path: path.write_text("0" * 10**6)],
    ids=["torch", "safetensors", "numpy", "text"],
)  # fmt: skip
def test_whatever_library_meets_the_full_disk_the_stage_says_so_and_keeps_the_former_result(
    disk: Disk, save: Callable[[Path], None]
) -> None:
    results = disk("size=200k")
    with folder.write(results / "out", "train", {"epochs": 1}, {}) as work:
        (work / "model").write_text("good")
    with pytest.raises(CovidnetError, match="train stopped: the disk is full"):
        train(results / "out", lambda: save(results / "new.npy"))
    assert (results / "out" / "model").read_text() == "good"
    assert folder.is_complete(results / "out")
    assert (results / "out.partial" / "checkpoint").read_text() == "half"


def test_a_read_only_file_system_is_named_and_what_lies_there_can_be_used(project: Path, disk: Disk) -> None:
    results = disk("size=16m")
    assert ended(start("ingest", cwd=project))[0] == 0
    disk("ro")
    code, said = ended(start("ingest", "-S", "seed=1", cwd=project))
    assert code == 1
    assert "Read-only file system" in said
    assert folder.is_complete(results / "dataset")
    code, said = ended(start("ingest", cwd=project))
    assert code == 0
    assert "nothing to do" in said
    code, said = ended(start("audit", "results/dataset", "--html", "results/audit.html", cwd=project))
    assert code == 1
    assert "covidnet: the file system is read-only" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_ingest_with_a_message_and_it_goes_on(project: Path, number: signal.Signals) -> None:
    run = start("ingest", cwd=project)
    lines = project / "results" / "dataset.unfinished" / ".records.jsonl"
    while not lines.exists() or lines.read_text().count("\n") < 5:
        assert run.poll() is None
        time.sleep(0.01)
    if number == signal.SIGINT:
        os.killpg(run.pid, number)  # as a terminal does
    else:
        run.send_signal(number)
    code, said = ended(run)
    assert code == 128 + number
    assert "covidnet: interrupted; results are whole or as they were, run the same command again" in said
    assert 5 <= lines.read_text().count("\n") < 30
    assert not (project / "results" / "dataset").exists()
    assert ended(start("ingest", cwd=project))[0] == 0
    assert folder.is_complete(project / "results" / "dataset")


def numpy_allocation() -> None:
    np.empty(2**60, np.uint8)


def torch_allocation() -> None:
    import torch

    torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize("allocate", [numpy_allocation, torch_allocation])
def test_a_stage_out_of_memory_says_what_to_lower_and_keeps_its_checkpoint(
    tmp_path: Path, allocate: Callable[[], None]
) -> None:
    with pytest.raises(CovidnetError, match=r"train stopped: memory ran out; lower the batch \(training.batch"):
        train(tmp_path / "out", allocate)
    assert (tmp_path / "out.partial" / "checkpoint").read_text() == "half"


def test_a_fault_of_the_program_keeps_its_traceback(tmp_path: Path) -> None:
    assert fault_of_machine(FileNotFoundError(2, "No such file or directory"), tmp_path) is None
    with pytest.raises(KeyError), folder.write(tmp_path / "out", "train", {}, {}):
        raise KeyError("a mistake")


def test_a_result_is_finished_whatever_the_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with folder.write(tmp_path / "out", "train", {}, {}) as work:
        (work / "model").write_text("good")
    for year in (0, 2**32):  # 1970 and 2106
        os.utime(tmp_path / "out" / "model", (year, year))
        monkeypatch.setattr(time, "time", lambda year=year: float(year))
        with folder.write(tmp_path / "out", "train", {}, {}) as work:
            assert work is None


def test_no_stage_decides_by_the_time_of_day() -> None:
    """Seconds are measured by clocks that can't be set; the seal and a table of timings write down a date, for people."""
    clocks = re.compile(r"\btime\.time\(|datetime\.(now|today|utcnow)\(|date\.today\(")
    found = {path.name for path in (ROOT / "covidnet").rglob("*.py") if clocks.search(path.read_text())}
    assert found == {"seal.py", "bench.py"}


def test_a_run_killed_between_the_last_file_and_the_hand_over_keeps_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folder, "_replace", killed)
        with pytest.raises(KeyboardInterrupt), folder.write(tmp_path / "out", "train", {}, {}) as work:
            (work / "model").write_text("good")
    with folder.write(tmp_path / "out", "train", {}, {}) as work:
        assert (work / "model").read_text() == "good"
