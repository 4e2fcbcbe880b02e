"""The log of the test split's uses."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from covidnet.errors import CovidnetError
from covidnet.evaluation.seal import open_seal, read


def test_the_same_candidates_are_one_use_and_new_ones_another(tmp_path: Path) -> None:
    log = tmp_path / "test-uses.jsonl"
    first, new = open_seal(log, "data", {"retrain/S": "aa", "baseline/mc3_18": "bb"})
    assert new
    again, new = open_seal(log, "data", {"baseline/mc3_18": "bb", "retrain/S": "aa"})
    assert not new
    assert again == first
    uses, new = open_seal(log, "data", {"retrain/S": "cc", "baseline/mc3_18": "bb"})
    assert new
    assert [use.candidates["retrain/S"] for use in uses] == ["aa", "cc"]


def test_another_dataset_has_a_test_split_of_its_own(tmp_path: Path) -> None:
    log = tmp_path / "test-uses.jsonl"
    open_seal(log, "data", {"retrain/S": "aa"})
    uses, new = open_seal(log, "other", {"retrain/S": "aa"})
    assert new
    assert len(uses) == 1
    assert len(read(log)) == 2


def test_a_damaged_log_is_not_overwritten(tmp_path: Path) -> None:
    log = tmp_path / "test-uses.jsonl"
    log.write_text("{broken\n")
    with pytest.raises(CovidnetError, match="restore it from a copy"):
        open_seal(log, "data", {})
    assert log.read_text() == "{broken\n"


def test_a_use_tells_when_what_and_by_which_code_it_was(tmp_path: Path) -> None:
    log = tmp_path / "test-uses.jsonl"
    assert read(log) == []
    (use,), _ = open_seal(log, "data", {"retrain/S": "aa"})
    assert read(log) == [use]
    assert datetime.fromisoformat(use.time).utcoffset() == timedelta(0)
    assert use.git_revision
    assert use.same("data", {"retrain/S": "aa"})
    assert not use.same("other", {"retrain/S": "aa"})
    assert not use.same("data", {"retrain/S": "bb"})
