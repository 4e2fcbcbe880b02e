"""Cropping to the lungs, windowing and resizing, on torsos of known geometry and against other arithmetic."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from covidnet.data import preprocess
from covidnet.data.lungs import find
from covidnet.data.preprocess import NO_LUNGS, Spec, box_to_scan, crop_and_resize, prepare
from covidnet.data.scan import Scan
from covidnet.errors import CovidnetError

SHAPE = (40, 96, 96)
SPACING_MM = (7.0, 4.0, 4.0)
RADII = (14.0, 20.0, 13.0)  # of a lung, in voxels
CENTRES = ((20.0, 46.0, 28.0), (20.0, 46.0, 66.0))


def ellipsoid(centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    grid = np.indices(SHAPE).reshape(3, -1).T
    inside = (((grid - centre) / radii) ** 2).sum(axis=1) <= 1
    return inside.reshape(SHAPE)


def torso(lungs: int = 2, noise_hu: float = 0.0, table: int = 82) -> np.ndarray:
    """Body cylinder with ellipsoid lungs, a trachea that leaves at the top, a hollow table and the scanner's circle."""
    hu = np.full(SHAPE, -1000.0)
    _, y, x = np.indices(SHAPE)
    hu[((y - 46) / 30.0) ** 2 + ((x - 47) / 44.0) ** 2 <= 1] = 40
    for centre in CENTRES[:lungs]:
        hu[ellipsoid(centre, RADII)] = -850
    hu[:20][((y - 40) ** 2 + (x - 47) ** 2 <= 6)[:20]] = -1000  # trachea
    hu[:, table : table + 8, 10:86] = -100  # table: a shell
    hu[:, table + 2 : table + 6, 12:84] = -1000
    hu += np.random.default_rng(0).normal(0, noise_hu, SHAPE) if noise_hu else 0
    hu[(y - 47.5) ** 2 + (x - 47.5) ** 2 > 47.5**2] = -2000
    return hu.round().astype(np.int16)


def lung_bounds() -> list[tuple[float, float]]:
    low = np.min(CENTRES, axis=0) - RADII
    high = np.max(CENTRES, axis=0) + RADII + 1
    return list(zip(low, high, strict=True))


def scan_of(voxels: np.ndarray, intensity: str = "hu") -> Scan:
    spacing_mm = SPACING_MM if intensity == "hu" else (0.0, 0.0, 0.0)
    return Scan(voxels, spacing_mm, intensity, "nifti")  # type: ignore[arg-type]


