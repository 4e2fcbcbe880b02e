"""Listing a dataset: class folders, CSV, pseudonyms, and what a wrong layout is told."""

import hashlib
import hmac
from pathlib import Path

import pytest

from covidnet.config import Data
from covidnet.data.sources import ScanRef, discover, pseudonym
from covidnet.errors import UsageError

CLASSES = ("NCP", "Normal")


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found(root: Path, source: str, labels: Path | None = None) -> list[ScanRef]:
    data = Data.model_validate({"source": source, "root": str(root), "labels": str(labels) if labels else None})
    return discover(data, CLASSES)


def listed(root: Path, *lines: str, header: str = "path,label,patient") -> Path:
    file = root / "labels.csv"
    file.write_text("\n".join([header, *lines]) + "\n")
    return file


def test_pseudonym_is_a_keyed_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COVIDNET_PATIENT_KEY", raising=False)
    assert pseudonym("P7") == hmac.new(b"covidnet3d", b"P7", hashlib.sha256).hexdigest()[:12]
    monkeypatch.setenv("COVIDNET_PATIENT_KEY", "secret")
    assert pseudonym("P7") == hmac.new(b"secret", b"P7", hashlib.sha256).hexdigest()[:12]


def test_nifti_folders(tmp_path: Path) -> None:
    touch(tmp_path, "NCP/p10.nii.gz", "NCP/p2.nii.gz", "NCP/p3/first.nii", "NCP/p3/second.nii.gz", "Normal/p4.nrrd")
    touch(tmp_path, "NCP/readme.txt", ".git/x")
    refs = found(tmp_path, "nifti")
    assert [str(ref.path.relative_to(tmp_path)) for ref in refs] == [
        "NCP/p2.nii.gz", "NCP/p3/first.nii", "NCP/p3/second.nii.gz", "NCP/p10.nii.gz", "Normal/p4.nrrd",
    ]  # fmt: skip
    assert [ref.patient_id for ref in refs] == [pseudonym(p) for p in ("p2", "p3", "p3", "p10", "p4")]
    assert [ref.scan_id for ref in refs][1:3] == [f"{pseudonym('p3')}-000", f"{pseudonym('p3')}-001"]
    assert [ref.label for ref in refs] == ["NCP"] * 4 + ["Normal"]
    assert all(ref.split is None for ref in refs)


def test_slices_in_the_layout_of_cc_ccii(tmp_path: Path) -> None:
    touch(tmp_path, *(f"NCP/12/{scan}/000{i}.png" for scan in (100, 99) for i in range(3)), "Normal/5/7/0000.jpg")
    refs = found(tmp_path, "slices")
    assert [str(ref.path.relative_to(tmp_path)) for ref in refs] == ["NCP/12/100", "NCP/12/99", "Normal/5/7"]
    assert len({ref.scan_id for ref in refs}) == 3
    assert refs[0].patient_id == refs[1].patient_id == pseudonym("12")


def test_dicom_folders_are_one_scan_per_patient(tmp_path: Path) -> None:
    touch(tmp_path, "NCP/a/study/series/1.dcm", "NCP/a/study/series/2.dcm", "NCP/b.zip", "Normal/c/1", "NCP/notes.txt")
    refs = found(tmp_path, "dicom")
    assert [ref.path.name for ref in refs] == ["a", "b.zip", "c"]


def test_no_name_shows_in_the_identifiers(tmp_path: Path) -> None:
    touch(tmp_path, "NCP/Doe^Jane.nii", "Normal/Roe^Richard/19700101.nii")
    text = " ".join(f"{ref.scan_id} {ref.patient_id}" for ref in found(tmp_path, "nifti"))
    assert not any(part in text for part in ("Doe", "Jane", "Roe", "Richard", "1970"))


def test_one_name_in_two_classes_is_one_patient(tmp_path: Path) -> None:
    refs = found(touch(tmp_path, "NCP/p1.nii", "Normal/p1.nii"), "nifti")
    assert refs[0].patient_id == refs[1].patient_id
    assert refs[0].scan_id != refs[1].scan_id


def test_csv(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.nii", "b.nii", "c.nii")
    lines = ("x/a.nii,NCP,p1,train", "b.nii,Normal,p2,test", "c.nii,NCP,p1,train")
    refs = found(tmp_path, "nifti", listed(tmp_path, *lines, header="\ufeffpath,label,patient,split"))
    assert [(ref.path.name, ref.label, ref.split) for ref in refs] == [
        ("a.nii", "NCP", "train"), ("b.nii", "Normal", "test"), ("c.nii", "NCP", "train"),
    ]  # fmt: skip
    assert [ref.scan_id for ref in refs] == [
        f"{pseudonym('p1')}-000",
        f"{pseudonym('p2')}-000",
        f"{pseudonym('p1')}-001",
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["NCP/a.nii"], "without Normal"),
        (["NCP/a.nii", "Normal/readme.txt"], "no nifti scan of class Normal"),
        (["NCP/a.nii", "Normal/b.nii", "CP/c.nii"], r"1 folder\(s\) that are no class, expected NCP, Normal"),
    ],
)
def test_wrong_folders_are_told(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        found(touch(tmp_path, *names), "nifti")


def test_missing_root_and_pictures_in_the_class_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="which is no folder"):
        found(tmp_path / "absent", "nifti")
    with pytest.raises(UsageError, match="<class>/<patient>/<scan>"):
        found(touch(tmp_path, "NCP/0000.png", "Normal/0000.png"), "slices")


@pytest.mark.parametrize(
    ("header", "lines", "message"),
    [
        ("path,label", ["a.nii,NCP"], "patient missing"),
        ("path,label,patient", ["a.nii,NCP,p1", "b.nii,CP,p2"], "line 3: the label is none of the classes NCP, Normal"),
        ("path,label,patient", ["a.nii,NCP,p1", "b.nii,Normal,"], "line 3: path and patient must not be empty"),
        ("path,label,patient", ["a.nii,NCP,p1", "absent.nii,Normal,p2"], "line 3: nothing lies"),
        ("path,label,patient", ["a.nii,NCP,p1", "a.nii,Normal,p2"], "line 3: the path is listed twice"),
        ("path,label,patient", ["a.nii,NCP,p1"], "no nifti scan of class Normal"),
        (
            "path,label,patient,split",
            ["a.nii,NCP,p1,train", "b.nii,Normal,p2,dev"],
            "line 3: the split is none of train",
        ),
        ("path,label,patient,split", ["a.nii,NCP,p1,train", "b.nii,Normal,p2,"], "for all scans or for none"),
        ("path,label,patient,split", ["a.nii,NCP,p1,train", "b.nii,Normal,p1,test"], "1 patient.* in two splits"),
    ],
)
def test_wrong_csv_is_told(tmp_path: Path, header: str, lines: list[str], message: str) -> None:
    touch(tmp_path, "a.nii", "b.nii")
    with pytest.raises(UsageError, match=message):
        found(tmp_path, "nifti", listed(tmp_path, *lines, header=header))


def test_absent_csv_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="which is no file"):
        found(tmp_path, "nifti", tmp_path / "absent.csv")
