"""Subgroups of a manifest, by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from covidnet.errors import CovidnetError
from covidnet.evaluation.metrics import Predictions
from covidnet.evaluation.subgroups import read_columns, subgroups

CLASSES = ("NCP", "Normal")


def predictions(right: np.ndarray, labels: np.ndarray) -> Predictions:
    called = np.where(right, labels, 1 - labels)
    ids = tuple(f"s{i}" for i in range(len(labels)))
    return Predictions(ids, tuple(f"p{i}" for i in range(len(labels))), labels, 3.0 * np.eye(2)[called], CLASSES)


def test_accuracy_and_sensitivity_of_each_value() -> None:
    labels = np.arange(40) % 2
    right = np.ones(40, bool)
    right[[0, 2, 4, 1]] = False  # three NCP and one Normal of hospital a
    sites = ["a"] * 30 + ["b"] * 10
    a, b = subgroups(predictions(right, labels), {"site": sites}, "NCP", resamples=200, confidence=0.95, seed=0)
    assert (a.column, a.value, a.scans, a.patients) == ("site", "a", 30, 30)
    assert a.accuracy == pytest.approx(26 / 30)
    assert a.sensitivity == pytest.approx(12 / 15)
    assert a.accuracy_interval is not None
    assert a.accuracy_interval[0] < 26 / 30 < a.accuracy_interval[1]
    assert (b.accuracy, b.sensitivity) == (1.0, 1.0)
    assert b.sensitivity_interval is None  # five patients


def test_numbers_become_thirds_and_text_without_end_is_left_out() -> None:
    labels = np.zeros(30, int)
    columns = {"slices": [str(n) for n in range(30)], "note": [f"text {n}" for n in range(30)], "source": ["x"] * 30}
    found = subgroups(predictions(np.ones(30, bool), labels), columns, "Normal", resamples=50, confidence=0.9, seed=0)
    assert [(g.column, g.value, g.scans) for g in found] == [
        ("slices", "0 to 9", 10),
        ("slices", "10 to 19", 10),
        ("slices", "20 to 29", 10),
    ]
    assert all(math.isnan(g.sensitivity) for g in found)


def test_any_column_is_read_but_those_that_identify(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text(
        "scan_id,patient_id,label,split,source,sha256,spacing,slices,warnings,kernel\n"
        "s1,Doe,NCP,test,dicom,ab,5;0.7;0.7,40,,B30f\ns0,Roe,NCP,test,dicom,cd,1;0.6;0.6,300,odd,D40s\n"
    )
    columns = read_columns(tmp_path / "manifest.csv", ["s0", "s1"])
    assert columns == {
        "source": ["dicom", "dicom"],
        "slices": ["300", "40"],
        "warnings": ["some", "none"],
        "kernel": ["D40s", "B30f"],
        "slice distance, mm": ["1", "5"],
        "pixel size, mm": ["0.6", "0.7"],
    }
    with pytest.raises(CovidnetError, match="1 scans that were predicted are missing"):
        read_columns(tmp_path / "manifest.csv", ["s0", "s2"])


def found(columns: dict[str, list[str]]) -> list[tuple[str, int]]:
    scans = len(next(iter(columns.values())))
    one = predictions(np.ones(scans, bool), np.zeros(scans, int))
    return [(g.value, g.scans) for g in subgroups(one, columns, "NCP", resamples=50, confidence=0.9, seed=0)]


def test_up_to_eight_values_are_groups_of_their_own_and_nine_numbers_are_thirds() -> None:
    assert found({"n": [str(k % 8) for k in range(24)]}) == [(str(k), 3) for k in range(8)]
    assert found({"n": [str(k % 9) for k in range(18)]}) == [("0 to 2", 6), ("3 to 5", 6), ("6 to 8", 6)]
    assert found({"site": [f"site {k}" for k in range(9)]}) == []
    assert found({"site": ["a"] * 9}) == []


def test_one_word_among_numbers_stands_for_the_unknown_and_two_make_it_a_text() -> None:
    numbers = [str(k) for k in range(12)]
    assert found({"age": [*numbers, "?", "?"]}) == [("0 to 3", 4), ("4 to 7", 4), ("8 to 11", 4), ("unknown", 2)]
    assert found({"age": [*numbers, "?", "old"]}) == []


def test_numbers_of_which_most_are_the_same_leave_no_third_empty() -> None:
    values = ["5"] * 20 + [str(k) for k in range(10, 19)]
    groups = found({"mm": values})
    assert sum(scans for _, scans in groups) == 29
    assert all(scans > 0 for _, scans in groups)
    assert groups[0][0].startswith("5 to 5") or groups[0][0].startswith("5 to 1")
    assert groups[-1][0].endswith("to 18")


def test_a_patient_of_several_scans_is_counted_once(tmp_path: Path) -> None:
    p = predictions(np.ones(6, bool), np.arange(6) % 2)
    p = Predictions(p.scan_ids, ("a", "a", "b", "c", "c", "c"), p.labels, p.logits, p.classes)
    groups = subgroups(p, {"site": list("xxxyyy")}, "NCP", resamples=50, confidence=0.9, seed=0)
    assert [(g.value, g.scans, g.patients) for g in groups] == [("x", 3, 2), ("y", 3, 1)]


def test_an_empty_cell_is_unknown_and_a_spacing_may_be_short(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("scan_id,site,spacing\ns0,,5;0.6;0.7\ns1,a,2\ns2,b,\n")
    columns = read_columns(tmp_path / "manifest.csv", ["s0", "s1", "s2"])
    assert columns["site"] == ["unknown", "a", "b"]
    assert columns["slice distance, mm"] == ["5", "2", "unknown"]
    assert columns["pixel size, mm"] == ["0.7", "", ""]
