"""From any stored axis order and direction to the project's: slices to caudal, rows to posterior, columns to left."""

from typing import NamedTuple

import numpy as np
from nibabel import orientations

from covidnet.errors import ScanError

PROJECT_AXES = ("I", "P", "L")  # the direction in which each array index grows
MAX_SPACING_MM = 100.0
MAX_SHEAR_DEG = 1.0
MAX_ROTATION_DEG = 10.0


class Placed(NamedTuple):
    """A volume in the project's axes.

    Args:
        voxels: ``(D, H, W)``, contiguous.
        spacing_mm: ``(z, y, x)``.
        orientation: axis codes of the array as it was stored.
        warnings: an oblique volume is read on the nearest axes, and says so.
        affine: 4x4, array index ``(d, h, w)`` to RAS+ millimetres.
    """

    voxels: np.ndarray
    spacing_mm: tuple[float, float, float]
    orientation: str
    warnings: tuple[str, ...]
    affine: np.ndarray


def place(voxels: np.ndarray, affine: np.ndarray) -> Placed:
    """Permute and mirror a volume into the project's axes; voxel values are never interpolated.

    Args:
        voxels: three axes ``(i, j, k)``, in any order and direction.
        affine: 4x4, ``(i, j, k)`` to RAS+ millimetres (NIfTI's convention).

    Raises:
        ScanError: spacing of 0, not a number or over 100 mm, axes that aren't perpendicular (an uncorrected gantry tilt),
            or a volume rotated by more than 10 degrees from the body's axes.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (spacing < 1e-3).any() or (spacing > MAX_SPACING_MM).any():
        raise ScanError(
            f"expected voxel spacing above 0 mm and at most {MAX_SPACING_MM:g}, found {spacing.round(4).tolist()}; "
            "mend the header"
        )
    directions = affine[:3, :3] / spacing  # columns: unit vectors of i, j, k
    shear_deg = _degrees(np.arcsin(np.abs(directions.T @ directions - np.eye(3)).max().clip(0, 1)))
    if shear_deg > MAX_SHEAR_DEG:
        raise ScanError(
            f"the slices are stacked {shear_deg:.1f} degrees off their normal (gantry tilt), expected less than "
            f"{MAX_SHEAR_DEG:g}; export a series with the tilt corrected"
        )
    stored = orientations.io_orientation(affine)
    nearest = np.abs(directions[stored[:, 0].astype(int), range(3)])
    rotation_deg = _degrees(np.arccos(nearest.min().clip(0, 1)))
    if rotation_deg > MAX_ROTATION_DEG:
        raise ScanError(
            f"the volume is rotated {rotation_deg:.0f} degrees from the body's axes, expected at most "
            f"{MAX_ROTATION_DEG:g}; export an axial series"
        )
    change = orientations.ornt_transform(stored, orientations.axcodes2ornt(PROJECT_AXES))
    placed = np.ascontiguousarray(orientations.apply_orientation(voxels, change))
    spacing_mm = [0.0, 0.0, 0.0]
    for axis, target in enumerate(change[:, 0].astype(int)):
        spacing_mm[target] = float(spacing[axis])
    oblique = f"rotated {rotation_deg:.1f} degrees from the body's axes; read on the nearest ones"
    return Placed(
        placed,
        (spacing_mm[0], spacing_mm[1], spacing_mm[2]),
        "".join(orientations.ornt2axcodes(stored)),
        (oblique,) if rotation_deg > 1.0 else (),
        affine @ orientations.inv_ornt_aff(change, voxels.shape),
    )


def as_stored(volume: np.ndarray, affine: np.ndarray, orientation: str) -> tuple[np.ndarray, np.ndarray]:
    """Bring a map over a placed volume back to the axes in which the scan was stored.

    Args:
        volume: ``(D, H, W)``.
        affine: of the `Scan`.
        orientation: of the `Scan`.

    Returns:
        The map on the stored axes ``(i, j, k)``, and their affine.
    """
    placed, stored = (orientations.axcodes2ornt(codes) for codes in (PROJECT_AXES, tuple(orientation)))
    change = orientations.ornt_transform(placed, stored)
    return orientations.apply_orientation(volume, change), affine @ orientations.inv_ornt_aff(change, volume.shape)


def _degrees(radians: float) -> float:
    return float(np.rad2deg(radians))
