"""Slices of scans are ranked by planted maps, and the figures are those of counting pairs."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import toy_bundle
from typer.testing import CliRunner

from covidnet.cli import app
from covidnet.data.preprocess import Spec, crop_and_resize, prepare
from covidnet.data.sources import phantom, read_scan
from covidnet.errors import CovidnetError, UsageError
from covidnet.export.bundle import Bundle
from covidnet.inference import slices

SPEC = Spec(size=toy_bundle.SIZE)


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    """A phantom with pneumonia as NIfTI, and a list that calls the slices with a lesion infected."""
    folder = tmp_path_factory.mktemp("planted")
    made = phantom.generate("CP", seed=1, index=0, difficulty=0.0, detail=(24, 48, 48))
    stored = made.scan.voxels[::-1].transpose(2, 1, 0)  # NIfTI counts from caudal; x and y as they are, in LPS
    z, y, x = made.scan.spacing_mm
    nibabel.save(nibabel.Nifti1Image(stored, np.diag([-x, -y, z, 1])), folder / "scan.nii.gz")
    infected = made.lesions.any(axis=(1, 2))
    assert 0 < infected.sum() < len(infected)
    write(folder / "slices.csv", [("scan.nii.gz", "CP", i, int(value)) for i, value in enumerate(infected)])
    np.save(folder / "lesions.npy", made.lesions)
    return folder


def write(path: Path, rows: list[tuple]) -> Path:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([slices.COLUMNS, *rows])
    return path


def answering(cam: np.ndarray):
    """An engine whose map of every class is the given one, ``(d, h, w)``."""
    outputs = SimpleNamespace(logits=np.array([[0.0, 2.0, 1.0]]), cam=np.stack([cam] * 3)[None])
    return lambda bundle: SimpleNamespace(run=lambda volume: outputs)


def test_a_map_of_the_lesions_ranks_their_slices_first_and_one_beside_them_last(
    toy: Bundle, planted, monkeypatch
) -> None:
    box = prepare(read_scan(planted / "scan.nii.gz"), SPEC).box
    lesions = crop_and_resize(np.load(planted / "lesions.npy").astype(np.float32), box, (24, 24, 24))
    scans = slices.read_labels(planted / "slices.csv")
    monkeypatch.setattr(slices, "load", answering(lesions))
    (found,) = slices.rank(toy, scans)
    assert found.auroc > 0.95  # a slice at the edge of a lesion shares its cell with one beyond it
    assert (found.predicted, found.label, found.map_slices) == ("CP", "CP", 24)
    beside = np.broadcast_to(lesions.max(axis=(1, 2), keepdims=True) == 0, lesions.shape)
    monkeypatch.setattr(slices, "load", answering(beside))
    assert slices.rank(toy, scans)[0].auroc < 0.5


def test_auroc_counts_pairs_of_labelled_slices_only(toy: Bundle, planted, monkeypatch) -> None:
    (scan,) = slices.read_labels(planted / "slices.csv")
    few = replace(scan, infected={2: True, 9: False, 12: True, 20: False})
    cam = np.random.default_rng(0).normal(size=(6, 2, 2))
    monkeypatch.setattr(slices, "load", answering(cam))
    found = slices.rank(toy, [few])[0]
    monkeypatch.setattr(slices, "roc_auc_score", pairs)
    assert found == slices.rank(toy, [few])[0]
    assert (found.slices, found.infected) == (4, 2)


def pairs(truth, score) -> float:
    """Share of pairs in the right order, by counting."""
    won = [
        (a > b) + 0.5 * (a == b)
        for a, high in zip(score, truth, strict=True)
        for b, low in zip(score, truth, strict=True)
        if high and not low
    ]
    return float(np.mean(won))


def test_a_map_of_one_slice_ranks_the_lungs_only(toy: Bundle, planted, monkeypatch) -> None:
    monkeypatch.setattr(slices, "load", answering(np.ones((1, 2, 2))))
    (found,) = slices.rank(toy, slices.read_labels(planted / "slices.csv"))
    box = prepare(read_scan(planted / "scan.nii.gz"), SPEC).box[0]
    infected = np.load(planted / "lesions.npy").any(axis=(1, 2))
    inside = np.isin(np.arange(len(infected)), range(*box))
    assert found.auroc == pytest.approx(pairs(infected, inside.astype(float)))


def test_the_verb_names_scans_by_number_and_reports_the_middle_beside_the_map(toy: Bundle, planted, tmp_path) -> None:
    out = tmp_path / "out"
    command = ["evaluate", "--bundle", toy.path, "--slice-labels", planted / "slices.csv", "--out", out, "--json"]
    ran = CliRunner().invoke(app, [str(word) for word in command])
    assert ran.exit_code == 0, ran.output
    assert set(json.loads(ran.stdout)["metrics"]) >= {"scans", "median_auroc", "median_middle_auroc"}
    text = (out / "slices.json").read_text()
    assert "scan.nii.gz" not in text
    assert json.loads(text)["scans"][0]["scan"] == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a.nii", "CP", 0, 2)], "line 2: expected a slice number, infected 0 or 1"),
        ([("a.nii", "CP", -1, 1)], "line 2: expected a slice number"),
        ([("a.nii", "CP", 0, 1), ("a.nii", "NCP", 1, 0)], "line 3.*one label per scan"),
        ([("a.nii", "CP", 0, 1), ("a.nii", "CP", 1, 1)], "scan 1 of the list has only one kind of slice"),
        ([], "no slice is labelled"),
    ],
)
def test_broken_lists_are_refused(tmp_path: Path, rows, message) -> None:
    with pytest.raises(CovidnetError, match=message):
        slices.read_labels(write(tmp_path / "slices.csv", rows))


def test_a_list_without_its_columns_or_of_other_scans_is_refused(toy: Bundle, planted, tmp_path: Path) -> None:
    (tmp_path / "slices.csv").write_text("path,slice\n")
    with pytest.raises(UsageError, match="columns label, infected are missing"):
        slices.read_labels(tmp_path / "slices.csv")
    (scan,) = slices.read_labels(planted / "slices.csv")
    with pytest.raises(CovidnetError, match="'Influenza', which is no class of the bundle"):
        slices.rank(toy, [replace(scan, label="Influenza")])
    with pytest.raises(CovidnetError, match=r"slices, but slice 999 is labelled"):
        slices.rank(toy, [replace(scan, infected={0: False, 999: True})])
