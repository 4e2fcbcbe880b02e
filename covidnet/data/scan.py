"""The in-memory chest CT that every source yields and everything after it relies on."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Intensity = Literal["hu", "display"]


@dataclass(frozen=True, slots=True)
class Scan:
    """One chest CT in the project's axes.

    Args:
        voxels: ``int16 (D, H, W)``. Slice 0 is the most cranial, rows run anterior to posterior, columns run from the
            patient's right to left (the radiologist's view). Hounsfield units where ``intensity`` is ``"hu"``; 0-255
            grey levels where it is ``"display"``.
        spacing_mm: distance between voxel centres, ``(z, y, x)``; 0.0 where the source doesn't say (PNG folders).
        intensity: ``"hu"``, or ``"display"`` for sources that were windowed before they reached us (CC-CCII).
        format: ``"dicom"``, ``"nifti"``, ``"slices"`` or ``"phantom"``.
        orientation: axis codes of the array as it was stored, e.g. ``"LPS"``; ``"assumed"`` where the source has none.
        warnings: what a careful reader would want to know about how this scan was read; no patient data.
        affine: 4x4, index ``(d, h, w)`` to RAS+ millimetres; None where the source has no geometry.
    """

    voxels: np.ndarray
    spacing_mm: tuple[float, float, float]
    intensity: Intensity = "hu"
    format: str = "dicom"
    orientation: str = "LPS"
    warnings: tuple[str, ...] = ()
    affine: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        depth, height, width = self.voxels.shape
        return depth, height, width
