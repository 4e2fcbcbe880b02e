"""Where the lungs and the body are, from thresholds on a coarse copy of the scan: a few milliseconds, no model."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from covidnet.data.scan import Scan

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # (z0, z1), (y0, y1), (x0, x1), ends excluded

COARSE_SHAPE = (48, 64, 64)  # the most voxels that the search looks at; 5-8 mm in a usual chest
AIR_HU = -1024
LUNG_THRESHOLD_HU = -400  # aerated lung and ground glass lie below, consolidation and chest wall above
SMALLEST_COMPONENT = 0.1  # of the largest one: a lung shrunk by disease passes, the stomach's air bubble doesn't
REGROWN = 3  # coarse voxels: brings back the thin recesses that the cut takes from the lungs
SMALLEST_SLICE = 0.02  # of the largest lung area: leaves out slices that show the trachea only
PLAUSIBLE_SHARE = (0.03, 0.8)  # lung volume within body volume
SMALLER_SIDE = 0.1  # of the lung volume, at least, lies on either side of the body's middle
TAIL = 0.001  # of a mask's voxels that may lie beyond each bound of its box
MARGIN = 0.05  # of the box's side, for pleura and for consolidation at the edge
IN_PLANE = np.zeros((3, 3, 3), bool)
IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)


class Anatomy(NamedTuple):
    """What the thresholds found.

    Args:
        body: box of the largest piece of tissue; the whole scan where there is none.
        lungs: box of the lungs with a margin; None where no two plausible lungs were found.
        lung_share: lung volume within body volume, 0 to 1.
        lung_voxels: lung volume in source voxels.
    """

    body: Box
    lungs: Box | None
    lung_share: float
    lung_voxels: float


def find(scan: Scan) -> Anatomy:
    """Look for the body and for two lungs in it.

    Lungs are the dark regions that the body encloses within axial slices: outside air reaches the edge of the picture,
    the table is another piece of tissue, the trachea and gas in the bowel are small beside a lung.
    """
    strides = [-(-side // most) for side, most in zip(scan.shape, COARSE_SHAPE, strict=True)]
    coarse = _coarse(scan.voxels, strides)
    dark = coarse < (LUNG_THRESHOLD_HU if scan.intensity == "hu" else _otsu(coarse))
    body = _largest(~dark)
    inside = _filled(body)
    if not inside.any():
        whole: Box = ((0, scan.shape[0]), (0, scan.shape[1]), (0, scan.shape[2]))
        return Anatomy(whole, None, 0.0, 0.0)
    lungs = _main_components(inside & dark)
    share = float(lungs.sum() / inside.sum())
    lung_voxels = float(lungs.sum() * np.prod(strides))
    body_box = _box(inside, strides, scan.shape, margin=0.0)
    found = PLAUSIBLE_SHARE[0] <= share <= PLAUSIBLE_SHARE[1] and _on_both_sides(lungs, inside)
    return Anatomy(body_box, _box(lungs, strides, scan.shape, MARGIN) if found else None, share, lung_voxels)


def _coarse(voxels: np.ndarray, strides: list[int]) -> np.ndarray:
    """Mean of (up to) four voxels spread over each in-plane block, against noise; float32 ``(d, h, w)``."""
    z, y, x = strides
    depth, height, width = (side // stride for side, stride in zip(voxels.shape, strides, strict=True))
    total = np.zeros((depth, height, width), np.float32)
    offsets = [(dy, dx) for dy in {0, y // 2} for dx in {0, x // 2}]
    for dy, dx in offsets:
        picked = voxels[: depth * z : z, dy : height * y : y, dx : width * x : x]
        total += np.maximum(picked, AIR_HU)  # scanners fill the outside of their circle with -2000 and less
    return total / np.float32(len(offsets))


def _otsu(levels: np.ndarray) -> float:
    """Threshold between the dark and the bright half of grey levels (Otsu, IEEE Trans. SMC 9, 1979, eq. 18)."""
    counts, edges = np.histogram(levels, 128)
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * centres)
    gap = sums[:-1] / np.maximum(below, 1) - (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    return float(edges[1:-1][np.argmax(below * above * gap**2)])


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray((labels == sizes.argmax()) & mask)


def _filled(body: np.ndarray) -> np.ndarray:
    """The body with everything that it encloses within each axial slice."""
    labels, count = ndimage.label(~body, IN_PLANE)
    outside = np.zeros(count + 1, bool)
    for edge in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]):
        outside[edge.ravel()] = True
    outside[0] = False  # label 0 is the body itself
    return np.asarray(~outside[labels])


def _main_components(mask: np.ndarray) -> np.ndarray:
    """The large pieces of a mask, cut where they hang together by two coarse voxels or less.

    Gas in the colon or stomach seems joined to the lung above it where the diaphragm is thinner than a coarse voxel.
    """
    labels, _ = ndimage.label(ndimage.binary_erosion(mask, border_value=1))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    main = (sizes >= max(1, SMALLEST_COMPONENT * sizes.max()))[labels] & (labels > 0)
    return np.asarray(ndimage.binary_dilation(main, iterations=REGROWN, mask=mask))


def _on_both_sides(lungs: np.ndarray, inside: np.ndarray) -> bool:
    columns = lungs.sum(axis=(0, 1))
    middle = round(float(np.average(np.arange(len(columns)), weights=inside.sum(axis=(0, 1)))))
    right = columns[:middle].sum() / columns.sum()
    return bool(SMALLER_SIDE <= right <= 1 - SMALLER_SIDE)


def _box(mask: np.ndarray, strides: list[int], shape: tuple[int, int, int], margin: float) -> Box:
    """Bounds of a coarse mask in source voxels, grown by ``margin``; slices with little of it don't count.

    All but `TAIL` of the mask's voxels lie within each bound, interpolated within a coarse voxel: the same lungs on
    another grid give the same box, and stray voxels don't move it.
    """
    areas = mask.sum(axis=(1, 2))
    mask = mask[areas >= SMALLEST_SLICE * areas.max()]
    profiles = (areas * (areas >= SMALLEST_SLICE * areas.max()), mask.sum(axis=(0, 2)), mask.sum(axis=(0, 1)))
    bounds = []
    for profile, stride, side in zip(profiles, strides, shape, strict=True):
        filled = np.flatnonzero(profile)
        edges = np.arange(filled[0], filled[-1] + 2)
        cumulative = np.cumsum([0, *profile[filled[0] : filled[-1] + 1]]) / profile.sum()
        first, last = np.interp((TAIL, 1 - TAIL), cumulative, edges) * stride
        grown = margin * (last - first)
        bounds.append((max(0, round(first - grown)), min(side, round(last + grown))))
    return bounds[0], bounds[1], bounds[2]
