"""The nuisances of a scan: who lies on the table, on which scanner, and what noise it adds.

Nothing here ever sees the label, so no nuisance can tell it.
"""

from dataclasses import dataclass

import numpy as np

from covidnet.data.sources.phantom.anatomy import LUNG_BOTTOM_MM, Body
from covidnet.data.sources.phantom.grid import Grid, Pose

MIN_HU, MAX_HU = -1024, 3071  # the 12-bit range of CT


@dataclass(frozen=True, slots=True)
class Scanner:
    """One acquisition: grid, table, kernel, dose."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    noise_hu: float
    sharpness: float  # -1 soft kernel .. +1 sharp kernel
    table_mm: float  # distance of the table below the chest's centre
    offset_hu: float
    round_field: bool  # voxels outside the reconstruction circle are padded


def draw(detail: tuple[int, int, int], hardness: float, rng: np.random.Generator) -> tuple[Scanner, Pose, Body]:
    """Draw a patient and an acquisition; the distributions don't depend on anything but ``hardness``."""
    build, height = rng.normal(0.0, 1.0, 2).clip(-2.2, 2.2)
    size = (
        1.0 + 0.07 * height,
        0.98 + 0.04 * height + 0.05 * build,
        0.97 + 0.05 * height + 0.03 * build,
    )
    fat_mm = float(np.exp(rng.normal(2.6, 0.4) + 0.2 * build).clip(5.0, 34.0))
    female = rng.random() < 0.5
    shallow = float(rng.beta(1.5, 3.0))  # 0: full inspiration
    body = Body(
        fat_mm=fat_mm,
        breast_mm=float(rng.uniform(14.0, 42.0) if female else rng.uniform(0.0, 8.0)),
        lung_hu=float(-905.0 + 110.0 * shallow + rng.normal(0.0, 14.0)),
        gravity_hu=float(rng.uniform(25.0, 70.0) + 60.0 * shallow),
        mosaic_hu=float(rng.uniform(4.0, 16.0) + 26.0 * hardness * rng.random() ** 2),
        blood_hu=float(rng.uniform(120.0, 280.0) if rng.random() < 0.4 else rng.normal(42.0, 4.0)),
        dome_mm=(
            float(196.0 - 26.0 * shallow + rng.normal(0.0, 5.0)),
            float(203.0 - 26.0 * shallow + rng.normal(0.0, 5.0)),
        ),
        heart_scale=float(np.clip(rng.normal(1.0, 0.07), 0.82, 1.2)),
    )
    pose = Pose(
        size=size,
        centre_mm=(float(rng.normal(0.0, 6.0)), float(rng.normal(0.0, 7.0))),
        top_mm=float(rng.uniform(-42.0, -14.0)),
        rotation_rad=float(rng.normal(0.0, 0.03)),
        kyphosis_mm=float(rng.uniform(2.0, 22.0)),
        warp_mm=float(rng.uniform(1.5, 3.2)),
        breathing_mm=float(rng.uniform(1.5, 4.5) if rng.random() < 0.12 + 0.2 * hardness else 0.0),
    )
    slices = max(8, round(detail[0] * rng.uniform(0.7, 1.3)))
    length_mm = (LUNG_BOTTOM_MM + rng.uniform(8.0, 50.0) - pose.top_mm) * size[0]
    width_mm = (2 * 170.0 + 2.4 * fat_mm) * size[2] * rng.uniform(0.98, 1.2)
    pixel_mm = round(float(width_mm) / min(detail[1:]), 3)
    scanner = Scanner(
        shape=(slices, detail[1], detail[2]),
        spacing_mm=(round(float(length_mm) / slices, 3), pixel_mm, pixel_mm),
        noise_hu=float(np.exp(rng.uniform(np.log(7.0), np.log(40.0)))),
        sharpness=float(rng.uniform(-1.0, 1.0)),
        table_mm=float(size[1] * 122.0 + 0.5 * fat_mm + rng.uniform(4.0, 12.0)),
        offset_hu=float(rng.normal(0.0, 5.0)),
        round_field=bool(rng.random() < 0.3),
    )
    return scanner, pose, body


