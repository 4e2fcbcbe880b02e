"""Whether two registered scans are one: their fine structure, voxel by voxel, agrees or it doesn't.

Signatures hold a body's large shapes, in which two of several thousand people can be as alike as a scan and its crop.
Vessels, ribs and lesions are a person's own.
"""

import numpy as np
from scipy import ndimage

from covidnet.data.audit.signatures import CROP_STEPS

WINDOW = (3, 9, 9)  # voxels
MIN_VARIANCE = 25.0  # in grey levels squared: windows of air or noise say nothing


def likeness(first: np.ndarray, second: np.ndarray, crop: np.ndarray) -> float:
    """Local normalised cross-correlation, -1..1, averaged over the windows that show something in both.

    A window's own mean and contrast don't count, so neither does how the file was windowed (as in the similarity of
    Avants et al., Symmetric diffeomorphic image registration with cross-correlation, Medical Image Analysis 2008).

    Args:
        first: ``uint8 (D, H, W)``, mirrored to lie like the second.
        second: ``uint8 (D, H, W)``.
        crop: entry of `crop_matrices` for each axis ``(3,)``, which takes the first to the second.
    """
    x, y = _cropped(first, crop), second.astype(np.float32)
    mean_x, mean_y = _local(x), _local(y)
    variance_x, variance_y = _local(x * x) - mean_x**2, _local(y * y) - mean_y**2
    shown = (variance_x > MIN_VARIANCE) & (variance_y > MIN_VARIANCE)
    if not shown.any():
        return 0.0
    products = (_local(x * y) - mean_x * mean_y)[shown]
    return float(np.mean(products / np.sqrt(variance_x[shown] * variance_y[shown])))


def _cropped(volume: np.ndarray, crop: np.ndarray) -> np.ndarray:
    sides = np.array(volume.shape)
    start, end = CROP_STEPS[crop // len(CROP_STEPS)], CROP_STEPS[crop % len(CROP_STEPS)]
    scale = 1 - start - end
    offset = start * sides + (scale - 1) / 2  # from centre of voxel to centre of voxel
    return np.asarray(ndimage.affine_transform(volume.astype(np.float32), scale, offset, order=1, mode="nearest"))


def _local(values: np.ndarray) -> np.ndarray:
    return np.asarray(ndimage.uniform_filter(values, WINDOW))
