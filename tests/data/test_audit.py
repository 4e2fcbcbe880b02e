import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from covidnet.data import packed
from covidnet.data.audit import Entry, audit, audit_packed, audit_splits, findings_of, require_clean, shortcuts, write
from covidnet.data.packed import Packed, Row
from covidnet.errors import CovidnetError, UsageError


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


def test_every_pair_of_splits_is_compared_and_the_shared_patients_are_counted():
    scans = entries("train", "abcd") + entries("validation", "cdef", "CP") + entries("test", "dgh", "CP")
    scans = [Entry(e.split, e.label, e.patient, f"{e.split}-{e.patient}") for e in scans]  # of other content
    assert [f.message for f in audit(scans).findings if f.kind == "patient-overlap"] == [
        "2 patient(s) are both in train and in validation",
        "1 patient(s) are both in train and in test",
        "1 patient(s) are both in validation and in test",
    ]


def test_the_smaller_split_is_named_as_the_one_inside_whichever_comes_first():
    large = [Entry("train", "NCP", p, f"train-{p}") for p in "abc"]
    small = [Entry("test", "NCP", p, f"test-{p}") for p in "ab"]
    for scans in (large + small, small + large):
        (found,) = audit(scans).findings
        assert (found.kind, found.leak) == ("split-inside-split", True)
        assert found.message == "all 2 patients of test are in train too"


def test_two_splits_of_the_same_patients_are_one_inside_the_other():
    scans = [Entry(split, "NCP", p, f"{split}-{p}") for split in ("train", "test") for p in "ab"]
    assert [f.message for f in audit(scans).findings] == ["all 2 patients of train are in test too"]


def test_scans_of_one_content_are_counted_once_each_by_what_they_spoil():
    scans = [Entry("train", "NCP", "a", "1"), Entry("test", "NCP", "b", "1"), Entry("test", "NCP", "c", "1")]
    scans += [Entry("train", "NCP", "d", "2"), Entry("test", "CP", "e", "2")]
    scans += [Entry("train", label, patient, "3") for label, patient in (("NCP", "f"), ("NCP", "g"))]
    scans += [Entry("train", "CP", "h", "4"), Entry("test", "CP", "i", "5")]
    assert [(f.kind, f.leak, f.message) for f in audit(scans).findings] == [
        ("duplicate-scan", True, "2 scan(s) occur in more than one split with the same content"),
        ("duplicate-scan", False, "1 scan(s) occur more than once within a split"),
        ("duplicate-scan", True, "1 scan(s) occur under different labels"),
    ]


def test_pairs_that_look_alike_are_counted_unless_their_content_is_the_same():
    scans = [Entry("train", "NCP", "a", "1"), Entry("train", "CP", "b", "2"), Entry("train", "CP", "c", "3")]
    scans += [Entry("test", "CP", "d", "4"), Entry("test", "NCP", "e", "5"), Entry("test", "CP", "f", "5")]
    pairs = [(0, 3, 0.99), (1, 3, 0.98), (2, 3, 0.97), (1, 2, 0.96), (4, 5, 1.0)]
    found = audit(scans, near=pairs)
    assert [(f.leak, f.message) for f in found.findings if f.kind == "near-duplicate"] == [
        (True, "3 pair(s) of scans look like one scan saved twice and are in different splits"),
        (False, "1 pair(s) of scans look like one scan saved twice, within a split"),
        (True, "1 pair(s) of scans look like one scan saved twice and have different labels"),
    ]
    assert found.near == tuple(pairs)


def test_scans_are_counted_by_split_and_class_and_patients_by_split():
    scans = [Entry("train", "NCP", "a", "1"), Entry("train", "NCP", "a", "2"), Entry("train", "CP", "b", "3")]
    result = audit([*scans, Entry("test", "CP", "c", "4")])
    assert result.scans == {"train": {"CP": 1, "NCP": 2}, "test": {"CP": 1}}
    assert result.patients == {"train": 2, "test": 1}
    assert result.spread == {}


def test_only_leaks_stop_and_only_those_not_allowed_by_name():
    scans = [Entry("train", "NCP", "a", "1"), Entry("test", "NCP", "a", "1"), Entry("test", "CP", "b", "2")]
    found = audit(scans)
    assert {f.kind for f in found.findings} == {"split-inside-split", "duplicate-scan", "empty-class"}
    assert {f.kind for f in found.stopping(())} == {"split-inside-split", "duplicate-scan"}
    assert {f.kind for f in found.stopping(("duplicate-scan",))} == {"split-inside-split"}
    assert found.stopping(("duplicate-scan", "split-inside-split")) == []
    assert found.to_dict()["leaks"] is True