def body_rows(scanner: Scanner, pose: Pose, body: Body) -> slice:
    """The rows of the scan that the body can reach; the rest is air and table, and needs no anatomy."""
    slack_mm = 3 * pose.warp_mm + pose.breathing_mm + abs(np.sin(pose.rotation_rad)) * 190.0 * pose.size[2] + 3.0
    front_mm = -(112.0 + body.fat_mm + body.breast_mm) * pose.size[1] - slack_mm + pose.centre_mm[0]
    rear_mm = (118.0 + 0.5 * body.fat_mm) * pose.size[1] + slack_mm + pose.centre_mm[0]
    middle, last = (scanner.shape[1] - 1) / 2, scanner.shape[1]
    first, end = (int(middle + edge / scanner.spacing_mm[1]) for edge in (front_mm, rear_mm))
    return slice(max(0, first), min(last, end + 2))


def acquire(hu: np.ndarray, rows: slice, grid: Grid, scanner: Scanner, rng: np.random.Generator) -> np.ndarray:
    """Put the body (``rows`` of the scan) on the table, add noise, pad and round: ``int16 (D, H, W)`` HU."""
    row_mm = (np.arange(scanner.shape[1]) - (scanner.shape[1] - 1) / 2)[:, None] * scanner.spacing_mm[1]
    column_mm = (np.arange(scanner.shape[2]) - (scanner.shape[2] - 1) / 2) * scanner.spacing_mm[2]
    table = _table(row_mm, column_mm, scanner)
    scan = np.broadcast_to(table, scanner.shape).copy()
    np.maximum(hu, table[rows], out=scan[:, rows])
    scan += _noise(grid, scanner, rng) + scanner.offset_hu
    if scanner.round_field:
        radius_mm = min(scanner.shape[1:]) / 2 * scanner.spacing_mm[2]
        scan[:, row_mm**2 + column_mm**2 > radius_mm**2] = MIN_HU
    voxels: np.ndarray = np.rint(scan).clip(MIN_HU, MAX_HU).astype(np.int16)
    return voxels


def _table(row_mm: np.ndarray, column_mm: np.ndarray, scanner: Scanner) -> np.ndarray:
    """A curved carbon shell over a foam core, the same in all slices: ``float32 (H, W)``."""
    below = row_mm - scanner.table_mm + column_mm**2 / 900.0
    edge = scanner.spacing_mm[2]
    shells = [np.clip((3.0 - np.abs(below - at)) / edge + 0.5, 0.0, 1.0) for at in (4.0, 34.0)]
    within = np.clip((215.0 - np.abs(column_mm)) / edge, 0.0, 1.0)
    return np.asarray(-1000.0 + within * np.maximum(650.0 * shells[0], 520.0 * shells[1]), dtype=np.float32)


def _noise(grid: Grid, scanner: Scanner, rng: np.random.Generator) -> np.ndarray:
    """Quantum noise, correlated in plane by the kernel, stronger through the shoulders and the middle of the body."""
    noise = rng.standard_normal(scanner.shape, dtype=np.float32)
    blurred = 0.5 * noise
    blurred[:, 1:] += 0.25 * noise[:, :-1]
    blurred[:, :-1] += 0.25 * noise[:, 1:]
    blurred[:, :, 1:] += 0.5 * blurred[:, :, :-1]
    # A soft kernel keeps the blurred part, a sharp one what the blur leaves; both are scaled to unit variance.
    sharp = 0.5 + 0.5 * scanner.sharpness
    noise *= 1.3 * sharp
    blurred *= 1.0 - 1.6 * sharp
    noise += blurred
    shoulders = 1.0 + 0.8 * np.clip(1.0 - (grid.slice_z + 20.0) / 60.0, 0.0, 1.0)
    noise *= (scanner.noise_hu / noise[::4, ::4, ::4].std() * shoulders)[:, None, None]
    return noise
