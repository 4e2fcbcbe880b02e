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