def test_split_files_tell_least_quartiles_median_and_most_of_the_files_per_class(tmp_path):
    counts = {"NCP": (1, 2, 4, 9, 14), "CP": (3, 7)}
    tree = {
        label: {f"{label}{n}": {"s": [f"{i}.png" for i in range(n)]} for n in numbers}
        for label, numbers in counts.items()
    }
    (tmp_path / "train.json").write_text(json.dumps(tree))
    found = audit_splits({"train": tmp_path / "train.json"})
    # of two values, the quartiles lie a quarter and three quarters of the way between them
    assert found.spread == {"files": {"CP": [3, 4, 5, 6, 7], "NCP": [1, 2, 4, 9, 14]}}
    assert found.findings == ()


def dataset_of(folder, rows):
    """A packed dataset of the given rows, every scan of noise of its own."""
    scans = np.random.default_rng(0).integers(0, 256, (len(rows), 8, 16, 16), dtype=np.uint8)
    folder.mkdir()
    np.save(folder / "scans.npy", scans)
    hashes = [hashlib.sha256(scan.tobytes()).hexdigest() for scan in scans]
    packed.write_manifest(folder / "manifest.csv", [replace(r, sha256=h) for r, h in zip(rows, hashes, strict=True)])
    return folder


def row(number, label="NCP", split="train", **changes):
    return replace(Row(f"s{number}", f"p{number}", label, split, "nifti", "", "5;1;1", 40, ""), **changes)


def test_a_packed_dataset_tells_slice_counts_and_spacings_per_class(tmp_path):
    rows = [row(0, slices=20, spacing="1;0.5;0.6"), row(1, slices=40, spacing="3;0.7;0.8")]
    rows += [row(2, "CP", slices=300, spacing="5;0.9;0.4"), row(3, "CP", "test"), row(4, split="test", slices=30)]
    found = audit_packed(dataset_of(tmp_path / "data", rows))
    assert found.scans == {"train": {"CP": 1, "NCP": 2}, "test": {"CP": 1, "NCP": 1}}
    assert found.spread["slices"] == {"CP": [40, 105, 170, 235, 300], "NCP": [20, 25, 30, 35, 40]}
    middle = {name: {label: numbers[2] for label, numbers in per.items()} for name, per in found.spread.items()}
    assert middle["spacing_z_mm"] == {"CP": 5, "NCP": 3}
    assert middle["spacing_y_mm"] == pytest.approx({"CP": 0.95, "NCP": 0.7})
    assert middle["spacing_x_mm"] == pytest.approx({"CP": 0.7, "NCP": 0.8})


def test_findings_are_those_of_the_file_as_long_as_data_and_code_are_the_same(tmp_path):
    folder = dataset_of(tmp_path / "data", [row(0), row(1, split="test", patient_id="p0")])
    (found,) = write(folder).findings
    path = folder / "audit.json"
    tree = json.loads(path.read_text())
    noted = {**tree, "findings": [{"kind": "shortcut", "leak": False, "message": "from the file"}]}
    path.write_text(json.dumps(noted))
    assert [f.message for f in findings_of(folder)] == ["from the file"]
    for name, value in (("covidnet3d", "0.0.0"), ("manifest.csv", "other"), ("scans.npy", "other")):
        path.write_text(json.dumps({**noted, "of": {**tree["of"], name: value}}))
        assert findings_of(folder) == [found]
    for damaged in ("{", "[]", "{}", json.dumps({"of": tree["of"]})):
        path.write_text(damaged)
        assert findings_of(folder) == [found]


def test_a_refusal_names_every_leak_and_what_would_let_all_of_them_through(tmp_path):
    folder = dataset_of(tmp_path / "data", [row(0), row(1, patient_id="p9"), row(2, split="test", patient_id="p0")])
    with pytest.raises(CovidnetError) as caught:
        require_clean(folder, ("near-duplicate",))
    assert "  split-inside-split: all 1 patients of test are in train too\n" in str(caught.value)
    assert "-S data.allow='[near-duplicate, split-inside-split]'" in str(caught.value)
    require_clean(folder, ("split-inside-split",))


def of_classes(change, patients=25, scans=1):
    """Black scans of two classes, of so many patients each, after ``change(row, volume, number of the patient)``."""
    rows, volumes = [], np.zeros((2 * patients * scans, 4, 8, 8), np.uint8)
    for i, volume in enumerate(volumes):
        patient = i // scans
        rows.append(change(row(i, ("NCP", "CP")[patient % 2], patient_id=f"p{patient}"), volume, patient))
    return Packed(volumes, tuple(rows))


def measured(dataset):
    return {item.source: item for item in shortcuts.find(dataset)}