@pytest.mark.parametrize("noise_hu", [0.0, 60.0, 150.0])
@pytest.mark.parametrize("intensity", ["hu", "display"])
def test_box_is_the_lungs_with_a_small_margin(noise_hu: float, intensity: str) -> None:
    voxels = torso(noise_hu=noise_hu)
    if intensity == "display":  # CC-CCII's lung window, roughly
        voxels = np.clip((voxels.astype(int) + 1150) * 255 // 1500, 0, 255).astype(np.int16)
    prepared = prepare(scan_of(voxels, intensity), Spec((16, 32, 32)))
    assert prepared.warnings == ()
    assert prepared.features["lungs_found"] == 1
    for (start, stop), (low, high), side in zip(prepared.box, lung_bounds(), SHAPE, strict=True):
        assert low - 0.1 * side <= start <= low + 1
        assert high - 1 <= stop <= high + 0.1 * side


def test_a_table_that_touches_the_back_is_no_lung() -> None:
    apart, touching = (prepare(scan_of(torso(table=row)), Spec((16, 32, 32))) for row in (82, 76))
    assert touching.warnings == ()
    assert touching.box == apart.box


def test_lung_volume_is_that_of_the_ellipsoids() -> None:
    expected_ml = 2 * 4 / 3 * np.pi * np.prod(RADII) * np.prod(SPACING_MM) / 1000
    features = prepare(scan_of(torso()), Spec((16, 32, 32))).features
    assert features["lung_volume_ml"] == pytest.approx(expected_ml, rel=0.05)
    assert features["slices"] == 40
    assert [features[f"spacing_{axis}_mm"] for axis in "zyx"] == list(SPACING_MM)


def test_features_describe_the_box() -> None:
    scan = scan_of(torso())
    prepared = prepare(scan, Spec((16, 32, 32)))
    (z0, z1), (y0, y1), (x0, x1) = prepared.box
    inside = np.maximum(scan.voxels[z0:z1, y0:y1, x0:x1], -1024)
    assert prepared.features["hu_mean"] == pytest.approx(inside.mean(), abs=15)
    assert prepared.features["hu_p50"] == np.percentile(inside, 50)
    assert json.loads(json.dumps(prepared.features)) == prepared.features


@pytest.mark.parametrize("lungs", [0, 1])
def test_without_two_lungs_the_body_is_kept_and_told(lungs: int) -> None:
    prepared = prepare(scan_of(torso(lungs)), Spec((16, 32, 32)))
    assert prepared.warnings == (NO_LUNGS,)
    assert prepared.features["lungs_found"] == 0
    (z0, z1), (y0, y1), (x0, x1) = prepared.box
    assert (z0, z1) == (0, 40)
    assert abs(y0 - 16) <= 2  # the body reaches from 16 to 76 and from 3 to 91; the table below isn't part of it
    assert abs(y1 - 77) <= 2
    assert abs(x0 - 3) <= 2
    assert abs(x1 - 92) <= 2


@pytest.mark.parametrize("value", [-1000, 0, 3000])
def test_a_scan_of_one_value_is_prepared(value: int) -> None:
    prepared = prepare(scan_of(np.full((3, 20, 30), value, np.int16)), Spec((4, 8, 8)))
    assert prepared.warnings == (NO_LUNGS,)
    assert prepared.box == ((0, 3), (0, 20), (0, 30))
    assert (prepared.volume == round(float(np.clip((value + 1000) / 1400, 0, 1)) * 255)).all()


def test_crop_body_and_none() -> None:
    scan = scan_of(torso())
    assert prepare(scan, Spec((16, 32, 32), crop="none")).box == ((0, 40), (0, 96), (0, 96))
    body = prepare(scan, Spec((16, 32, 32), crop="body"))
    assert body.box == prepare(scan_of(torso(0)), Spec((16, 32, 32))).box
    assert body.warnings == ()


def test_warnings_of_the_reader_are_kept() -> None:
    scan = Scan(torso(0), SPACING_MM, warnings=("one slice was missing",))
    assert prepare(scan, Spec((16, 32, 32))).warnings == ("one slice was missing", NO_LUNGS)


@pytest.mark.parametrize(("hu", "level"), [(-2000, 0), (-1000, 0), (-160, 153), (400, 255), (3000, 255)])
def test_window_is_linear_between_its_ends(hu: int, level: int) -> None:
    scan = scan_of(np.full((4, 8, 8), hu, np.int16))
    assert (prepare(scan, Spec((2, 4, 4), crop="none")).volume == level).all()


def test_display_levels_are_taken_as_they_are() -> None:
    voxels = np.arange(256, dtype=np.int16).reshape(4, 8, 8)
    assert np.array_equal(prepare(scan_of(voxels, "display"), Spec((4, 8, 8), crop="none")).volume, voxels)


def by_integral(volume: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Area average: differences of the running integral at the new voxels' edges."""
    for axis, new in enumerate(size):
        old = volume.shape[axis]
        integral = np.concatenate([np.zeros_like(volume.take([0], axis)), volume.cumsum(axis)], axis)
        edges = np.linspace(0, old, new + 1)
        at_edges = np.apply_along_axis(
            lambda line, e=edges, n=old: np.interp(e, np.arange(n + 1), line), axis, integral
        )
        volume = np.diff(at_edges, axis=axis) * new / old
    return volume


def by_torch(volume: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    resized = torch.nn.functional.interpolate(torch.from_numpy(volume)[None, None], size, mode="trilinear")
    return resized[0, 0].numpy()


@pytest.mark.parametrize(
    ("shape", "size", "reference"),
    [
        ((20, 30, 31), (7, 11, 31), by_integral),
        ((40, 48, 48), (16, 16, 24), by_integral),
        ((5, 9, 11), (16, 20, 13), by_torch),
    ],
)
def test_resizing_is_area_average_down_and_linear_up(
    shape: tuple[int, ...], size: tuple[int, int, int], reference: object
) -> None:
    hu = np.random.default_rng(3).integers(-1000, 401, shape).astype(np.int16)
    found = prepare(scan_of(hu), Spec(size, crop="none")).volume
    exact = reference((hu + 1000.0) / 1400 * 255, size)  # type: ignore[operator]
    assert np.abs(found - exact).max() < 1
    assert (found == np.rint(exact)).mean() > 0.9


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.integers(1, 40)] * 3), st.tuples(*[st.integers(1, 40)] * 3), st.sampled_from([-1000, 400]))
def test_every_size_keeps_a_constant(shape: tuple[int, ...], size: tuple[int, int, int], hu: int) -> None:
    volume = prepare(scan_of(np.full(shape, hu, np.int16)), Spec(size, crop="none")).volume
    assert volume.shape == size
    assert volume.dtype == np.uint8
    assert (volume == (0 if hu == -1000 else 255)).all()


