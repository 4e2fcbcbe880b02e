"""The audit of packed scans: planted leaks, near duplicates and shortcuts are found, and none where none are."""

import hashlib
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter, zoom
from scipy.stats import rankdata

from covidnet import stages
from covidnet.config import parse
from covidnet.data import packed
from covidnet.data.audit import audit_packed, require_clean, write
from covidnet.data.audit.confirm import likeness
from covidnet.data.audit.near import near_duplicates, propose
from covidnet.data.audit.signatures import FLIPS, UNCUT, crop_matrices, every, signatures, signs, weights
from covidnet.data.preprocess import Spec, prepare
from covidnet.data.sources import read_scan
from covidnet.errors import CovidnetError, UsageError

SIZE = (16, 64, 64)
PHANTOM = {"patients": 60, "detail": [24, 64, 64]}


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Sixty phantoms of distinct seeds, ingested."""
    out = tmp_path_factory.mktemp("clean") / "dataset"
    settings = parse({"data": {"phantom": PHANTOM, "size": SIZE, "workers": 1}})
    stages.ingest(settings, out)
    return out


def changed(source, target, change):
    """A copy of a packed dataset after ``change(scans, rows)``."""
    dataset = packed.read(source)
    scans, rows = np.array(dataset.scans), list(dataset.rows)
    change(scans, rows)
    target.mkdir()
    np.save(target / "scans.npy", scans)
    hashed = [
        replace(row, sha256=hashlib.sha256(scan.tobytes()).hexdigest()) for row, scan in zip(rows, scans, strict=True)
    ]
    packed.write_manifest(target / "manifest.csv", hashed)
    return target


def rewindowed(volume, low=-1350, high=150):
    hu = np.arange(256) / 255 * 1400 - 1000
    return np.clip((hu - low) / (high - low) * 255, 0, 255).round().astype(np.uint8)[volume]


def as_jpeg(volume):
    slices = []
    for plane in volume:
        stream = io.BytesIO()
        Image.fromarray(plane).save(stream, "JPEG", quality=60)
        slices.append(np.asarray(Image.open(stream)))
    return np.stack(slices)


def cropped(volume, rows=2):
    inner = volume[:, rows:-rows, rows:-rows].astype(np.float32)
    return np.clip(
        zoom(inner, [a / b for a, b in zip(volume.shape, inner.shape, strict=True)], order=1), 0, 255
    ).astype(np.uint8)


RESAVED = {
    "rewindowed": rewindowed,
    "jpeg": as_jpeg,
    "mirrored": lambda volume: volume[:, :, ::-1],
    "turned over": lambda volume: volume[::-1],
    "mirrored and rewindowed": lambda volume: rewindowed(volume[:, :, ::-1]),
    "a slice cut off at either end": lambda volume: np.repeat(volume[1:-1], [2, *[1] * 12, 2], axis=0),
}


def test_phantoms_of_distinct_seeds_are_clean(clean):
    found = audit_packed(clean)
    assert found.findings == ()
    assert found.near == ()
    assert sum(found.patients.values()) == 60


@pytest.mark.parametrize("how", RESAVED)
def test_a_phantom_saved_anew_in_another_split_is_a_leak(clean, tmp_path, how):
    def plant(scans, rows):
        test = next(i for i, row in enumerate(rows) if row.split == "test")
        train = next(i for i, row in enumerate(rows) if row.split == "train" and row.label == rows[test].label)
        scans[test] = RESAVED[how](scans[train])
        planted.update((train, test))

    planted = set()
    found = audit_packed(changed(clean, tmp_path / "leaky", plant))
    assert [set(pair[:2]) for pair in found.near] == [planted]
    assert [(finding.kind, finding.leak) for finding in found.findings] == [("near-duplicate", True)]


@pytest.fixture(scope="module")
def real_volumes(real_scans):
    """The six labelled real scans, packed by lungs."""
    paths = sorted(real_scans.glob("covid-ct-md/nifti_256/*.nii.gz"))
    return np.stack([prepare(read_scan(path), Spec(size=SIZE)).volume for path in paths])


def test_six_real_people_are_six(real_volumes):
    assert near_duplicates(real_volumes) == []


@pytest.mark.parametrize("how", [*RESAVED, "cropped"])
def test_real_scans_saved_anew_are_found_each_with_its_original(real_volumes, how):
    copies = np.stack([{**RESAVED, "cropped": cropped}[how](volume) for volume in real_volumes])
    pairs = near_duplicates(np.concatenate([real_volumes, copies]))
    assert {(a, b) for a, b, _ in pairs} == {(i, i + 6) for i in range(6)}


def test_a_series_and_the_nifti_made_of_it_are_one_scan(real_volumes, real_scans):
    series = prepare(read_scan(real_scans / "covid-ct-md" / "dicom" / "P002"), Spec(size=SIZE)).volume
    pairs = near_duplicates(np.concatenate([real_volumes, series[None]]))
    assert [(a, b) for a, b, _ in pairs] == [(3, 6)]  # NCP_P002 is the fourth by name


def test_two_people_of_one_shape_are_two(clean):
    """Of thousands of scans some have signatures as alike as a scan's and its crop's: vessels and ribs tell them apart."""
    first, second = np.array(packed.read(clean).scans[[0, 2]], np.float32)
    shape, detail = gaussian_filter(first, (0.7, 1.5, 1.5)), second - gaussian_filter(second, (0.7, 1.5, 1.5))
    double = np.clip(shape + detail, 0, 255).astype(np.uint8)
    scans = np.concatenate([packed.read(clean).scans, double[None]])
    assert (0, 60) in {proposal.rows for proposal in propose(signatures(scans))}
    assert near_duplicates(scans) == []


def test_mirroring_is_a_change_of_signs_and_cropping_a_matrix():
    volume = np.random.default_rng(0).integers(0, 256, (8, 16, 16), dtype=np.uint8)
    (plain,), (mirrored,) = signatures(volume[None]), signatures(volume[None, :, :, ::-1])
    np.testing.assert_allclose(plain * signs(np.array([[0, 0, 1]]), plain.shape)[0], mirrored, atol=2e-3)
    # the coefficients of a cut cosine by numerical integration
    x = (np.arange(4000) + 0.5) / 4000
    cut = np.cos(np.pi * x * (1 - 0.08))  # first basis function without its last 8 %
    expected = [np.mean(cut * (np.sqrt(2) if k else 1) * np.cos(np.pi * k * x)) for k in range(8)]
    matrix = crop_matrices(8)[17 * 8 + 16]  # nothing off the start, 8 % off the end
    np.testing.assert_allclose(matrix[:, 1] / np.sqrt(2), expected, atol=2e-3)


def test_a_dataset_of_one_scan_or_of_blank_ones_has_no_near_duplicates_to_find():
    assert near_duplicates(np.zeros((1, *SIZE), np.uint8)) == []
    assert near_duplicates(np.zeros((3, *SIZE), np.uint8)) == []


def labelled(clean, tmp_path, change):
    """The clean dataset with two classes of thirty patients, after ``change(row, index)``."""

    def relabel(scans, rows):
        for i, row in enumerate(rows):
            rows[i] = change(replace(row, label="NCP" if i % 2 else "Normal"), i)

    return changed(clean, tmp_path / "labelled", relabel)


def test_labels_that_follow_the_slice_count_or_the_format_are_flagged(clean, tmp_path):
    def follow(row, i):
        return replace(row, slices=row.slices + (60 if row.label == "NCP" else 0), source="dicom" if i % 2 else "nifti")

    found = audit_packed(labelled(clean, tmp_path, follow))
    flagged = {item.source for item in found.shortcuts if item.flagged}
    assert flagged == {"slice count", "file format"}
    assert [f.leak for f in found.findings if f.kind == "shortcut"] == [False, False]


def test_labels_that_follow_nothing_are_not_flagged(clean, tmp_path):
    found = audit_packed(labelled(clean, tmp_path, lambda row, i: row))
    assert {item.source for item in found.shortcuts} == {"spacing", "slice count", "file format", "border pixels"}
    assert not any(item.flagged for item in found.shortcuts)


def test_ingest_leaves_the_audit_as_json_and_as_a_page_that_stands_alone(clean):
    tree = json.loads((clean / "audit.json").read_text())
    assert tree["leaks"] is False
    assert tree["spread"]["slices"]["NCP"][0] >= 8
    page = (clean / "audit.html").read_text()
    assert "No leak found" in page
    assert page.count("data:image/png;base64,") == 12  # four of each class
    assert not re.search(r'(src|href)="(?!data:)', page)


def overlapping(scans, rows):
    train, test = (next(i for i, row in enumerate(rows) if row.split == name) for name in ("train", "test"))
    rows[test] = replace(rows[test], patient_id=rows[train].patient_id)


def test_a_leak_stops_the_later_stages_until_it_is_allowed_by_name(clean, tmp_path):
    leaky = changed(clean, tmp_path / "leaky", overlapping)
    with pytest.raises(CovidnetError, match=r"patient-overlap: 1 patient.*\n.*data.allow='\[patient-overlap\]'"):
        require_clean(leaky, ())
    require_clean(leaky, ("patient-overlap",))
    with pytest.raises(CovidnetError, match="patient-overlap"):
        require_clean(leaky, ("near-duplicate",))


def test_an_audit_is_not_believed_for_other_data(clean, tmp_path):
    leaky = changed(clean, tmp_path / "leaky", overlapping)
    for name in ("audit.json", "audit.html"):
        (leaky / name).write_bytes((clean / name).read_bytes())
    with pytest.raises(CovidnetError, match="patient-overlap"):
        require_clean(leaky, ())
    assert write(leaky).leaks
    assert json.loads((leaky / "audit.json").read_text())["leaks"] is True


def test_a_voxel_that_changed_since_it_was_ingested_stops_the_later_stages(clean, tmp_path):
    spoiled = tmp_path / "spoiled"
    shutil.copytree(clean, spoiled)
    with (spoiled / "scans.npy").open("r+b") as stream:
        stream.seek(-1, 2)
        last = stream.read(1)[0]
        stream.seek(-1, 2)
        stream.write(bytes([last ^ 1]))
    with pytest.raises(CovidnetError, match=r"damaged: 1 of 60 scans, phantom-00059 .*remove .* run `covidnet ingest`"):
        require_clean(spoiled, ())
    with (spoiled / "scans.npy").open("r+b") as stream:
        stream.truncate(10_000)
    with pytest.raises(CovidnetError, match=r"scans.npy is damaged .*run `covidnet ingest` again"):
        require_clean(spoiled, ())


def test_ingest_and_training_stop_on_the_same_leak(tmp_path):
    """The dataset is there to look at, and nothing goes on from it."""
    out = tmp_path / "dataset"
    settings = {
        "classes": ["NCP", "Normal"],
        "data": {"phantom": {**PHANTOM, "patients": 12}, "size": SIZE, "workers": 1},
    }
    stages.ingest(parse(settings), out)
    manifest = packed.read_manifest(out / "manifest.csv")
    torn = [replace(row, patient_id=manifest[0].patient_id) if row.split == "test" else row for row in manifest]
    packed.write_manifest(out / "manifest.csv", torn)
    for stage in (
        lambda config: stages.ingest(config, out),
        lambda config: stages.search(config, out, tmp_path / "search", "S"),
        lambda config: stages.baseline(config, out, tmp_path / "baseline", "mc3_18"),
        lambda config: stages.evaluate(config, out, [], tmp_path / "evaluate"),
    ):
        with pytest.raises(CovidnetError, match="leaks"):
            stage(parse(settings))


def test_kinds_to_allow_may_be_written_with_underscores_and_an_unknown_one_is_refused():
    assert parse({"data": {"allow": ["patient_overlap"]}}).data.allow == ("patient-overlap",)
    with pytest.raises(UsageError, match="allow"):
        parse({"data": {"allow": ["everything"]}})


@pytest.mark.parametrize("shape", [(8, 16, 16), (11, 20, 25)])
def test_a_signature_is_the_low_frequencies_of_the_voxels_ranks(shape):
    volume = np.random.default_rng(0).integers(0, 40, shape, dtype=np.uint8)  # with ties
    ranks = (rankdata(volume).reshape(shape) - 0.5) / volume.size - 0.5
    expected = dctn(ranks, norm="ortho")[:8, :16, :16] / np.sqrt(volume.size)
    np.testing.assert_allclose(signatures(volume[None])[0], expected, atol=3e-5)
    np.testing.assert_array_equal(signatures(volume[None] * 3 + 7), signatures(volume[None]))  # any brightness


def test_every_mirroring_is_a_change_of_signs_and_weights_are_squared_frequencies():
    volume = np.random.default_rng(0).integers(0, 256, (8, 16, 16), dtype=np.uint8)
    plain = signatures(volume[None])[0]
    for flip, change in zip(FLIPS, signs(FLIPS, plain.shape), strict=True):
        mirrored = signatures(np.flip(volume, np.flatnonzero(flip))[None])[0]
        np.testing.assert_allclose(plain * change, mirrored, atol=1e-4)
    assert len({tuple(flip) for flip in FLIPS}) == 8
    assert weights((2, 3, 4)).tolist() == [
        [[z * z + y * y + x * x for x in range(4)] for y in range(3)] for z in range(2)
    ]


@pytest.mark.parametrize(("start", "end"), [(-8, 8), (8, -8), (3, 5), (-2, -7), (0, 0)])
def test_a_crop_matrix_takes_cosines_to_cut_ones_whose_edge_is_repeated(start, end):
    x = (np.arange(4000) + 0.5) / 4000
    matrix = crop_matrices(6)[17 * (start + 8) + end + 8]
    for k in range(6):
        cut = np.cos(np.pi * k * np.clip(start / 100 + x * (1 - (start + end) / 100), 0, 1)) * (np.sqrt(2) if k else 1)
        expected = [np.mean(cut * (np.sqrt(2) if j else 1) * np.cos(np.pi * j * x)) for j in range(6)]
        np.testing.assert_allclose(matrix[:, k], expected, atol=3e-3)


def test_coarser_steps_are_every_few_crops_of_either_end_and_all_hold_the_uncut():
    assert every(1).tolist() == list(range(17 * 17))
    assert every(8).tolist() == [0, 8, 16, 136, 144, 152, 272, 280, 288]
    assert UNCUT == 144


def noise_in_parts(seed):
    """Two volumes that share half of their noise, each almost flat somewhere else."""
    rng = np.random.default_rng(seed)
    shared, *own = rng.normal(0, 20, (3, 6, 18, 20))
    first, second = (128 + shared + part for part in own)
    first[:, :, :8], second[:, 12:] = rng.normal(100, 3, (6, 18, 8)), rng.normal(100, 3, (6, 6, 20))
    return first.clip(0, 255).astype(np.uint8), second.clip(0, 255).astype(np.uint8)


def test_likeness_is_the_mean_correlation_of_the_windows_that_show_something_in_both():
    pair = noise_in_parts(0)
    padded = [np.pad(volume.astype(float), ((1, 1), (4, 4), (4, 4)), mode="symmetric") for volume in pair]
    first, second = (sliding_window_view(volume, (3, 9, 9)).reshape(-1, 243) for volume in padded)
    shown = (first.var(axis=1) > 25) & (second.var(axis=1) > 25)
    correlations = [np.corrcoef(a, b)[0, 1] for a, b in zip(first[shown], second[shown], strict=True)]
    assert 0.2 < shown.mean() < 0.8
    assert likeness(*pair, np.full(3, UNCUT)) == pytest.approx(np.mean(correlations), abs=1e-3)


def test_likeness_knows_no_brightness_and_air_is_like_nothing():
    volume = np.random.default_rng(0).integers(0, 100, (6, 18, 20), dtype=np.uint8)
    assert likeness(volume, volume * 2 + 30, np.full(3, UNCUT)) == pytest.approx(1, abs=1e-4)
    assert likeness(volume, 255 - volume, np.full(3, UNCUT)) == pytest.approx(-1, abs=1e-4)
    air = np.random.default_rng(1).integers(0, 9, volume.shape, dtype=np.uint8)  # of variance 7
    assert likeness(air, air, np.full(3, UNCUT)) == 0
    assert likeness(air, volume, np.full(3, UNCUT)) == 0


def waves(starts, ends):
    """A known function of place on ``(12, 24, 30)`` voxels, after the given shares are cut off each axis."""
    sides = zip(starts, ends, (12, 24, 30), strict=True)
    z, y, x = (start + (np.arange(n) + 0.5) / n * (1 - start - end) for start, end, n in sides)
    z, y, x = np.meshgrid(z, y, x, indexing="ij")
    return (128 + 60 * np.sin(13 * z + 17 * y) + 60 * np.cos(19 * x - 11 * y + 7 * z)).round().astype(np.uint8)


@pytest.mark.parametrize("hundredths", [(3, 4, 8, 0, 1, 7), (0, 8, 6, 6, 8, 1), (8, 1, 0, 5, 4, 4)])
def test_a_scan_is_like_its_crop_once_it_is_cropped_likewise(hundredths):
    shares = np.reshape(hundredths, (3, 2))  # cut off either end of each axis
    second = waves(*shares.T / 100)
    assert likeness(waves([0] * 3, [0] * 3), second, 17 * (shares[:, 0] + 8) + shares[:, 1] + 8) > 0.99
    assert likeness(waves([0] * 3, [0] * 3), second, 17 * (shares[:, 1] + 8) + shares[:, 0] + 8) < 0.95
