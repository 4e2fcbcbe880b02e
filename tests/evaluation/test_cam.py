"""Maps: interpolation against torch, slices chosen, pointing by hand."""

import math
import subprocess
import sys

import numpy as np
import pytest

from covidnet.errors import CovidnetError
from covidnet.evaluation import cam


@pytest.mark.parametrize(
    ("grid", "shape"),
    [((1, 2, 2), (16, 64, 64)), ((3, 5, 4), (7, 23, 9)), ((4, 4, 4), (4, 4, 4)), ((6, 6, 6), (3, 4, 5))],
)
def test_upsample_is_torchs_trilinear(grid: tuple[int, int, int], shape: tuple[int, int, int]) -> None:
    torch = pytest.importorskip("torch")
    coarse = np.random.default_rng(0).normal(size=grid).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(coarse)[None, None], shape, mode="trilinear", align_corners=False
    )[0, 0].numpy()
    got = cam.upsample(coarse, shape)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_prediction_needs_no_torch_matplotlib_or_scikit_learn() -> None:
    code = (
        "import sys, covidnet.evaluation.overlay, covidnet.evaluation.calibration; "
        "print([m for m in ('torch', 'matplotlib', 'sklearn', 'jinja2') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize(("depth", "peak"), [(16, 0), (16, 15), (60, 31), (5, 2), (1, 0)])
def test_chosen_slices_hold_the_maximum(depth: int, peak: int) -> None:
    heat = np.zeros((depth, 2, 2), np.float32)
    heat[peak, 1, 1] = 1
    chosen = cam.choose_slices(heat, 8)
    assert peak in chosen
    assert len(chosen) == min(8, depth)
    assert chosen == sorted(set(chosen))


def cell_map(cell: tuple[int, int, int]) -> np.ndarray:
    heat = np.zeros((2, 4, 4), np.float32)
    heat[cell] = 1
    return heat


def test_maximum_hits_a_lesion_in_its_own_cell_and_not_in_the_next() -> None:
    mask = np.zeros((16, 64, 64), bool)
    mask[3, 20, 40] = True  # cells are 8 x 16 x 16 voxels: this one is (0, 1, 2)
    hits = [c for c in np.ndindex(2, 4, 4) if cam.lesion_hit(cell_map(c), mask)]
    assert hits == [(0, 1, 2)]


def test_centre_prior_gets_the_tolerance_of_the_map_it_is_compared_with() -> None:
    prior = cam.centre_prior((16, 64, 64))
    mask = np.zeros((16, 64, 64), bool)
    mask[8, 32 + 6, 32] = True  # six voxels off the centre
    assert cam.lesion_hit(prior, mask, grid=(2, 4, 4))  # a cell reaches eight
    assert not cam.lesion_hit(prior, mask, grid=(2, 16, 16))  # a cell reaches two


@pytest.mark.parametrize("grid", [(2, 8, 8), (1, 2, 2), (3, 5, 4)])
def test_pointing_anywhere_is_worth_the_share_of_cells_that_hit(grid: tuple[int, int, int]) -> None:
    mask = np.random.default_rng(0).random((16, 32, 32)) > 0.998
    hits = []
    for cell in np.ndindex(grid):
        heat = np.zeros(grid, np.float32)
        heat[cell] = 1
        hits.append(cam.lesion_hit(heat, mask))
    assert 0 < np.mean(hits) <= 1
    assert cam.random_hit_rate(mask, grid) == pytest.approx(np.mean(hits))


def test_centre_prior_peaks_in_the_middle_and_falls_by_the_gaussian() -> None:
    prior = cam.centre_prior((5, 9, 9))
    assert np.unravel_index(prior.argmax(), prior.shape) == (2, 4, 4)
    assert prior[2, 4, 4] == pytest.approx(1)
    assert prior[2, 4, 8] == pytest.approx(math.exp(-0.5 * ((4 / 9) / 0.25) ** 2), rel=1e-6)


def test_energy_inside_by_hand() -> None:
    heat = np.zeros((1, 2, 2), np.float32)
    heat[0] = [[3, 1], [-5, 0]]
    mask = np.zeros((1, 2, 2), bool)
    mask[0, 0, 0] = mask[0, 1, 0] = True
    assert cam.energy_inside(heat, mask) == pytest.approx(3 / 4)  # negative evidence counts nowhere
    assert math.isnan(cam.energy_inside(-np.ones((1, 2, 2), np.float32), mask))


def test_empty_or_misshapen_masks_are_refused() -> None:
    heat = np.ones((1, 2, 2), np.float32)
    for measure in (cam.lesion_hit, cam.energy_inside):
        with pytest.raises(CovidnetError, match="lesion mask is empty"):
            measure(heat, np.zeros((1, 2, 2), bool))
    with pytest.raises(CovidnetError, match="mask of the map's shape"):
        cam.energy_inside(heat, np.ones((1, 3, 2), bool))


@pytest.mark.parametrize(
    ("depth", "count", "peak", "chosen"),
    [
        (60, 8, 31, [6, 13, 19, 26, 31, 40, 46, 53]),  # from 6 to 53 in steps of 6.7; 33 gives way to 31
        (60, 8, 0, [0, 13, 19, 26, 33, 40, 46, 53]),
        (11, 3, 10, [1, 5, 10]),
        (8, 8, 3, [0, 1, 2, 3, 4, 5, 6, 7]),  # no more slices than asked for: all
        (12, 12, 5, list(range(12))),
        (20, 1, 7, [7]),
    ],
)
def test_slices_are_evenly_spaced_over_the_middle_and_the_nearest_gives_way_to_the_maximum(
    depth: int, count: int, peak: int, chosen: list[int]
) -> None:
    heat = np.zeros((depth, 2, 2), np.float32)
    heat[peak, 1, 0] = 1
    assert cam.choose_slices(heat, count) == chosen


def test_the_centre_prior_falls_alike_along_every_axis() -> None:
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = 8
        prior = cam.centre_prior((shape[0], shape[1], shape[2])).ravel()
        place = (np.arange(8) + 0.5) / 8
        np.testing.assert_allclose(prior, np.exp(-((place - 0.5) ** 2) / (2 * 0.25**2)), rtol=1e-6)
