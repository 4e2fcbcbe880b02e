"""The sampling grid of one phantom: where each voxel lies in the standard chest.

Anatomy is written once, in the millimetres of a standard chest: x grows from the midline to the patient's left, y from
front to back, z from the lung apex to the feet. A patient's size, posture and shape are a map from scan coordinates to
those; evaluating the anatomy on mapped coordinates gives each patient another chest without another description.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.interpolate import BSpline

Box = tuple[slice, slice, slice]
# Standard deviation of white noise after cubic B-spline interpolation is 0.692 per axis.
_SPLINE_GAIN = 0.692**-3


@dataclass(frozen=True, slots=True)
class Pose:
    """How a standard chest becomes one patient on one table; lengths in mm, sizes relative to the standard chest."""

    size: tuple[float, float, float]  # (z, y, x)
    centre_mm: tuple[float, float]  # (y, x) of the chest's centre in the field of view
    top_mm: float  # standard z of the first slice
    rotation_rad: float
    kyphosis_mm: float
    warp_mm: float
    breathing_mm: float  # amplitude of slice-to-slice shifts near the diaphragm


class Grid:
    """The body's rows of a scan: standard-chest ``x``, ``y``, ``z`` of the voxel centres, ``float32 (D, H, W)``."""

    def __init__(
        self,
        scan_shape: tuple[int, int, int],
        rows: slice,
        spacing_mm: tuple[float, float, float],
        pose: Pose,
        rng: np.random.Generator,
    ) -> None:
        depth, height, width = scan_shape
        self.shape = (depth, rows.stop - rows.start, width)
        self.spacing_mm = spacing_mm
        self._pose = pose
        self.slice_z = (np.arange(depth) * spacing_mm[0] / pose.size[0] + pose.top_mm).astype(np.float32)  # (D,)
        self._middle_row = (height - 1) / 2 - rows.start
        row_mm = (np.arange(self.shape[1]) - self._middle_row) * spacing_mm[1] - pose.centre_mm[0]
        column_mm = (np.arange(width) - (width - 1) / 2) * spacing_mm[2] - pose.centre_mm[1]
        cos, sin = np.cos(pose.rotation_rad), np.sin(pose.rotation_rad)
        plane_x = ((column_mm * cos + row_mm[:, None] * sin) / pose.size[2]).astype(np.float32)  # (H, W)
        plane_y = ((row_mm[:, None] * cos - column_mm * sin) / pose.size[1]).astype(np.float32)
        breathing = pose.breathing_mm * np.sin(self.slice_z * 0.3) * np.clip((self.slice_z - 110.0) / 60.0, 0.0, 1.0)
        front = np.clip((60.0 - plane_y) / 100.0, 0.0, 1.0)  # the back lies still on the table
        self.x = pose.warp_mm * self.smooth(rng, 70.0)
        self.x += plane_x
        self.y = pose.warp_mm * self.smooth(rng, 70.0)
        self.y += plane_y - self._lean(self.slice_z)[:, None, None]
        self.y += front * breathing.astype(np.float32)[:, None, None]
        self.z = pose.warp_mm * self.smooth(rng, 90.0)
        self.z += self.slice_z[:, None, None]

    @property
    def edge_mm(self) -> float:
        """Width of a soft edge: one voxel in plane, the partial-volume effect of a CT."""
        return self.spacing_mm[2]

    def column(self, z_mm: list[float], values: list[float]) -> np.ndarray:
        """A profile along z, linear between the given knots, as ``float32 (D, 1, 1)``."""
        return np.interp(self.slice_z, z_mm, values).astype(np.float32)[:, None, None]

    def smooth(self, rng: np.random.Generator, scale_mm: float) -> np.ndarray:
        """Smooth noise, ``float32 (D, H, W)``, of zero mean and unit variance, with bumps about ``scale_mm`` wide."""
        counts = [int(np.ceil(n * step / scale_mm)) + 3 for n, step in zip(self.shape, self.spacing_mm, strict=True)]
        coarse = rng.standard_normal(counts, dtype=np.float32) * np.float32(_SPLINE_GAIN)
        along_z, along_y, along_x = (_interpolation(n, count) for n, count in zip(self.shape, counts, strict=True))
        rows = np.tensordot(along_z, coarse, 1)  # (D, h, w)
        noise: np.ndarray = np.matmul(np.matmul(along_y, rows), along_x.T)  # (D, H, W)
        return noise

    def voxels(self, points: np.ndarray) -> np.ndarray:
        """Fractional voxel indices ``(N, 3)`` of standard-chest points ``(N, 3)``, both as ``(z, y, x)``."""
        z, y, x = points.T
        y = (y + self._lean(z)) * self._pose.size[1]
        x = x * self._pose.size[2]
        cos, sin = np.cos(self._pose.rotation_rad), np.sin(self._pose.rotation_rad)
        row_mm, column_mm = y * cos + x * sin, x * cos - y * sin
        return np.stack(
            [
                (z - self._pose.top_mm) * self._pose.size[0] / self.spacing_mm[0],
                (row_mm + self._pose.centre_mm[0]) / self.spacing_mm[1] + self._middle_row,
                (column_mm + self._pose.centre_mm[1]) / self.spacing_mm[2] + (self.shape[2] - 1) / 2,
            ],
            axis=1,
        )

    def box(self, low: np.ndarray, high: np.ndarray) -> Box:
        """The slices that hold every voxel between two standard-chest points ``(z, y, x)``, warp included."""
        margin = 3 * self._pose.warp_mm + self._pose.breathing_mm + 2.0
        low, high = low - margin, high + margin
        corners = np.array(
            [[(low, high)[i][0], (low, high)[j][1], (low, high)[k][2]] for i, j, k in np.ndindex(2, 2, 2)]
        )
        indices = self.voxels(corners)
        first = np.clip(np.floor(indices.min(0)), 0, self.shape).astype(int)
        last = np.clip(np.ceil(indices.max(0)) + 1, 0, self.shape).astype(int)
        return (slice(first[0], last[0]), slice(first[1], last[1]), slice(first[2], last[2]))

    def _lean(self, z: np.ndarray) -> np.ndarray:
        """Forward lean of the upper chest (kyphosis), as a shift in y."""
        return np.asarray(-self._pose.kyphosis_mm * (1 - np.clip(z / 130.0, -0.5, 1.0)) ** 2, dtype=np.float32)


@lru_cache(maxsize=512)
def _interpolation(size: int, knots: int) -> np.ndarray:
    """Cubic B-spline weights ``float32 (size, knots)`` that spread ``knots`` coefficients over ``size`` samples."""
    positions = np.arange(-3, knots + 1, dtype=float)
    samples = np.linspace(0.0, knots - 3 - 1e-6, size)
    return np.asarray(BSpline.design_matrix(samples, positions, 3).toarray(), dtype=np.float32)
