"""What a class activation map (Zhou et al., CVPR 2016) is worth: brought to the scan's grid, and held against the lesion.

Needs numpy only: prediction and serving use it. Maps come from the model, on its coarse grid ``(d, h, w)``; positive values
are evidence for the class. `covidnet.evaluation.overlay` draws them.
"""

import numpy as np
from numpy.typing import NDArray

from covidnet.errors import CovidnetError

Heat = NDArray[np.float32]
Mask = NDArray[np.bool_]


def upsample(cam: NDArray[np.floating], shape: tuple[int, int, int]) -> Heat:
    """Linear interpolation of a map ``(d, h, w)`` to ``shape`` ``(D, H, W)``.

    Voxel centres are aligned and edges are held, as in torch's ``trilinear`` with ``align_corners=False``.
    """
    z, y, x = (_interpolation(n, m) for n, m in zip(cam.shape, shape, strict=True))
    heat: Heat = np.einsum("Dd,Hh,Ww,dhw->DHW", z, y, x, cam, optimize=True).astype(np.float32)
    return heat


def choose_slices(heat: Heat, count: int) -> list[int]:
    """Increasing indices, evenly spaced over the middle four fifths of D, one of them the slice with the maximum."""
    depth = len(heat)
    margin = depth // 10 if depth > count else 0
    chosen = np.unique(np.linspace(margin, depth - 1 - margin, min(count, depth)).round().astype(int))
    peak = int(heat.max(axis=(1, 2)).argmax())
    chosen[np.abs(chosen - peak).argmin()] = peak
    return [int(index) for index in chosen]


def lesion_hit(heat: NDArray[np.floating], mask: Mask, grid: tuple[int, int, int] | None = None) -> bool:
    """The pointing game (Zhang et al., ECCV 2016): does the maximum of a map lie on the lesion?

    Tolerance: one voxel of the CAM grid. A map on a grid of ``(d, h, w)`` says no more than which of its voxels is the
    strongest; it hits where a box of that voxel's size, around the centre of the maximum, holds any of the lesion.

    Args:
        heat: a map over the volume, on any grid: the CAM on its own grid, or `centre_prior` at the volume's shape.
        mask: lesion ``(D, H, W)``.
        grid: whose voxel is the tolerance; by default the map's own. A baseline gets that of the CAM it stands beside.

    Raises:
        CovidnetError: the mask is empty.
    """
    _require_lesion(mask)
    peak = np.unravel_index(int(heat.argmax()), heat.shape)
    box = []
    for index, n, size, cells in zip(peak, heat.shape, mask.shape, grid or heat.shape, strict=True):
        centre, half = (int(index) + 0.5) * size / n, size / cells / 2
        box.append(slice(max(0, round(centre - half)), max(round(centre + half), round(centre - half) + 1)))
    return bool(mask[tuple(box)].any())


def random_hit_rate(mask: Mask, grid: tuple[int, int, int]) -> float:
    """Share of the voxels of a map's grid whose choice `lesion_hit` would count: what pointing anywhere is worth.

    Args:
        mask: lesion ``(D, H, W)``.
        grid: ``(d, h, w)``.

    Raises:
        CovidnetError: the mask is empty.
    """
    _require_lesion(mask)
    hits = mask
    for axis, (size, cells) in enumerate(zip(mask.shape, grid, strict=True)):
        starts = [round(cell * size / cells) for cell in range(cells)]
        hits = np.logical_or.reduceat(hits, starts, axis=axis)
    return float(hits.mean())


def energy_inside(heat: Heat, mask: Mask) -> float:
    """Share of a map's positive part that lies inside the lesion (Wang et al., Score-CAM, CVPR-W 2020, §4.3).

    Args:
        heat: ``(D, H, W)``.
        mask: lesion ``(D, H, W)``.

    Returns:
        0..1; NaN where the map has no positive part.

    Raises:
        CovidnetError: the mask is empty or of another shape.
    """
    _require_lesion(mask)
    if heat.shape != mask.shape:
        raise CovidnetError(f"energy: expected a mask of the map's shape {heat.shape}, found {mask.shape}")
    positive = np.clip(heat, 0, None, dtype=np.float64)
    total = float(positive.sum())
    return float(positive[mask].sum()) / total if total else float("nan")


def centre_prior(shape: tuple[int, int, int]) -> Heat:
    """A Gaussian at the centre, its standard deviation a quarter of each side: what an explanation has to beat."""
    axes = [np.exp(-0.5 * (((np.arange(n) + 0.5) / n - 0.5) / 0.25) ** 2) for n in shape]
    prior: Heat = np.einsum("d,h,w->dhw", *axes).astype(np.float32)
    return prior


def _interpolation(n: int, m: int) -> NDArray[np.float64]:
    """Matrix ``(m, n)`` that samples n voxels linearly at m voxel centres."""
    position = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
    weights: NDArray[np.float64] = np.clip(1 - np.abs(position[:, None] - np.arange(n)), 0, None)
    return weights


def _require_lesion(mask: Mask) -> None:
    if not mask.any():
        raise CovidnetError("the lesion mask is empty: leave scans without a lesion out of the count")
