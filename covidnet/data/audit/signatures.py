"""A scan's signature: the low frequencies of its packed volume, which survive whatever re-saving does to a file.

The volume's grey levels are replaced by their ranks, which undoes any re-windowing, and transformed by a 3D DCT of which
``KEPT`` coefficients stay: 2,048 numbers. Mirroring an axis flips the sign of its odd coefficients, and cropping it is a
small matrix along it (`crop_matrices`), so that two scans are compared under all of these without their voxels.
"""

from functools import cache
from itertools import product

import numpy as np

KEPT = (8, 16, 16)
COARSE = (4, 8, 8)  # enough to propose duplicates; KEPT decides
MAX_CROP = 0.08  # share of a side, cut off or added at either end
CROP_STEPS = np.linspace(-MAX_CROP, MAX_CROP, 17)
UNCUT = len(CROP_STEPS) ** 2 // 2  # the entry of `crop_matrices` that changes nothing
FLIPS = np.array(list(product((0, 1), repeat=3)))  # axes to mirror


def signatures(scans: np.ndarray) -> np.ndarray:
    """Signatures ``float16 (N, *KEPT)`` of packed scans ``uint8 (N, D, H, W)``, one scan at a time."""
    found = np.empty((len(scans), *KEPT), np.float16)
    bases = [
        _cosines(kept, (np.arange(side) + 0.5) / side) / np.sqrt(side)
        for kept, side in zip(KEPT, scans.shape[1:], strict=True)
    ]
    for index, volume in enumerate(scans):
        found[index] = _transform(_ranks(volume), bases)
    return found


@cache
def weights(kept: tuple[int, int, int]) -> np.ndarray:
    """Squared spatial frequency of every coefficient: flattens the spectrum of anatomy, so that fine detail counts."""
    d, h, w = np.meshgrid(*(np.arange(side, dtype=np.float32) ** 2 for side in kept), indexing="ij")
    return np.asarray(d + h + w)


def signs(flips: np.ndarray, kept: tuple[int, int, int]) -> np.ndarray:
    """Factors ``(P, *kept)`` that mirror signatures along the axes in ``flips (P, 3)``."""
    odd = [np.arange(side) % 2 for side in kept]
    d, h, w = (1 - 2 * flips[:, axis, None] * odd[axis] for axis in range(3))
    return np.asarray(d[:, :, None, None] * h[:, None, :, None] * w[:, None, None, :], np.float32)


@cache
def crop_matrices(kept: int) -> np.ndarray:
    """``float32 (289, kept, kept)``: what cutting a share of a side off both ends does to an axis's coefficients.

    Entry ``17 * i + j`` cuts `CROP_STEPS[i]` off the start and `CROP_STEPS[j]` off the end; what is added repeats the edge.
    """
    fine = 8 * kept
    centres = (np.arange(fine) + 0.5) / fine
    back = _cosines(kept, centres) / fine
    pairs = product(CROP_STEPS, CROP_STEPS)
    found = [back @ _cosines(kept, np.clip(start + centres * (1 - start - end), 0, 1)).T for start, end in pairs]
    return np.asarray(found, np.float32)


def every(step: int) -> np.ndarray:
    """Entries of `crop_matrices` whose cuts are multiples of ``step`` times `CROP_STEPS`'s own."""
    shares = np.arange(0, len(CROP_STEPS), step)
    return np.asarray((len(CROP_STEPS) * shares[:, None] + shares).ravel())


def _ranks(volume: np.ndarray) -> np.ndarray:
    """Share of darker voxels, -0.5..0.5, in place of the grey level."""
    counts = np.bincount(volume.ravel(), minlength=256)
    middle = (np.cumsum(counts) - counts / 2) / volume.size - 0.5
    return np.asarray(middle.astype(np.float32)[volume])


def _transform(volume: np.ndarray, bases: list[np.ndarray]) -> np.ndarray:
    depth, height, width = bases
    along_width = volume @ width.T  # (D, H, w)
    along_height = height @ along_width  # (D, h, w)
    return np.asarray(np.tensordot(depth, along_height, axes=1) / np.sqrt(volume.size))


def _cosines(kept: int, at: np.ndarray) -> np.ndarray:
    """DCT-II basis functions ``(kept, len(at))`` at positions 0..1, each of mean square 1."""
    scale = np.where(np.arange(kept) == 0, 1.0, np.sqrt(2.0))[:, None]
    return np.asarray(scale * np.cos(np.pi * np.arange(kept)[:, None] * at), np.float32)
