"""Ingest of real scans through each of their formats, and of broken ones."""

import csv
import shutil

import nibabel
import numpy as np
import pytest

from covidnet.config import parse
from covidnet.data import packed
from covidnet.data.ingest import ingest
from covidnet.errors import CovidnetError, UsageError


def config(root, source, labels=None, classes=("NCP", "CP", "Normal"), **data):
    return parse(
        {
            "classes": list(classes),
            "evaluate": {"positive": classes[0]},
            "data": {
                "source": source,
                "root": str(root),
                "labels": None if labels is None else str(labels),
                "size": [16, 64, 64],
                "workers": 1,
                **data,
            },
        }
    )


def write_labels(path, rows):
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "patient", "split"])
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def by_format(real_scans, tmp_path_factory):
    """The labelled real scans, packed through NIfTI, DICOM and PNG: format to packed dataset."""
    folder, data = tmp_path_factory.mktemp("real"), real_scans
    volumes = sorted(data.glob("covid-ct-md/nifti_256/*.nii.gz"))
    series = sorted(path for path in data.glob("covid-ct-md/png_ccccii_layout/*/*/*") if path.is_dir())
    splits = ["train", "test"]
    sources = {
        "nifti": [
            (v.relative_to(data), v.name.split("_")[0], v.name.split("_")[1].split(".")[0], splits[i % 2])
            for i, v in enumerate(volumes)
        ],
        "slices": [(s.relative_to(data), s.parts[-3], s.parts[-2], "train") for s in series],
        # the one labelled series that is there as DICOM, and one of another cohort, so that the classes are two
        "dicom": [
            ("covid-ct-md/dicom/P002", "NCP", "P002", "train"),
            ("tcia-lung-pet-ct-dx-A0002", "Other", "A0002", "train"),
        ],
    }
    found = {}
    for source, rows in sources.items():
        labels = write_labels(folder / f"{source}.csv", rows)
        counts = ingest(
            config(data, source, labels, classes=sorted({row[1] for row in rows}), min_slices=20, max_rejected=0.0),
            folder / source,
        )
        assert counts["scans"] == len(rows)
        assert counts["rejected"] == 0
        found[source] = packed.read(folder / source)
    return found


def test_all_six_real_scans_are_packed_with_their_labels(by_format):
    rows = by_format["nifti"].rows
    assert sorted(row.label for row in rows) == ["CP", "CP", "NCP", "NCP", "Normal", "Normal"]
    assert {row.split for row in rows} == {"train", "test"}
    assert by_format["nifti"].scans.shape == (6, 16, 64, 64)


def test_no_patient_name_reaches_the_manifest(by_format):
    for dataset in by_format.values():
        for row in dataset.rows:
            assert not any(name in f"{row}" for name in ("P001", "P002", "cap00", "normal00"))


def test_the_same_patient_is_the_same_hash_and_the_same_picture_in_every_format(by_format):
    dicom = by_format["dicom"]
    assert dicom.rows[0].label == "NCP"
    for source, least in (("nifti", 0.99), ("slices", 0.95)):
        other = by_format[source]
        index = next(i for i, row in enumerate(other.rows) if row.patient_id == dicom.rows[0].patient_id)
        correlation = np.corrcoef(dicom.scans[0].ravel(), other.scans[index].ravel())[0, 1]
        assert correlation > least, source


def volume(path, shape=(48, 48, 24), value=None):
    """A NIfTI with two air-filled lungs in a body."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    hu = np.where(x**2 + y**2 < 0.8, 40, -1000)
    for side in (-0.4, 0.4):
        hu[((x - side) / 0.3) ** 2 + (y / 0.5) ** 2 + z**2 < 1] = -850
    if value is not None:
        hu[:] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(hu.astype(np.int16), np.diag([7.0, 7.0, 10.0, 1.0])), path)


@pytest.fixture
def folders(tmp_path):
    root = tmp_path / "raw"
    for label in ("NCP", "CP", "Normal"):
        for patient in range(4):
            volume(root / label / f"{label}{patient}.nii.gz")
    return root


def test_an_unreadable_scan_is_listed_and_the_run_goes_on(folders, tmp_path):
    (folders / "CP" / "CP1.nii.gz").write_bytes(b"no scan at all")
    counts = ingest(config(folders, "nifti", max_rejected=0.2), tmp_path / "out")
    assert (counts["scans"], counts["rejected"]) == (11, 1)
    with (tmp_path / "out" / "rejected.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert row["path"].startswith("CP/")
    assert row["reason"]
    dataset = packed.read(tmp_path / "out")
    assert len(dataset.scans) == len(dataset.rows) == 11
    assert all(scan.any() for scan in dataset.scans)


def test_too_many_rejected_scans_stop_the_run_with_their_reasons(folders, tmp_path):
    for patient in range(3):
        volume(folders / "CP" / f"CP{patient}.nii.gz", shape=(48, 48, 4))
    with pytest.raises(CovidnetError, match=r"3 of 12 scans were rejected.*\n.*at least 8 slices"):
        ingest(config(folders, "nifti"), tmp_path / "out")


def test_too_few_patients_for_the_splits_is_named(folders, tmp_path):
    for patient in (2, 3):
        (folders / "CP" / f"CP{patient}.nii.gz").unlink()
    with pytest.raises(CovidnetError, match=r"class CP has 2 patient\(s\), too few for 3 splits"):
        ingest(config(folders, "nifti"), tmp_path / "out")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: shutil.rmtree(root / "CP"), "CP"),
        (lambda root: (root / "Other").mkdir() or volume(root / "Other" / "x.nii.gz"), "1 folder"),
        (lambda root: [file.unlink() for file in (root / "CP").iterdir()], "CP"),
    ],
    ids=["missing class", "class that is not configured", "empty class"],
)
def test_folders_that_do_not_fit_the_classes_are_usage_errors(folders, tmp_path, break_it, message):
    break_it(folders)
    with pytest.raises(UsageError, match=message):
        ingest(config(folders, "nifti"), tmp_path / "out")


def test_parallel_and_serial_ingest_write_the_same_bytes(folders, tmp_path):
    for workers in (1, 2):
        ingest(config(folders, "nifti", workers=workers), tmp_path / str(workers))
    for name in ("scans.npy", "manifest.csv"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