def nothing(row, volume, patient):
    return row


def test_what_is_the_same_for_all_scans_tells_no_class():
    for item in measured(of_classes(nothing)).values():
        assert (item.auc, item.low, item.high, item.flagged) == (0.5, 0.5, 0.5, False)


def test_classes_of_fewer_than_25_patients_are_not_measured():
    assert shortcuts.find(of_classes(nothing, patients=24, scans=2)) == ()
    enough, few = (
        of_classes(nothing),
        of_classes(lambda row, volume, patient: replace(row, label="Normal"), patients=12),
    )
    assert shortcuts.find(Packed(enough.scans[:25], tuple(replace(r, label="NCP") for r in enough.rows[:25]))) == ()
    both = Packed(np.concatenate([enough.scans, few.scans + 9]), (*enough.rows, *few.rows))
    assert measured(both)["border pixels"].auc == 0.5  # the third class, which alone has another border, is left out


def test_a_property_that_says_the_class_has_an_area_of_one_and_one_that_does_in_parts_has_its_own():
    def follow(row, volume, patient):
        odd = (patient // 2) % 5 == 0  # of a fifth of either class the format is that of the other
        return replace(
            row, slices=40 + 40 * (row.label == "CP"), source="dicom" if (row.label == "CP") != odd else "png"
        )

    found = measured(of_classes(follow))
    assert (found["slice count"].auc, found["slice count"].low, found["slice count"].high) == (1, 1, 1)
    assert found["slice count"].flagged
    # of the pairs of a CP and an NCP, 0.8 * 0.8 are in order and half of the 2 * 0.8 * 0.2 tied: less what folds differ
    share = found["file format"]
    assert share.auc == pytest.approx(0.64 + 0.32 / 2, abs=0.1)
    assert 0.55 < share.low < share.auc < share.high < 0.95
    assert found["spacing"].auc == 0.5


def test_scans_of_a_patient_are_not_told_by_the_patients_other_scans():
    rng = np.random.default_rng(0)
    counts = rng.permutation(50) * 10  # a patient's own, and no class's
    found = measured(of_classes(lambda row, volume, patient: replace(row, slices=int(counts[patient])), scans=6))
    assert found["slice count"].auc < 0.7
    assert not found["slice count"].flagged


def test_the_voxels_at_the_border_tell_a_class_and_those_inside_do_not():
    def frame(row, volume, patient):
        volume[1:-1, 1:-1, 1:-1] = 250 if row.label == "CP" else 5
        return row

    def rim(row, volume, patient):
        volume[1:-1, 1:-1, 1:-1] = np.random.default_rng(patient).integers(0, 250)
        volume[:, 0] = 0 if row.label == "CP" else 3
        return row

    assert measured(of_classes(frame))["border pixels"].auc == 0.5
    assert measured(of_classes(rim))["border pixels"].flagged


def test_a_flag_says_what_it_was_and_how_well_it_tells_the_class():
    found = (
        shortcuts.Shortcut("spacing", 0.912, 0.801, 0.984, True),
        shortcuts.Shortcut("slice count", 0.6, 0.5, 0.7, False),
    )
    (text,) = shortcuts.flags(found)
    assert text.startswith("spacing alone predicts the class: AUC 0.91 (0.80 to 0.98), flagged above 0.65;")
    (finding,) = audit(entries("train", "ab"), found_shortcuts=found).findings
    assert (finding.kind, finding.leak, finding.message) == ("shortcut", False, text)


def test_the_area_under_the_curve_of_three_classes_is_scikit_learns():
    rng = np.random.default_rng(0)
    targets, scores = rng.integers(0, 3, 60), rng.dirichlet((1, 1, 1), 60).round(1)  # with ties
    expected = [roc_auc_score(targets == k, scores[:, k]) for k in range(3)]
    assert shortcuts._auc(targets, scores) == pytest.approx(np.mean(expected), abs=1e-12)


def test_a_border_is_the_mean_the_spread_and_the_black_and_white_shares_of_each_face():
    volume = np.full((2, 2, 5), 100, np.uint8)
    volume[0, 0] = (0, 0, 0, 0, 255)
    faces = np.array(shortcuts._border(volume)).reshape(6, 4)  # first and last along D, H and W
    np.testing.assert_allclose(faces[:, 2:], [(0.4, 0.1), (0, 0), (0.4, 0.1), (0, 0), (0.25, 0), (0, 0.25)])
    np.testing.assert_allclose(faces[:, 0], [75.5, 100, 75.5, 100, 75, (255 + 300) / 4])
    assert faces[4, 1] == pytest.approx(np.std([0, 100, 100, 100]))
    assert faces[1, 1] == faces[3, 1] == 0
