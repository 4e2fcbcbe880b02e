"""The published layouts, in miniature, from generated volumes and, where they are here, real slices."""

import csv
import json
import shutil

import nibabel
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from covidnet import stages
from covidnet.config import Config, parse
from covidnet.data import datasets, ingest, packed
from covidnet.errors import UsageError


def chest(patient, depth=24, side=48):
    """HU ``(D, H, W)`` of a body with two lungs and what else a patient has in them."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (depth, side, side)), indexing="ij")
    hu = np.where(x**2 + y**2 < 0.8, 40, -1000)
    for centre in (-0.4, 0.4):
        hu[((x - centre) / 0.3) ** 2 + (y / 0.5) ** 2 + z**2 < 1] = -850
    own = gaussian_filter(np.random.default_rng(patient).normal(size=hu.shape), 1.5)
    return (hu + np.where(hu == -850, np.clip(6000 * own, -100, 700), 0)).astype(np.int16)


def mosmed(root, numbers):
    """``studies/CT-x/study_0001.nii.gz`` as COVID19_1110 unpacks, with the masks and papers beside it."""
    for grade, members in numbers.items():
        for number in members:
            path = root / "COVID19_1110" / "studies" / grade / f"study_{number:04d}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            voxels = chest(number).transpose(2, 1, 0)[::-1, ::-1, ::-1]
            nibabel.save(nibabel.Nifti1Image(voxels, np.diag([7.0, 7.0, 10.0, 1.0])), path)
    masks = root / "COVID19_1110" / "masks"
    masks.mkdir()
    (masks / "study_0255_mask.nii.gz").write_bytes(b"not a scan")
    (root / "COVID19_1110" / "dataset_registry.xlsx").write_bytes(b"not a scan")


def pictures(folder, volume, name, dtype):
    folder.mkdir(parents=True)
    for index, plane in enumerate(volume):
        Image.fromarray(plane.astype(dtype)).save(folder / name.format(index))


def listing(path, scans):
    """An authors' split file from ``(class folder, patient, scan, files)``."""
    tree = {}
    for label, patient, scan, files in scans:
        tree.setdefault(label, {}).setdefault(patient, {})[scan] = files
    path.write_text(json.dumps(tree))
    return str(path)


def config(source, root, **data) -> Config:
    return parse({"data": {"source": source, "root": str(root), "workers": 1, **data}})


@pytest.fixture
def grades(tmp_path):
    root = tmp_path / "raw"
    mosmed(root, {"CT-0": [1, 2, 3, 4], "CT-1": [5, 6], "CT-2": [7], "CT-3": [8], "CT-4": [9]})
    return root


def test_mosmed_is_one_line_its_grades_become_two_classes_and_stay_in_the_manifest(grades, tmp_path):
    settings = config("mosmed", grades)
    assert settings.classes == ("NCP", "Normal")  # of the three configured, the two that MosMedData has
    stages.ingest(settings, tmp_path / "out")
    rows = packed.read(tmp_path / "out").rows
    assert sorted((row.label, row.severity) for row in rows) == [
        ("NCP", "CT-1"), ("NCP", "CT-1"), ("NCP", "CT-2"), ("NCP", "CT-3"), ("NCP", "CT-4"),
        ("Normal", "CT-0"), ("Normal", "CT-0"), ("Normal", "CT-0"), ("Normal", "CT-0"),
    ]  # fmt: skip
    assert {row.split for row in rows} == {"train", "validation", "test"}


def test_the_authors_lists_give_the_test_split_and_what_they_miss_is_counted_and_listed(grades, tmp_path):
    def entry(grade, number):
        return (grade, f"{number:04d}", f"{number:04d}", [f"study_{number:04d}.nii.gz"])

    train = [entry("CT-0", 1), entry("CT-0", 2), entry("CT-1", 5), entry("CT-2", 7), entry("CT-1", 77)]
    test = [entry("CT-0", 3), entry("CT-3", 8)]
    splits = [listing(tmp_path / "nii_train.json", train), listing(tmp_path / "nii_test.json", test)]
    settings = config("mosmed", grades, splits=splits)
    metrics = stages.ingest(settings, tmp_path / "out")
    assert (metrics["scans"], metrics["missing"], metrics["unlisted"]) == (6, 1, 3)
    with (tmp_path / "out" / "missing.csv").open() as stream:
        rows = {row["scan"]: row["reason"] for row in csv.DictReader(stream)}
    assert rows["NCP/0077/0077"] == "in the split files, not under data.root"
    unlisted = [name for name, reason in rows.items() if "not in the split files" in reason]
    assert [name.split("/")[0] for name in unlisted] == ["Normal", "NCP", "NCP"]
    assert not any(number in name for name in unlisted for number in ("0004", "0006", "0009"))  # it may be anyone
    assert [ingest.path_of(settings, name).name for name in unlisted] == [
        f"study_{number:04d}.nii.gz" for number in (4, 6, 9)
    ]
    found = packed.read(tmp_path / "out").rows
    assert sorted((row.split, row.severity) for row in found if row.split == "test") == [
        ("test", "CT-0"),
        ("test", "CT-3"),
    ]
    # one patient of each class leaves the training list for validation
    assert sorted((row.split, row.label) for row in found if row.split != "test") == [
        ("train", "NCP"), ("train", "Normal"), ("validation", "NCP"), ("validation", "Normal"),
    ]  # fmt: skip


