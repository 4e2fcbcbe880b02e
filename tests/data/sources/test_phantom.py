"""The synthetic dataset: reproducible, anatomically right, and without a short cut to the label."""

import hashlib
import subprocess
import sys
from functools import lru_cache

import numpy as np
import pytest
from scipy import ndimage

from covidnet.data.sources import phantom
from covidnet.data.sources.phantom import Phantom, vessels
from covidnet.data.sources.phantom.grid import Grid, Pose
from covidnet.errors import UsageError

CHEAP = (24, 64, 64)
HEALTHY = range(4)  # indices whose anatomy is checked


@lru_cache(maxsize=256)
def made(
    label: str, index: int, difficulty: float = 0.5, detail: tuple[int, int, int] = CHEAP, seed: int = 3
) -> Phantom:
    return phantom.generate(label, seed=seed, index=index, difficulty=difficulty, detail=detail)


def fingerprint(scan: Phantom) -> str:
    return hashlib.sha256(scan.scan.voxels.tobytes() + scan.lesions.tobytes()).hexdigest()


def airspace(index: int, difficulty: float = 0.0, detail: tuple[int, int, int] = (40, 96, 96)) -> np.ndarray:
    """Air inside the body of a healthy phantom: below -500 HU and, slice by slice, not open to the outside."""
    voxels = made("Normal", index, difficulty, detail).scan.voxels
    inside = np.zeros(voxels.shape, bool)
    for level, plane in enumerate(voxels):
        dark = plane < -500
        outside, _ = ndimage.label(dark)
        edges = np.unique(np.concatenate([outside[0], outside[-1], outside[:, 0], outside[:, -1]]))
        inside[level] = dark & ~np.isin(outside, edges)
    return inside


def lungs(index: int) -> tuple[np.ndarray, np.ndarray]:
    """The two largest pieces of lung of a healthy phantom, (patient's right, patient's left), parted by an erosion."""
    pieces, count = ndimage.label(ndimage.binary_erosion(airspace(index), np.ones((1, 3, 3))))
    sizes = ndimage.sum_labels(np.ones_like(pieces), pieces, range(1, count + 1))
    first, second = (pieces == number for number in np.argsort(sizes)[-2:] + 1)
    return (first, second) if first.nonzero()[2].mean() < second.nonzero()[2].mean() else (second, first)


def test_the_same_arguments_give_the_same_scan_whatever_was_made_before() -> None:
    first = fingerprint(phantom.generate("NCP", seed=3, index=11, detail=CHEAP))
    phantom.generate("CP", seed=3, index=12, detail=(20, 48, 48))
    assert fingerprint(phantom.generate("NCP", seed=3, index=11, detail=CHEAP)) == first
    assert fingerprint(phantom.generate("NCP", seed=4, index=11, detail=CHEAP)) != first
    assert fingerprint(phantom.generate("NCP", seed=3, index=12, detail=CHEAP)) != first