def test_float32_products_are_exact_so_that_bytes_do_not_depend_on_the_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    scan = scan_of(torso(noise_hu=300))
    spec = Spec((16, 40, 128))
    float32 = prepare(scan, spec).volume
    along = preprocess._along
    monkeypatch.setattr(
        preprocess, "_along", lambda v, axis, w: along(v.astype(np.int64), axis, w.astype(np.int64)).astype(np.float32)
    )
    assert np.array_equal(float32, prepare(scan, spec).volume)


def test_the_bytes_of_this_version() -> None:
    """Whoever changes these bytes raises `VERSION`, so that no bundle is served with other inputs than it learned."""
    z, y, x = np.indices((50, 90, 110))
    hu = ((z * 37 + y * 11 + x * 5) % 1700 - 1100).astype(np.int16)
    volume = prepare(scan_of(hu), Spec((16, 64, 128), crop="none")).volume
    assert (hashlib.sha256(volume.tobytes()).hexdigest()[:16], preprocess.VERSION) == (GOLDEN, 1)


GOLDEN = "9dd27512b9aa4a00"


def test_masks_are_resampled_like_the_scan() -> None:
    mask = ellipsoid(CENTRES[0], (8, 9, 9)).astype(np.float32)
    prepared = prepare(scan_of(torso()), Spec((16, 32, 32)))
    shares = crop_and_resize(mask, prepared.box, (16, 32, 32))
    voxel = np.prod([(stop - start) / side for (start, stop), side in zip(prepared.box, (16, 32, 32), strict=True)])
    assert shares.dtype == np.float32
    assert shares.sum() * voxel == pytest.approx(mask.sum(), rel=1e-3)
    everywhere = crop_and_resize(np.ones(SHAPE, np.float32), prepared.box, (16, 32, 32))
    assert np.array_equal(everywhere, np.ones((16, 32, 32), np.float32))


def test_a_map_comes_back_where_the_scan_has_it() -> None:
    box = ((5, 35), (20, 70), (10, 90))
    cam = np.random.default_rng(4).random((4, 8, 8)).astype(np.float32)
    placed = box_to_scan(cam, box, SHAPE)
    assert placed.dtype == np.float32
    assert np.allclose(placed[5:35, 20:70, 10:90], by_torch(cam, (30, 50, 80)), atol=1e-5)
    placed[5:35, 20:70, 10:90] = 0
    assert not placed.any()


def test_spec_survives_json() -> None:
    spec = Spec((32, 128, 128), (-1100.0, 300.0), "body")
    assert Spec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "version 99"),
        ({"extra": 1}, "expected the keys"),
        ({"size": [1, 2]}, "size must be three"),
        ({"size": [0, 8, 8]}, "sides above 0"),
        ({"window_hu": [400, -1000]}, "window"),
        ({"crop": "heart"}, "crop one of"),
    ],
)
def test_a_wrong_spec_is_told(change: dict[str, object], message: str) -> None:
    with pytest.raises(CovidnetError, match=message):
        Spec.from_dict({**Spec((8, 16, 16)).to_dict(), **change})


def test_serving_needs_no_torch() -> None:
    code = "import sys, covidnet.data.preprocess, covidnet.data.sources; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("change", [{"size": [1, 1, 1]}, {"window_hu": [0, 0.5]}, {"crop": "none"}, {"crop": "body"}])
def test_the_smallest_size_and_window_and_every_crop_are_read(change: dict[str, object]) -> None:
    tree = {**Spec((8, 16, 16)).to_dict(), **change}
    assert Spec.from_dict(tree).to_dict() == tree