def test_every_scan_of_the_official_mosmed_lists_has_its_place_in_the_published_folder(real_scans, tmp_path):
    lists = [real_scans / "official-splits" / "mosmed" / name for name in ("nii_train.json", "nii_test.json")]
    for path in lists:
        for grade, _, _, files in datasets.read_list(path):
            target = tmp_path / "studies" / grade / files[0]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
    data = config("mosmed", tmp_path, splits=[str(path) for path in lists]).data
    assert datasets.missing(data) == ([], [])
    found = datasets.scans(data)
    # the dataset's paper: 254 CT-0 and 856 others, 1110 in all
    assert [sum(scan.label == label for scan in found) for label in ("Normal", "NCP")] == [254, 856]
    assert sum(scan.split == "test" for scan in found) == 331


def test_the_official_ccccii_list_is_matched_by_class_patient_and_scan(real_scans, tmp_path):
    path = real_scans / "official-splits" / "ccccii" / "ct_test.json"
    for label, patient, scan, files in datasets.read_list(path):
        folder = tmp_path / "dataset_cleaned" / label / patient / scan
        folder.mkdir(parents=True)
        (folder / files[0]).touch()
    empty = listing(tmp_path / "train.json", [])
    data = config("ccccii", tmp_path, splits=[empty, str(path)]).data
    assert datasets.missing(data) == ([], [])
    per_class = [sum(scan.label == label for scan in datasets.scans(data)) for label in ("CP", "NCP", "Normal")]
    assert per_class == [303, 302, 193]  # ct_statistics.json


def test_real_slices_in_the_ccccii_layout_are_packed(real_scans, tmp_path):
    root = tmp_path / "raw"
    shutil.copytree(real_scans / "covid-ct-md" / "png_ccccii_layout", root)
    lists = [str(root / "index.json"), listing(tmp_path / "v.json", []), listing(tmp_path / "t.json", [])]
    metrics = stages.ingest(config("ccccii", root, splits=lists), tmp_path / "out")
    assert (metrics["scans"], metrics["rejected"], metrics["missing"]) == (3, 0, 0)
    dataset = packed.read(tmp_path / "out")
    assert [row.label for row in dataset.rows] == ["CP", "NCP", "Normal"]
    assert {row.source for row in dataset.rows} == {"slices"}


def test_covidctset_folders_number_their_classes_and_hold_several_scans_of_a_patient(tmp_path):
    root = tmp_path / "COVID-CTset"
    for part, patients in {"covid1": [1, 3], "covid2": [5], "normal1": [146], "normal4": [222, 223]}.items():
        for patient in patients:
            for scan in ("SR_2", "SR_3"):
                name = f"137{part.rstrip('0123456789')}_patient{patient}_{scan}_IM{{:05d}}.tif"
                pictures(
                    root / part / f"patient{patient}" / scan,
                    chest(10 * patient + int(scan[-1])) + 1024,
                    name,
                    np.uint16,
                )
    stages.ingest(config("covidctset", tmp_path), tmp_path / "out")
    rows = packed.read(tmp_path / "out").rows
    assert [sum(row.label == label for row in rows) for label in ("NCP", "Normal")] == [6, 6]
    splits_of = {}
    for row in rows:
        splits_of.setdefault(row.patient_id, set()).add(row.split)
    assert len(splits_of) == 6
    assert all(len(splits) == 1 for splits in splits_of.values())


def test_a_folder_of_another_layout_is_told_what_was_expected(tmp_path):
    (tmp_path / "raw").mkdir()
    with pytest.raises(UsageError, match=r"no scan of mosmed under .*expected studies/CT-0"):
        datasets.scans(config("mosmed", tmp_path / "raw").data)


def test_a_list_with_a_class_of_another_dataset_is_refused(grades, tmp_path):
    path = listing(tmp_path / "train.json", [("CP", "1", "1", ["0000.png"])])
    with pytest.raises(UsageError, match=r"'CP' is no class of mosmed"):
        datasets.scans(config("mosmed", grades, splits=[path, path]).data)


def test_a_scan_that_lies_there_twice_is_refused(grades):
    shutil.copytree(grades / "COVID19_1110", grades / "copy")
    with pytest.raises(UsageError, match="twice"):
        datasets.scans(config("mosmed", grades).data)


def test_split_files_of_a_source_without_lists_are_a_usage_error():
    with pytest.raises(UsageError, match=r"data\.splits"):
        config("nifti", "x", splits=["a.json", "b.json"])