def test_another_process_makes_the_same_scan() -> None:
    code = (
        "import hashlib; from covidnet.data.sources import phantom\n"
        f"p = phantom.generate('CP', seed=3, index=5, detail={CHEAP})\n"
        "print(hashlib.sha256(p.scan.voxels.tobytes() + p.lesions.tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == fingerprint(phantom.generate("CP", seed=3, index=5, detail=CHEAP))


def test_an_unknown_label_is_answered_with_the_valid_ones() -> None:
    with pytest.raises(UsageError, match="NCP, CP, Normal"):
        phantom.generate("Covid", seed=0, index=0)


@pytest.mark.parametrize("difficulty", [-0.1, 1.5])
def test_a_difficulty_outside_its_range_is_refused(difficulty: float) -> None:
    with pytest.raises(UsageError, match=r"0\.\.1"):
        phantom.generate("NCP", seed=0, index=0, difficulty=difficulty)


@pytest.mark.parametrize("label", phantom.LABELS)
def test_a_phantom_is_a_scan_in_hounsfield_units(label: str) -> None:
    scan = made(label, 7).scan
    assert scan.voxels.dtype == np.int16
    assert (scan.intensity, scan.format) == ("hu", "phantom")
    assert scan.voxels.min() >= -1024
    assert 300 < scan.voxels.max() <= 3071  # bone
    assert scan.shape[1:] == CHEAP[1:]
    assert made(label, 7).lesions.shape == scan.shape
    assert made(label, 7).lesions.dtype == bool


def test_scanners_differ_in_slices_spacing_and_field_of_view() -> None:
    scans = [made("Normal", index).scan for index in range(24)]
    slices = [scan.shape[0] for scan in scans]
    assert min(slices) >= 0.7 * CHEAP[0] - 1
    assert max(slices) <= 1.3 * CHEAP[0] + 1
    assert max(slices) - min(slices) > 0.3 * CHEAP[0]
    fields_mm = [scan.spacing_mm[2] * scan.shape[2] for scan in scans]
    assert min(fields_mm) > 280
    assert max(fields_mm) < 560
    assert np.std(fields_mm) > 15


@pytest.mark.parametrize("index", range(6))
def test_the_label_changes_lung_tissue_and_nothing_else(index: int) -> None:
    healthy = made("Normal", index, detail=(40, 96, 96)).scan
    lung = ndimage.binary_closing(airspace(index, 0.5), np.ones((1, 9, 9)))
    near = ndimage.binary_dilation(lung, np.ones((3, 5, 5)), iterations=2)
    for label in ("NCP", "CP"):
        ill = made(label, index, detail=(40, 96, 96)).scan
        assert ill.spacing_mm == healthy.spacing_mm
        assert ill.shape == healthy.shape
        change = ill.voxels.astype(int) - healthy.voxels
        assert change.min() >= -1  # pneumonia only makes lung denser
        assert not change[~near].any()


@pytest.mark.parametrize("difficulty", [0.0, 1.0])
@pytest.mark.parametrize("label", ["NCP", "CP"])
def test_every_ill_scan_has_lesions_and_they_are_denser_than_the_healthy_lung(label: str, difficulty: float) -> None:
    for index in range(12):
        ill, healthy = made(label, index, difficulty), made("Normal", index, difficulty)
        assert ill.lesions.any()
        assert np.mean(ill.scan.voxels[ill.lesions] - healthy.scan.voxels[ill.lesions].astype(float)) > 20


def test_the_smallest_grid_that_the_configuration_allows_still_holds_lesions() -> None:
    for index in range(10):
        assert made("NCP", index, 1.0, (8, 16, 16)).lesions.any()
        assert made("CP", index, 1.0, (8, 16, 16)).lesions.any()


def test_a_healthy_scan_has_no_lesions() -> None:
    assert not any(made("Normal", index, difficulty).lesions.any() for index in range(8) for difficulty in (0.0, 1.0))


def test_lesions_fade_as_the_difficulty_rises() -> None:
    def contrast_hu(difficulty: float) -> float:
        values = []
        for index in range(10):
            for label in ("NCP", "CP"):
                ill = made(label, index, difficulty)
                values.append(np.mean((ill.scan.voxels - made("Normal", index, difficulty).scan.voxels)[ill.lesions]))
        return float(np.mean(values))

    easy, medium, hard = (contrast_hu(difficulty) for difficulty in (0.0, 0.5, 1.0))
    assert easy > medium > 1.1 * hard


def test_covid_pneumonia_is_more_bilateral_and_more_peripheral() -> None:
    share_of_lesser_side: dict[str, list[float]] = {"NCP": [], "CP": []}
    depth_mm: dict[str, list[float]] = {"NCP": [], "CP": []}
    for index in range(20):
        lung = ndimage.binary_closing(airspace(index, 0.5, CHEAP), np.ones((1, 7, 7)))
        spacing = made("Normal", index).scan.spacing_mm
        below_pleura = ndimage.distance_transform_edt(lung, sampling=spacing)
        for label in ("NCP", "CP"):
            lesions = made(label, index).lesions
            right = lesions[:, :, : lesions.shape[2] // 2].sum() / lesions.sum()
            share_of_lesser_side[label].append(min(right, 1 - right))
            depth_mm[label].append(float(below_pleura[lesions].mean()))
    assert np.mean(share_of_lesser_side["NCP"]) > 2 * np.mean(share_of_lesser_side["CP"])
    assert np.mean(depth_mm["NCP"]) < 0.9 * np.mean(depth_mm["CP"])


@pytest.mark.parametrize("index", HEALTHY)
def test_two_separate_lungs_of_human_size(index: int) -> None:
    right, left = lungs(index)
    ml = np.prod(made("Normal", index, 0.0, (40, 96, 96)).scan.spacing_mm) / 1000
    assert 600 < left.sum() * ml < right.sum() * ml < 3500  # the heart takes its room from the left lung


@pytest.mark.parametrize("index", HEALTHY)
def test_lung_and_muscle_have_their_densities(index: int) -> None:
    voxels = made("Normal", index, 0.0, (40, 96, 96)).scan.voxels
    right, left = lungs(index)
    assert -930 < np.median(voxels[right | left]) < -730
    tissue = voxels[(voxels > 0) & (voxels < 120)]
    assert 30 < np.median(tissue) < 75
    assert np.median(voxels[:, 0]) < -960  # air above the patient


@pytest.mark.parametrize("index", HEALTHY)
def test_the_heart_lies_to_the_patients_left(index: int) -> None:
    voxels = made("Normal", index, 0.0, (40, 96, 96)).scan.voxels
    right, left = lungs(index)
    areas = (right | left).sum((1, 2))
    level = int(np.flatnonzero(areas > 0.9 * areas.max()).mean())
    rows = right[level].any(1) & left[level].any(1)
    rows &= np.arange(len(rows)) < np.flatnonzero(rows).mean()  # the front half, where the heart is
    right_edge = np.array([np.flatnonzero(row).max() for row in right[level][rows]])
    left_edge = np.array([np.flatnonzero(row).min() for row in left[level][rows]])
    assert (right_edge + left_edge).mean() / 2 > spine_column(voxels) + 1


def spine_column(voxels: np.ndarray) -> float:
    """Mean column of bone in the middle third, at the back."""
    third = voxels.shape[2] // 3
    bone = voxels[:, voxels.shape[1] // 2 :, third : 2 * third] > 180
    return float(bone.nonzero()[2].mean()) + third


@pytest.mark.parametrize("index", HEALTHY)
def test_the_spine_lies_behind_the_lungs_centre(index: int) -> None:
    voxels = made("Normal", index, 0.0, (40, 96, 96)).scan.voxels
    right, left = lungs(index)
    middle = slice(voxels.shape[2] * 2 // 5, voxels.shape[2] * 3 // 5)
    bone = (voxels[..., middle] > 250).nonzero()[1]
    assert bone.mean() > (right | left).nonzero()[1].mean() + 5


@pytest.mark.parametrize("index", HEALTHY)
def test_the_trachea_is_a_small_air_column_in_the_midline_at_the_top(index: int) -> None:
    scan = made("Normal", index, 0.0, (40, 96, 96)).scan
    air, _ = ndimage.label(airspace(index)[1])
    spine = spine_column(scan.voxels)
    columns = [where.mean() for number in range(1, air.max() + 1) if len(where := (air == number).nonzero()[1]) > 3]
    nearest = min(columns, key=lambda column: abs(column - spine))
    assert abs(nearest - spine) * scan.spacing_mm[2] < 15


@pytest.mark.parametrize("index", HEALTHY)
def test_the_liver_lies_on_the_right_of_the_abdomen(index: int) -> None:
    last = made("Normal", index, 0.0, (40, 96, 96)).scan.voxels[-6:]
    body = ndimage.binary_fill_holes(last > -300)
    middle = last.shape[2] // 2
    right, left = last[..., :middle][body[..., :middle]], last[..., middle:][body[..., middle:]]
    assert np.mean(right > 20) > np.mean(left > 20)


def plain_grid(spacing_mm: float) -> Grid:
    pose = Pose((1.0, 1.0, 1.0), (0.0, 0.0), -40.0, 0.0, 0.0, 0.0, 0.0)
    size = (round(340 / spacing_mm), round(360 / spacing_mm), round(360 / spacing_mm))
    return Grid(size, slice(0, size[1]), (spacing_mm, spacing_mm, spacing_mm), pose, np.random.default_rng(0))


@pytest.mark.parametrize("spacing_mm", [3.0, 6.0])
def test_a_vessel_fills_its_own_volume_at_any_resolution(spacing_mm: float) -> None:
    pipe = vessels.Branches(
        np.array([[20.0, -30.0, -40.0]]), np.array([[120.0, 10.0, -40.0]]), np.array([1.2]), np.array([0])
    )
    filled = vessels.fill(plain_grid(spacing_mm), pipe, np.random.default_rng(1))
    volume_mm3 = np.pi * 1.2**2 * np.hypot(100.0, 40.0)
    assert filled.sum() * spacing_mm**3 == pytest.approx(volume_mm3, rel=0.02)


def test_smooth_noise_has_unit_variance_and_the_asked_width() -> None:
    grid = plain_grid(4.0)
    noise = np.stack([grid.smooth(np.random.default_rng(seed), 20.0) for seed in range(3)])
    assert noise.mean() == pytest.approx(0.0, abs=0.03)
    assert noise.std() == pytest.approx(1.0, rel=0.08)
    step = np.mean(noise[..., 1:] * noise[..., :-1])
    far = np.mean(noise[..., 10:] * noise[..., :-10])
    assert step > 0.9  # one voxel of 4 mm on: nearly the same
    assert abs(far) < 0.2  # two widths on: unrelated
