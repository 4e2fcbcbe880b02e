"""What `ingest` reads only once: after a kill, over shards, and when scans are added."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from covidnet import stages
from covidnet.config import Config, parse
from covidnet.data import ingest, packed, worker
from covidnet.errors import CovidnetError, UsageError
from tests.data.test_ingest import config, volume

PHANTOMS = {"data": {"phantom": {"patients": 30, "detail": [16, 48, 48]}, "size": [16, 32, 32], "workers": 2}}
FILES = ("scans.npy", "lesions.npy", "manifest.csv", "rejected.csv", ".records.jsonl")


def phantoms(patients: int = 30, seed: int = 0) -> Config:
    return parse(
        {
            **PHANTOMS,
            "seed": seed,
            "data": {**PHANTOMS["data"], "phantom": {"patients": patients, "detail": [16, 48, 48]}},
        }
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "dataset"
    stages.ingest(phantoms(), out)
    return out


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Indices of the scans that workers were asked for."""
    asked: list[int] = []
    original = worker.run

    def spy(tasks, *rest):
        tasks = list(tasks)
        asked.extend(index for index, _ in tasks)
        return original(tasks, *rest)

    monkeypatch.setattr(worker, "run", spy)
    return asked


def same_bytes(a: Path, b: Path) -> None:
    for name in FILES:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def descendants(pid: int) -> list[int]:
    try:
        children = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return children + [p for child in children for p in descendants(child)]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc to find the worker processes")
def test_a_killed_run_goes_on_where_it_was_and_leaves_no_process_behind(
    tmp_path: Path, whole: Path, read: list[int]
) -> None:
    out = tmp_path / "dataset"
    settings = json.dumps(phantoms().model_dump(mode="json"))
    code = (
        "import json, sys; from pathlib import Path; from covidnet import config, stages;"
        "stages.ingest(config.parse(json.loads(sys.argv[1])), Path(sys.argv[2]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.Popen([sys.executable, "-c", code, settings, str(out)], env=environment, stderr=subprocess.DEVNULL)
    lines = out.with_name("dataset.unfinished") / ".records.jsonl"
    while not lines.exists() or lines.read_bytes().count(b"\n") < 8:
        time.sleep(0.01)
        assert run.poll() is None, "it ended before it was killed"
    workers = descendants(run.pid)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not out.exists()
    done = lines.read_bytes().count(b"\n")
    with lines.open("a") as stream:
        stream.write('{"key": "half a li')  # as a kill in the middle of a write leaves it
    stages.ingest(phantoms(), out)
    assert 0 < len(read) <= 30 - done
    same_bytes(out, whole)
    assert not lines.parent.exists()
    assert workers
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived the run"
        time.sleep(0.1)


def test_shards_merge_to_the_bytes_of_the_unsharded_dataset(tmp_path: Path, whole: Path, read: list[int]) -> None:
    out = tmp_path / "dataset"
    for number in (2, 1, 3):
        assert stages.ingest_shard(phantoms(), out, (number, 3))["scans"] == 10
    assert sorted(read) == list(range(30))
    stages.ingest(phantoms(), out, merge=True)
    assert len(read) == 30
    same_bytes(out, whole)


def test_a_missing_shard_is_told(tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    stages.ingest_shard(phantoms(), out, (1, 3))
    with pytest.raises(CovidnetError, match="20 of 30 scans are in none of the 1 shards"):
        stages.ingest(phantoms(), out, merge=True)
    with pytest.raises(CovidnetError, match="30 of 30 scans"):  # of other settings
        stages.ingest(phantoms(seed=1), out, merge=True)


def test_added_patients_are_all_that_is_read_and_the_others_stay_in_their_splits(
    tmp_path: Path, whole: Path, read: list[int]
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "dataset"))
    stages.ingest(phantoms(48), out)
    assert sorted(read) == list(range(30, 48))
    before, after = packed.read(whole), packed.read(out)
    assert np.array_equal(after.scans[:30], before.scans)
    assert np.array_equal(after.lesions[:30], before.lesions)
    split_of = {row.patient_id: row.split for row in after.rows}
    assert all(split_of[row.patient_id] == row.split for row in before.rows)
    per_cell = after.count()
    # 16 patients per class: 12 % and 18 % are 2 and 3
    assert {split: set(per_cell[split].values()) for split in per_cell} == {
        "train": {11},
        "validation": {2},
        "test": {3},
    }


def test_another_seed_splits_anew(tmp_path: Path, whole: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "dataset"))
    assert ingest._kept_splits(phantoms(), folder)
    assert not ingest._kept_splits(phantoms(seed=1), folder)


SAME = ["duplicate-scan"]  # the volumes below differ in their names alone


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for label in ("NCP", "CP", "Normal"):
        for patient in range(4):
            volume(tmp_path / "raw" / label / f"{label}{patient}.nii.gz")
    return tmp_path / "raw"


def test_of_raw_scans_only_new_changed_and_rejected_ones_are_read_again(
    tmp_path: Path, folders: Path, read: list[int]
) -> None:
    out = tmp_path / "dataset"
    broken = folders / "CP" / "CP1.nii.gz"
    broken.write_bytes(b"no scan at all")
    settings = config(folders, "nifti", max_rejected=0.2, allow=SAME)
    assert stages.ingest(settings, out)["rejected"] == 1
    read.clear()
    volume(broken)
    volume(folders / "Normal" / "Normal9.nii.gz")
    changed = folders / "NCP" / "NCP2.nii.gz"
    os.utime(changed, (1, 1))
    found = stages.ingest(settings, out)
    names = [ref.path.name for ref in ingest.references(settings)]
    assert {names[index] for index in read} == {"CP1.nii.gz", "Normal9.nii.gz", "NCP2.nii.gz"}
    assert (found["scans"], found["rejected"]) == (13, 0)
    ingest.ingest(settings, tmp_path / "fresh")
    assert (out / "scans.npy").read_bytes() == (tmp_path / "fresh" / "scans.npy").read_bytes()


def test_a_run_that_stopped_for_its_rejected_scans_reads_none_again(
    tmp_path: Path, folders: Path, read: list[int]
) -> None:
    out = tmp_path / "dataset"
    (folders / "CP" / "CP1.nii.gz").write_bytes(b"no scan at all")
    with pytest.raises(CovidnetError, match="1 of 12 scans were rejected"):
        stages.ingest(config(folders, "nifti", max_rejected=0.0), out)
    assert len(read) == 12
    assert stages.ingest(config(folders, "nifti", max_rejected=0.1, allow=SAME), out)["scans"] == 11
    assert len(read) == 12


def test_a_pseudonym_is_found_again_on_the_machine_that_has_the_scans(folders: Path) -> None:
    settings = config(folders, "nifti")
    ref = ingest.references(settings)[5]
    assert ingest.path_of(settings, f"{ref.label}/{ref.scan_id}") == ref.path
    with pytest.raises(UsageError, match="no scan 0123-000"):
        ingest.path_of(settings, "CP/0123-000")
