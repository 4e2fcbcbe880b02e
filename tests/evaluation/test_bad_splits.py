"""The whole evaluation of test splits that can't carry the figures: a page that says so, or a refusal that says why."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from covidnet.config import parse
from covidnet.data.packed import Row, write_manifest
from covidnet.errors import CovidnetError
from covidnet.evaluation import run as evaluation
from covidnet.evaluation.metrics import Predictions
from covidnet.models import saved
from covidnet.models.covidnet3d import SPACES, Genotype

SIZE, CLASSES = (8, 16, 16), ("NCP", "CP", "Normal")
CONFIG = parse({"evaluate": {"bootstrap": 100, "overlays": 1}})


def dataset(folder: Path, test: list[str], patient: str = "p{}") -> Path:
    """Noise, thirty scans to train with, twelve to validate and the given ones to test."""
    folder.mkdir()
    plan = [(split, CLASSES[i % 3]) for split, n in (("train", 30), ("validation", 12)) for i in range(n)]
    plan += [("test", label) for label in test]
    scans = np.random.default_rng(0).integers(0, 256, (len(plan), *SIZE), dtype=np.uint8)
    np.save(folder / "scans.npy", scans)
    names = [patient.format(i) if split == "test" else f"p{i}" for i, (split, _) in enumerate(plan)]
    rows = [
        Row(f"s{i}", name, label, split, "nifti", str(i), "5;1;1", 40, "")
        for i, (name, (split, label)) in enumerate(zip(names, plan, strict=True))
    ]
    write_manifest(folder / "manifest.csv", rows)
    (folder / "rejected.csv").write_text("path,reason\n")
    return folder


@pytest.fixture(scope="module")
def candidate(tmp_path_factory) -> Path:
    """An untrained network with no searchable block in use, and validation predictions."""
    folder = tmp_path_factory.mktemp("results") / "retrain" / "S"
    folder.mkdir(parents=True)
    blocks = tuple(("Identity",) * count for count in SPACES["S"].blocks)
    description = saved.of_genotype(Genotype("S", CLASSES, 1, SIZE, blocks), SIZE)
    torch.manual_seed(0)
    saved.save(folder, description.build(), description)
    ids = tuple(f"s{30 + i}" for i in range(12))
    logits = np.random.default_rng(0).normal(size=(12, 3))
    Predictions(ids, ids, np.arange(12) % 3, logits, CLASSES).save(folder / "validation.csv")
    figures = {"size_mib": 1.0, "parameters": 1, "macs": 1, "scans_seen": 1, "epochs": 1.0}
    (folder / "metrics.json").write_text(json.dumps(figures))
    return folder


def evaluate(data: Path, candidate: Path, work: Path) -> tuple[str, dict]:
    work.mkdir()
    evaluation.run(CONFIG, data, [candidate], torch.device("cpu"), work, work.parent / "uses.jsonl")
    return (work / "report.html").read_text(), json.loads((work / "results.json").read_text())


@pytest.mark.filterwarnings("error")
def test_one_class_gives_its_sensitivity_and_leaves_the_rest_open(candidate: Path, tmp_path: Path) -> None:
    page, results = evaluate(dataset(tmp_path / "data", ["NCP"] * 12), candidate, tmp_path / "out")
    (figures,), (ranges,) = results["metrics"].values(), results["intervals"].values()
    assert figures["accuracy"] == figures["sensitivity_NCP"]
    assert figures["roc_auc"] is figures["specificity_NCP"] is figures["sensitivity_CP"] is None
    assert set(ranges.values()) == {None}
    assert "found 0 of CP, 0 of Normal" in page
    assert not re.search(r"\bnan\b", re.sub(r"<svg.*?</svg>", "", page, flags=re.S), re.I)
    assert (tmp_path / "out" / "plots" / "roc.csv").read_text().count("\n") == 1  # the header


def test_fewer_than_ten_patients_of_a_class_give_figures_with_a_warning(candidate: Path, tmp_path: Path) -> None:
    page, results = evaluate(dataset(tmp_path / "data", [*CLASSES] * 4), candidate, tmp_path / "out")
    (figures,), (ranges,) = results["metrics"].values(), results["intervals"].values()
    assert 0 <= figures["accuracy"] <= 1
    assert set(ranges.values()) == {None}
    assert "they need at least 10 patients of every class; found 4 of NCP, 4 of CP, 4 of Normal" in page


def test_scans_without_a_patient_are_refused(candidate: Path, tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", [*CLASSES] * 4, patient="")
    with pytest.raises(
        CovidnetError, match="12 of 12 scans have no patient, by whom intervals are drawn; fill in patient_id"
    ):
        evaluate(data, candidate, tmp_path / "out")


def test_a_test_split_without_scans_is_refused(candidate: Path, tmp_path: Path) -> None:
    with pytest.raises(CovidnetError, match="no scan in its test split"):
        evaluate(dataset(tmp_path / "data", []), candidate, tmp_path / "out")


def test_a_network_of_other_classes_is_refused(candidate: Path, tmp_path: Path) -> None:
    other = parse({"classes": ["NCP", "Normal"], "evaluate": {"bootstrap": 100}})
    data = dataset(tmp_path / "data", ["NCP", "Normal"] * 6)
    manifest = data / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(",CP,", ",Normal,"))
    (tmp_path / "out").mkdir()
    with pytest.raises(CovidnetError, match=r"S was trained for classes \['NCP', 'CP', 'Normal'\]"):
        evaluation.run(other, data, [candidate], torch.device("cpu"), tmp_path / "out", tmp_path / "uses.jsonl")
