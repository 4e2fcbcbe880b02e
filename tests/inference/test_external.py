"""A bundle on other data: the figures are those of the engine's own answers."""

import json
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import toy_bundle

from covidnet.config import Evaluate
from covidnet.data.packed import Row, write_manifest
from covidnet.data.preprocess import Spec
from covidnet.errors import CovidnetError, UsageError
from covidnet.export.bundle import Bundle
from covidnet.inference.engine import load
from covidnet.inference.external import validate

SETTINGS = Evaluate(bootstrap=100)


def dataset(folder: Path, labels: list[str], spec: Spec | None = None, seed: int = 0) -> Path:
    """A packed dataset of noise, two scans a patient, every second patient in test."""
    folder.mkdir(parents=True)
    scans = np.random.default_rng(seed).integers(0, 256, (len(labels), *toy_bundle.SIZE), dtype=np.uint8)
    np.save(folder / "scans.npy", scans)
    rows = [
        Row(f"s{i}", f"p{i // 2}", label, ("test", "train")[i // 2 % 2], "nifti", str(i), "5;1;1", 40 + i, "")
        for i, label in enumerate(labels)
    ]
    write_manifest(folder / "manifest.csv", rows)
    (folder / "preprocess.json").write_text(json.dumps((spec or Spec(size=toy_bundle.SIZE)).to_dict()))
    return folder


def test_figures_are_those_of_the_engine(toy: Bundle, tmp_path: Path) -> None:
    labels = [("NCP", "CP", "Normal")[i // 2 % 3] for i in range(72)]
    data = dataset(tmp_path / "there", labels)
    found = validate([toy.path], [data], SETTINGS, tmp_path / "out", split="all", seed=0)
    logits = load(toy).run(np.load(data / "scans.npy")[:, None]).logits
    truth = [toy.labels.index(label) for label in labels]
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(truth, logits.argmax(1)))
    assert found["balanced_accuracy"] == pytest.approx(sklearn.metrics.balanced_accuracy_score(truth, logits.argmax(1)))
    assert found["scans"] == 72
    (cell,) = json.loads((tmp_path / "out" / "results.json").read_text())["cells"]
    low, high = cell["intervals"]["accuracy"]
    assert low <= found["accuracy"] <= high
    assert {group["column"] for group in cell["subgroups"]} == {"slices"}
    assert "there" in (tmp_path / "out" / "matrix.md").read_text()


def test_only_the_test_split_is_read_unless_told_otherwise(toy: Bundle, tmp_path: Path) -> None:
    data = dataset(tmp_path / "there", ["NCP", "CP", "Normal", "NCP"] * 4)
    assert validate([toy.path], [data], SETTINGS, tmp_path / "out", split="test", seed=0)["scans"] == 8


def test_matrix_has_a_row_per_bundle_and_a_column_per_dataset(toy: Bundle, tmp_path: Path) -> None:
    data = [dataset(tmp_path / name, ["NCP", "Normal"] * 8, seed=i) for i, name in enumerate(("one", "two"))]
    found = validate([toy.path], data, SETTINGS, tmp_path / "out", split="all", seed=0)
    assert f"{toy.version}.one.accuracy" in found
    header, _, row = (tmp_path / "out" / "matrix.md").read_text().splitlines()[:3]
    assert header == "| bundle | one | two |"
    assert row.count("no interval") == 2  # eight patients
    assert len((tmp_path / "out" / "matrix.csv").read_text().splitlines()) == 3


def test_one_absent_class_is_named_and_leaves_its_figures_undefined(toy: Bundle, tmp_path: Path) -> None:
    data = dataset(tmp_path / "there", ["NCP"] * 8)
    validate([toy.path], [data], SETTINGS, tmp_path / "out", split="all", seed=0)
    (cell,) = json.loads((tmp_path / "out" / "results.json").read_text())["cells"]
    assert cell["metrics"]["roc_auc"] is None
    assert any("no scan of class CP, Normal" in warning for warning in cell["warnings"])


def test_data_that_do_not_fit_are_refused(toy: Bundle, tmp_path: Path) -> None:
    other_classes = dataset(tmp_path / "classes", ["Influenza"] * 4)
    other_size = dataset(tmp_path / "size", ["NCP"] * 4, Spec(size=(16, 64, 64)))
    none_in_test = dataset(tmp_path / "none", ["NCP"] * 2)
    (none_in_test / "manifest.csv").write_text((none_in_test / "manifest.csv").read_text().replace("test", "train"))
    for data, message in (
        (other_classes, "has classes \\['Influenza'\\]"),
        (other_size, "was prepared by"),
        (none_in_test, "no scan in its test split"),
    ):
        with pytest.raises(CovidnetError, match=message):
            validate([toy.path], [data], SETTINGS, tmp_path / "out", split="test", seed=0)
    with pytest.raises(UsageError, match="0 datasets"):
        validate([toy.path], [], SETTINGS, tmp_path / "out", split="test", seed=0)
    with pytest.raises(UsageError, match="not a class of the bundle"):
        validate([toy.path], [other_size], Evaluate(positive="Flu"), tmp_path / "out", split="test", seed=0)
