import json

import pytest

from covidnet import folder
from covidnet.errors import CovidnetError


def stage(out, inputs, value=1, fail=False):
    """A stage that writes one file; returns whether it ran."""
    with folder.write(out, "test", {"value": value}, inputs) as work:
        if work is None:
            return False
        (work / "result.txt").write_text(str(value))
        if fail:
            raise RuntimeError("killed")
    return True


@pytest.fixture
def source(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a")
    return {"in": tmp_path / "in"}


def test_a_finished_stage_runs_again_only_for_other_inputs_or_parameters(tmp_path, source):
    out = tmp_path / "out"
    assert stage(out, source)
    assert not stage(out, source)
    assert stage(out, source, value=2)
    assert (out / "result.txt").read_text() == "2"
    (source["in"] / "a.txt").write_text("b")
    assert stage(out, source, value=2)


def test_a_killed_stage_leaves_no_output_and_the_next_run_is_whole(tmp_path, source):
    out = tmp_path / "out"
    with pytest.raises(RuntimeError):
        stage(out, source, fail=True)
    assert not out.exists()
    assert stage(out, source)
    assert not list(tmp_path.glob("*.partial"))


def test_a_killed_stage_leaves_the_former_output_untouched(tmp_path, source):
    out = tmp_path / "out"
    stage(out, source)
    with pytest.raises(RuntimeError):
        stage(out, source, value=2, fail=True)
    assert (out / "result.txt").read_text() == "1"
    assert folder.is_complete(out)


def test_leftovers_of_the_same_run_are_found_again_and_of_another_removed(tmp_path, source):
    out = tmp_path / "out"
    with pytest.raises(RuntimeError):
        stage(out, source, fail=True)
    with folder.write(out, "test", {"value": 1}, source) as work:
        assert (work / "result.txt").exists()
    with pytest.raises(RuntimeError):
        stage(out, source, value=2, fail=True)
    with folder.write(out, "test", {"value": 3}, source) as work:
        assert not (work / "result.txt").exists()


def test_an_output_that_lost_a_file_is_not_complete(tmp_path, source):
    out = tmp_path / "out"
    stage(out, source)
    (out / "result.txt").unlink()
    with pytest.raises(CovidnetError, match="run `covidnet ingest` first"):
        folder.require(out, "ingest")
    assert stage(out, source)


def test_provenance_says_what_went_in(tmp_path, source):
    stage(tmp_path / "out", source)
    told = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert told["stage"] == "test"
    assert told["parameters"] == {"value": 1}
    assert told["inputs"] == {"in": folder.digest(source["in"])}
    assert {"versions", "git_revision", "seconds", "peak_memory_mib"} <= set(told)
    assert told["outputs"] == ["result.txt"]


def test_a_digest_depends_on_names_and_contents_only(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text("1")
    assert folder.digest(tmp_path / "x") == folder.digest(tmp_path / "y")
    (tmp_path / "y" / "f").rename(tmp_path / "y" / "g")
    assert folder.digest(tmp_path / "x") != folder.digest(tmp_path / "y")


def test_a_place_that_cannot_be_written_is_named(tmp_path, source):
    (tmp_path / "file").write_text("")
    with pytest.raises(CovidnetError, match="can't write to"):
        stage(tmp_path / "file" / "out", source)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A folder that outlives the tasks, as a volume does the pods."""
    monkeypatch.setenv(folder.WORKSPACE, str(tmp_path / "workspace"))
    return tmp_path / "workspace"


def test_a_killed_task_goes_on_in_its_successor(tmp_path, workspace):
    def killed():
        with folder.write(tmp_path / "pod-1" / "model", "train", {"a": 1}, {}) as work:
            (work / "checkpoint").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    with folder.write(tmp_path / "pod-2" / "model", "train", {"a": 1}, {}) as work:
        assert (work / "checkpoint").read_text() == "half"
        (work / "checkpoint").rename(work / "weights")
    assert folder.is_complete(tmp_path / "pod-2" / "model")
    assert (tmp_path / "pod-2" / "model" / "weights").read_text() == "half"
    assert not (tmp_path / "pod-1").exists()


def test_a_finished_task_hands_over_what_it_kept(tmp_path, workspace):
    with folder.write(tmp_path / "pod-1" / "model", "train", {"a": 1}, {}) as work:
        (work / "weights").write_text("whole")
    with folder.write(tmp_path / "pod-2" / "model", "train", {"a": 1}, {}) as work:
        assert work is None
    assert folder.digest(tmp_path / "pod-1" / "model") == folder.digest(tmp_path / "pod-2" / "model")
    with folder.write(tmp_path / "pod-3" / "model", "train", {"a": 2}, {}) as work:
        assert work is not None
        assert not list(work.glob("weights"))


def test_the_digest_of_the_code_changes_with_it(tmp_path, monkeypatch):
    package = tmp_path / "covidnet"
    package.mkdir()
    monkeypatch.setattr(folder, "__file__", str(package / "folder.py"))
    (package / "loop.py").write_text("lr = 1\n")
    before = folder.code_digest()
    (package / "loop.pyc").write_text("compiled")
    assert folder.code_digest() == before
    (package / "loop.py").write_text("lr = 2\n")
    assert folder.code_digest() != before