@pytest.mark.parametrize(
    "change", [{"size": [8, 0, 8]}, {"size": [8, 8, 0]}, {"window_hu": [50, 50]}, {"window_hu": [1]}]
)
def test_a_side_of_nothing_and_a_window_of_no_width_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(CovidnetError, match=r"preprocess\.json"):
        Spec.from_dict({**Spec((8, 16, 16)).to_dict(), **change})


def test_lung_volume_is_voxels_times_spacing_in_millilitres() -> None:
    voxels = torso()
    count = find(scan_of(voxels)).lung_voxels
    features = [
        prepare(Scan(voxels, spacing, "hu", "nifti"), Spec((4, 8, 8))).features for spacing in ((5, 2, 1), (2.5, 4, 3))
    ]
    assert [one["lung_volume_ml"] for one in features] == pytest.approx(
        [count * 10 / 1000, count * 30 / 1000], rel=1e-9
    )


@pytest.mark.parametrize("spacing", [(0.0, 0.0, 0.0), (0.0, 1.0, 1.0), (5.0, 0.0, 1.0)])
def test_without_a_spacing_there_is_no_volume_and_with_one_there_is(spacing: tuple[float, float, float]) -> None:
    known, unknown = (
        prepare(Scan(torso(), mm, "hu", "nifti"), Spec((4, 8, 8))).features for mm in (SPACING_MM, spacing)
    )
    assert set(known) - set(unknown) == {"spacing_z_mm", "spacing_y_mm", "spacing_x_mm", "lung_volume_ml"}
    assert 0 < known["lung_share"] == unknown["lung_share"] < 1


@pytest.mark.parametrize(("intensity", "kind"), [("hu", "hu"), ("display", "grey")])
def test_the_distribution_of_a_small_scan_is_that_of_all_its_voxels(intensity: str, kind: str) -> None:
    voxels = np.random.default_rng(0).integers(-2000, 2000, (10, 30, 63)).astype(np.int16)
    features = prepare(scan_of(voxels, intensity), Spec((4, 8, 8), crop="none")).features
    inside = np.maximum(voxels, -1024).astype(float)
    assert features[f"{kind}_mean"] == pytest.approx(inside.mean(), abs=0.01)
    expected = np.percentile(inside, (5, 50, 95))
    assert [features[f"{kind}_p{percent}"] for percent in ("05", "50", "95")] == pytest.approx(expected.tolist())


def test_the_distribution_of_a_large_scan_is_sampled_from_all_of_it() -> None:
    voxels = np.broadcast_to(np.arange(200, dtype=np.int16), (2, 70, 200))
    features = prepare(scan_of(np.ascontiguousarray(voxels)), Spec((2, 8, 8), crop="none")).features
    assert features["hu_mean"] == pytest.approx(99.5, abs=2)
    assert (features["hu_p05"], features["hu_p95"]) == pytest.approx((10, 190), abs=4)


def test_a_mask_beyond_its_range_is_cut_to_it() -> None:
    box = ((0, 4), (0, 4), (0, 4))
    mask = np.zeros((4, 4, 4), np.float32)
    mask[:2], mask[2:] = 3, -3
    shares = crop_and_resize(mask, box, (2, 1, 1))
    assert shares.ravel().tolist() == [1, 0]
    assert crop_and_resize(np.full((4, 4, 4), 0.25, np.float32), box, (2, 2, 2)) == pytest.approx(0.25, abs=1e-4)


def test_a_grey_level_is_the_nearest_one() -> None:
    hu = np.arange(-1000, 401, dtype=np.int16).reshape(1, 3, 467)
    found = prepare(scan_of(hu), Spec((1, 3, 467), crop="none")).volume.astype(float)
    assert np.abs(found - (hu + 1000) / 1400 * 255).max() < 0.5 + 255 / 4095  # half a level, and what twelve bits round
    assert found.ravel()[[0, -1]].tolist() == [0, 255]


def test_only_a_crop_to_the_lungs_misses_them() -> None:
    scan = scan_of(torso(0))
    assert [prepare(scan, Spec((4, 8, 8), crop=crop)).warnings for crop in ("lungs", "body", "none")] == [
        (NO_LUNGS,), (), (),
    ]  # fmt: skip
