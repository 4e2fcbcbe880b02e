"""Maps: interpolation against torch, pictures by their pixels, pointing by hand."""

import io
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
        "import sys, covidnet.evaluation.cam, covidnet.evaluation.calibration; "
        "print([m for m in ('torch', 'matplotlib', 'sklearn', 'jinja2') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_overlay_leaves_tissue_without_evidence_as_it_is() -> None:
    volume = np.full((4, 8, 8), 100, np.uint8)
    heat = np.full((4, 8, 8), -1.0, np.float32)
    heat[2, 3, 3] = 5.0
    images = cam.overlay_slices(volume, heat, [0, 2])
    assert images.shape == (2, 8, 8, 3)
    assert (images[0] == 100).all()
    changed = np.argwhere((images[1] != 100).any(axis=-1))
    assert changed.tolist() == [[3, 3]]


def test_overlay_without_any_evidence_is_the_scan() -> None:
    volume = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    images = cam.overlay_slices(volume, np.full((1, 8, 8), -2.0, np.float32), [0])
    np.testing.assert_array_equal(images[0], np.repeat(volume[0][..., None], 3, axis=-1))


def test_overlay_scale_is_shared_over_slices() -> None:
    volume, heat = np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4), np.float32)
    heat[0, 0, 0], heat[1, 0, 0] = 10.0, 5.0
    strong, weak = cam.overlay_slices(volume, heat, [0, 1])[:, 0, 0].astype(int)
    assert strong.sum() > weak.sum() > 0


def test_hounsfield_units_are_windowed() -> None:
    volume = np.array([[[-2000, -1000], [-300, 400]]], np.int16)
    image = cam.overlay_slices(volume, np.zeros((1, 2, 2), np.float32), [0], window_hu=(-1000, 400))[0, ..., 0]
    assert image.tolist() == [[0, 0], [128, 255]]


def test_overlay_of_another_shape_is_refused() -> None:
    with pytest.raises(CovidnetError, match=r"expected a map of the volume's shape \(2, 4, 4\), found \(1, 2, 2\)"):
        cam.overlay_slices(np.zeros((2, 4, 4), np.uint8), np.zeros((1, 2, 2), np.float32), [0])


@pytest.mark.parametrize(("depth", "peak"), [(16, 0), (16, 15), (60, 31), (5, 2), (1, 0)])
def test_chosen_slices_hold_the_maximum(depth: int, peak: int) -> None:
    heat = np.zeros((depth, 2, 2), np.float32)
    heat[peak, 1, 1] = 1
    chosen = cam.choose_slices(heat, 8)
    assert peak in chosen
    assert len(chosen) == min(8, depth)
    assert chosen == sorted(set(chosen))


def test_montage_is_a_png_with_outline_only_where_a_mask_is_given() -> None:
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 200, (16, 64, 64), dtype=np.uint8)
    heat = cam.upsample(rng.normal(size=(1, 2, 2)), (16, 64, 64))
    mask = np.zeros((16, 64, 64), bool)
    mask[2:14, 20:40, 20:40] = True

    def cyan(image: Image.Image) -> int:
        decoded = np.asarray(Image.open(io.BytesIO(cam.png(image))))
        return int((decoded == (94, 229, 229)).all(axis=-1).sum())

    plain = cam.montage(volume, heat, "Predicted NCP (0.93), true label CP", label="NCP")
    outlined = cam.montage(volume, heat, "Predicted NCP (0.93), true label CP", label="NCP", mask=mask)
    assert plain.size == outlined.size
    assert cyan(plain) == 0
    assert cyan(outlined) > 1000


def test_montage_of_a_real_scan(real_scans: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    stored = np.asarray(nibabel.load(real_scans / "covid-ct-md" / "nifti_256" / "NCP_P001.nii.gz").dataobj).astype(
        np.int16
    )
    volume = stored.transpose(2, 1, 0)
    heat = cam.upsample(np.random.default_rng(0).normal(size=(2, 8, 8)), volume.shape)
    image = np.asarray(cam.montage(volume, heat, "Predicted NCP (0.93), true label NCP", label="NCP"))
    assert image.shape[1] > 2 * image.shape[0]
    assert image.std() > 40  # anatomy, not a blank page


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
