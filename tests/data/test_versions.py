"""Raw scans by version: from a git repository with DVC, and from an S3 server by DVC's hash."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import s3_server
import yaml

from covidnet import stages, tasks
from covidnet.config import Config, parse
from covidnet.data import packed, versions, worker
from covidnet.errors import CovidnetError, UsageError

COMMITTER = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")


def sh(*command: str, cwd: Path) -> str:
    environment = {**os.environ, **dict.fromkeys(COMMITTER, "test"), "DVC_NO_ANALYTICS": "1", "PYTHONPATH": ""}
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, env=environment).stdout.strip()


def dvc(*arguments: str, cwd: Path) -> str:
    return sh(sys.executable, "-m", "dvc", *arguments, cwd=cwd)


def commit(repository: Path) -> str:
    sh("git", "add", "-A", cwd=repository)
    sh("git", "commit", "-qm", "scans", cwd=repository)
    return sh("git", "rev-parse", "HEAD", cwd=repository)


def scan(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(-1000, 300, (24, 24, 12)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1, -1, 2.0, 1])), path)


def raw(root: Path) -> None:
    for label in ("NCP", "Normal"):
        for patient in range(8):
            scan(root / label / f"{label}-{patient}.nii.gz", patient + 100 * (label == "NCP"))


def settings(root: str, revision: str, **data: object) -> Config:
    source = {"source": "nifti", "root": root, "revision": revision, "size": [8, 16, 16], "crop": "none", "workers": 1}
    return parse({"classes": ["NCP", "Normal"], "data": {**source, **data}})


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository whose folder `raw` DVC tracks, at tag v1; a copy of it in a folder that DVC uses as its remote."""
    folder = tmp_path_factory.mktemp("repository")
    sh("git", "init", "-q", "-b", "main", cwd=folder)
    dvc("init", "-q", cwd=folder)
    raw(folder / "raw")
    dvc("add", "-q", "raw", cwd=folder)
    dvc("remote", "add", "-q", "-d", "store", str(tmp_path_factory.mktemp("remote")), cwd=folder)
    commit(folder)
    sh("git", "tag", "v1", cwd=folder)
    dvc("push", "-q", cwd=folder)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "covidnet3d" / "raw"


def hash_of(repository: Path) -> str:
    return yaml.safe_load((repository / "raw.dvc").read_text())["outs"][0]["md5"]


def test_a_git_revision_is_ingested_and_recorded(repository: Path, tmp_path: Path) -> None:
    config = settings(f"{repository}//raw", "v1")
    stages.ingest(config, tmp_path / "dataset")
    found = json.loads((tmp_path / "dataset" / "provenance.json").read_text())["parameters"]
    head = sh("git", "rev-parse", "v1", cwd=repository)
    version = found.pop("version")
    assert (version["revision"], version["commit"], version["md5"]) == ("v1", head, hash_of(repository))
    assert version["files"] == 16
    assert (found["data"]["root"], found["data"]["revision"]) == (f"{repository}//raw", "v1")
    assert len(packed.read(tmp_path / "dataset").rows) == 16
    assert tasks.pinned(config).data.revision == head


