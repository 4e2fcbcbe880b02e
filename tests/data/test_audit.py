import json

import pytest

from covidnet.data.audit import Entry, audit, audit_splits
from covidnet.errors import UsageError


def entries(split, patients, label="NCP"):
    return [Entry(split, label, p, f"{p}-voxels") for p in patients]


def kinds(result):
    return [(finding.kind, finding.leak) for finding in result.findings]


def test_disjoint_splits_are_clean():
    result = audit(entries("train", "abc") + entries("test", "de"))
    assert not result.leaks
    assert result.findings == ()
    assert result.patients == {"train": 3, "test": 2}


def test_a_patient_in_two_splits_is_a_leak():
    scans = [Entry("train", "NCP", "a", "1"), Entry("train", "NCP", "b", "2")]
    scans += [Entry("test", "NCP", "b", "3"), Entry("test", "NCP", "c", "4")]
    assert kinds(audit(scans)) == [("patient-overlap", True)]


def test_a_split_inside_another_is_named():
    scans = [Entry("validation", "NCP", "a", "1"), Entry("test", "NCP", "a", "2"), Entry("test", "NCP", "b", "3")]
    result = audit(scans)
    assert kinds(result) == [("split-inside-split", True)]
    assert "all 1 patients of validation are in test" in result.findings[0].message


def test_the_same_voxels_under_two_patients_across_splits_are_a_leak_and_within_one_a_note():
    across = audit([Entry("train", "NCP", "a", "same"), Entry("test", "NCP", "b", "same")])
    assert kinds(across) == [("duplicate-scan", True)]
    within = audit([Entry("train", "NCP", "a", "same"), Entry("train", "NCP", "b", "same")])
    assert kinds(within) == [("duplicate-scan", False)]


def test_the_same_voxels_under_two_labels_are_a_fault():
    result = audit([Entry("train", "NCP", "a", "same"), Entry("train", "CP", "b", "same")])
    assert ("duplicate-scan", True) in kinds(result)


def test_a_class_that_a_split_lacks_is_noted():
    result = audit(entries("train", "ab") + entries("train", "c", "CP") + entries("test", "d"))
    assert [f.message for f in result.findings] == ["split test has no scan of class CP"]
    assert not result.leaks


def test_the_authors_mosmed_split_has_no_overlap(real_scans):
    folder = real_scans / "official-splits" / "mosmed"
    result = audit_splits({"train": folder / "nii_train.json", "test": folder / "nii_test.json"})
    assert not result.leaks
    assert sum(sum(per_class.values()) for per_class in result.scans.values()) == 1110  # MosMedData's size


def test_a_planted_patient_in_a_split_file_is_found(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps({"NCP": {"1": {"s": ["0.png"]}, "2": {"s": ["0.png"]}}}))
    (tmp_path / "test.json").write_text(json.dumps({"NCP": {"2": {"t": ["0.png"]}, "3": {"t": ["0.png"]}}}))
    assert audit_splits({"train": tmp_path / "train.json", "test": tmp_path / "test.json"}).leaks


@pytest.mark.parametrize("text", ["{", "[]", '{"NCP": 3}'])
def test_a_file_of_another_form_is_a_usage_error(tmp_path, text):
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(UsageError, match=r"train\.json"):
        audit_splits({"train": tmp_path / "train.json"})