def test_another_revision_costs_what_is_new_in_it(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """Also where a new file has the name and size of the old one, which ingest goes by."""
    clone = tmp_path / "clone"
    shutil.copytree(repository, clone)
    out = tmp_path / "dataset"
    stages.ingest(settings(f"{clone}//raw", "v1"), out)
    before = {path.name for path in (cache / "files").rglob("*")}
    sound = clone / "raw" / "NCP" / "NCP-3.nii.gz"
    (clone / "raw" / "NCP" / "NCP-4.nii.gz").unlink()
    shutil.copy(clone / "raw" / "NCP" / "NCP-5.nii.gz", clone / "raw" / "NCP" / "NCP-9.nii.gz")
    data = bytearray(sound.read_bytes())
    data[4:8] = b"\1\2\3\4"  # the time in the gzip header
    sound.unlink()
    sound.write_bytes(data)
    dvc("add", "-q", "raw", cwd=clone)
    second = commit(clone)
    read: list[str] = []
    original = worker.run

    def spy(scans, *rest):
        scans = list(scans)
        read.extend(ref.path.name for _, ref in scans)
        return original(scans, *rest)

    monkeypatch.setattr(worker, "run", spy)
    stages.ingest(settings(f"{clone}//raw", second, allow=["duplicate-scan", "near-duplicate"]), out)
    assert sorted(read) == ["NCP-3.nii.gz", "NCP-9.nii.gz"]
    assert len({path.name for path in (cache / "files").rglob("*")} - before) <= 2  # a file and its folder
    assert len(packed.read(out).rows) == 16


def test_labels_may_lie_within_the_version(repository: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(repository, clone)
    (clone / "raw").rename(clone / "scans")
    (clone / "raw.dvc").unlink()
    (clone / "scans" / "labels.csv").write_text(
        "path,label,patient\nNCP/NCP-0.nii.gz,NCP,a\nNormal/Normal-0.nii.gz,Normal,b\n"
    )
    dvc("add", "-q", "scans", cwd=clone)
    config = settings(f"{clone}//scans", commit(clone), labels="labels.csv")
    local = versions.fetched(config, versions.find(config.data)).data
    assert Path(str(local.labels)).read_text().startswith("path,label,patient")
    assert local.revision is None


@pytest.mark.parametrize(
    ("root", "revision", "message"),
    [
        ("{repository}//raw", "v7", "data.revision v7: .*give a branch, tag or commit that the repository has"),
        ("{repository}//nothing", "v1", "nothing lies at nothing in revision v1"),
        ("{repository}", "v1", "expected REPOSITORY//PATH"),
        ("https://git.example/scans", "v1", "expected REPOSITORY//PATH"),
        ("{repository}/nowhere//raw", "v1", "data.revision v1: can't be read from"),
        ("s3://bucket/scans", "v1", "the hash of a folder, as the .dvc file"),
    ],
)
def test_what_is_not_there_is_said_with_what_to_give(repository: Path, root: str, revision: str, message: str) -> None:
    config = settings(root.format(repository=repository), revision)
    with pytest.raises(UsageError, match=message):
        versions.find(config.data)


def test_a_list_with_paths_out_of_its_folder_is_refused() -> None:
    for name in ("../../etc/passwd", "/etc/passwd", "a//b", "a/./b", "a\\b"):
        with pytest.raises(CovidnetError, match="outside of its folder"):
            versions._version({name: "0" * 32}, {"revision": "v1"}, None)


def test_files_of_equal_content_are_fetched_at_once(cache: Path) -> None:
    class Slow:
        def get(self, name: str, md5: str, target: Path) -> None:
            with target.open("wb") as stream:
                for letter in b"same":
                    stream.write(bytes([letter]))
                    stream.flush()
                    time.sleep(0.01)

    md5 = hashlib.md5(b"same").hexdigest()
    version = versions._version({f"{number}.nii": md5 for number in range(16)}, {"revision": "v1"}, Slow())
    root = Path(str(versions.fetched(settings("s3://bucket/x", f"{md5}.dir"), version).data.root))
    assert {file.read_bytes() for file in root.iterdir()} == {b"same"}
    assert not list(cache.rglob("*.partial"))


def test_a_file_that_its_equal_replaces_while_it_is_linked_is_linked_all_the_same(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    class Store:
        def get(self, name: str, md5: str, target: Path) -> None:
            target.write_bytes(b"same")

    link, refused = os.link, []

    def replaced_once(file: Path, target: Path) -> None:
        if not refused:
            refused.append(target)
            raise FileNotFoundError(2, "No such file or directory", str(file), None, str(target))
        link(file, target)

    monkeypatch.setattr(versions.os, "link", replaced_once)
    md5 = hashlib.md5(b"same").hexdigest()
    version = versions._version({"0.nii": md5}, {"revision": "v1"}, Store())
    root = Path(str(versions.fetched(settings("s3://bucket/x", f"{md5}.dir"), version).data.root))
    assert (root / "0.nii").read_bytes() == b"same"
    assert refused


def test_a_file_that_was_spoiled_here_is_had_again(repository: Path, cache: Path) -> None:
    config = settings(f"{repository}//raw", "v1")
    version = versions.find(config.data)
    root = Path(str(versions.fetched(config, version).data.root))
    spoiled = root / "NCP" / "NCP-0.nii.gz"
    sound = spoiled.read_bytes()
    spoiled.chmod(0o644)
    spoiled.write_bytes(b"spoiled")
    versions.fetched(config, version)
    assert spoiled.read_bytes() == sound


class GoneAway:
    """A store that answers so many times and is then out of reach."""

    def __init__(self, store: object, answers: int) -> None:
        self.store, self.answers, self.asked = store, answers, 0

    def get(self, name: str, md5: str, target: Path) -> None:
        self.asked += 1
        if self.asked > self.answers:
            raise ConnectionError("no route to host")
        self.store.get(name, md5, target)

    def place(self, name: str, md5: str) -> str:
        return self.store.place(name, md5)


def test_a_remote_that_goes_away_ends_the_run_with_its_address_and_costs_no_file_that_is_here(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(f"{repository}//raw", "main")
    version = versions.find(config.data)
    away, back = GoneAway(version.store, 6), GoneAway(version.store, 99)
    with pytest.raises(UsageError, match=r"can't be read from .*ConnectionError: no route to host.*the network"):
        versions.fetched(config, replace(version, store=away))
    versions.fetched(config, replace(version, store=back))
    assert back.asked == 16 - 6


def test_an_s3_server_out_of_reach_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
        ("AWS_MAX_ATTEMPTS", "1"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"can't be read from s3://scans/x \(.*look at the address, the network"):
        versions.find(settings("s3://scans/x", "0" * 32).data)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A running S3 server with the bucket `scans`; the folder that it keeps objects in."""
    folder = tmp_path_factory.mktemp("s3")
    with s3_server.running(folder, "scans"):
        yield folder


@pytest.fixture
def pushed(s3: Path, repository: Path, tmp_path: Path) -> Path:
    """A clone of the repository whose remote is a prefix of the bucket, with everything pushed."""
    clone = tmp_path / "pushing"
    shutil.copytree(repository, clone)
    dvc("remote", "modify", "-q", "store", "url", f"s3://scans/{tmp_path.name}", cwd=clone)
    dvc("remote", "modify", "-q", "store", "endpointurl", os.environ["AWS_ENDPOINT_URL"], cwd=clone)
    commit(clone)
    dvc("push", "-q", cwd=clone)
    return clone


@s3_server.needs_s3
@pytest.mark.slow
def test_push_to_s3_then_a_fresh_clone_and_a_container_without_git_get_the_same_dataset(
    pushed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "fresh"
    sh("git", "clone", "-q", str(pushed), str(clone), cwd=tmp_path)  # without DVC's cache: all comes from S3
    by_commit = settings(f"{clone}//raw", "main")
    stages.ingest(by_commit, tmp_path / "a")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    by_hash = settings(f"s3://scans/{tmp_path.name}", hash_of(pushed))
    stages.ingest(by_hash, tmp_path / "b")
    for name in ("scans.npy", "manifest.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    recorded = json.loads((tmp_path / "b" / "provenance.json").read_text())["parameters"]["version"]
    assert recorded["md5"] == hash_of(pushed)
    assert tasks.revisions(by_hash, "")["data_revision"] == tasks.revisions(by_commit, "")["data_revision"]


@s3_server.needs_s3
@pytest.mark.slow
def test_damage_in_the_remote_is_noticed_and_named(pushed: Path, tmp_path: Path) -> None:
    config = settings(f"s3://scans/{tmp_path.name}", hash_of(pushed).removesuffix(".dir"))
    version = versions.find(config.data)
    corrupted, lost = (version.files[f"NCP/NCP-{patient}.nii.gz"] for patient in (2, 3))
    store = s3_server.client()

    def place(md5: str) -> str:
        return f"files/md5/{md5[:2]}/{md5[2:]}"

    store.pipe_file(f"scans/{tmp_path.name}/{place(corrupted)}", b"rot")
    store.rm_file(f"scans/{tmp_path.name}/{place(lost)}")
    with pytest.raises(CovidnetError) as raised:
        stages.ingest(config, tmp_path / "dataset")
    assert raised.value.exit_code == 1
    assert "2 of 16 files" in str(raised.value)
    assert f"{place(corrupted)} is corrupted" in str(raised.value)
    assert f"{place(lost)} is missing" in str(raised.value)
    assert "NCP-2" not in str(raised.value)
    assert not (tmp_path / "dataset").exists()

    clone = settings(f"{pushed}//raw", "main")
    shutil.rmtree(pushed / ".dvc" / "cache")
    with pytest.raises(CovidnetError, match=rf"{corrupted} is corrupted"):
        versions.fetched(clone, versions.find(clone.data))

    store.pipe_file(f"scans/{tmp_path.name}/{place(hash_of(pushed))}", b"[]")
    with pytest.raises(CovidnetError, match=r"\.dir in s3://scans/.* is corrupted"):
        versions.find(config.data)
    with pytest.raises(UsageError, match="no object files/md5/00/"):
        versions.find(settings(f"s3://scans/{tmp_path.name}", "0" * 32).data)
    with pytest.raises(UsageError, match=r"can.t be read from s3://elsewhere|no object"):
        versions.find(settings("s3://elsewhere/x", "0" * 32).data)
