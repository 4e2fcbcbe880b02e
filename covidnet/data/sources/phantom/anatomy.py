"""A healthy chest on a grid: Hounsfield units, and how deep in a lung each voxel lies.

Organs are simple solids (ellipsoids, tubes, sheets) in standard-chest millimetres, painted one over the other with
edges one voxel soft. The patient's map (`grid.Pose`) bends them into shapes that no formula shows any more.
"""

from dataclasses import dataclass

import numpy as np

from covidnet.data.sources.phantom import vessels
from covidnet.data.sources.phantom.grid import Box, Grid

AIR_HU, FAT_HU, MUSCLE_HU, LIVER_HU = -1000.0, -100.0, 48.0, 58.0
LUNG_TOP_MM, LUNG_BOTTOM_MM = 0.0, 262.0  # standard z of the apices and of the lowest recess


@dataclass(frozen=True, slots=True)
class Body:
    """What differs between healthy people beside size and posture."""

    fat_mm: float
    breast_mm: float
    lung_hu: float
    gravity_hu: float  # how much denser the back of the lung is than its front
    mosaic_hu: float  # patchy ventilation
    blood_hu: float  # 40 without contrast agent
    dome_mm: tuple[float, float]  # standard z of the (right, left) diaphragm dome
    heart_scale: float


@dataclass(slots=True)
class Chest:
    """A painted chest.

    Args:
        hu: ``float32 (D, H, W)``.
        depth_mm: distance to the lung's surface, positive inside a lung, ``float32 (D, H, W)``.
        lung: share of a voxel that is lung, ``float32 (D, H, W)``.
        lung_hu: density of clear lung.
        fissure_mm: signed distance to the oblique fissure, positive in the lower lobe, ``float32 (D, H, W)``.
        back: 0 at the front of the lung, 1 at its back, ``float32 (D, H, W)``.
        bronchi: share of a voxel that is open bronchus, ``float32 (D, H, W)``.
        shape_noise: unit smooth noise of 16 mm, for outlines that no formula shows.
        texture: unit smooth noise of 7 mm, the grain of tissue.
    """

    hu: np.ndarray
    depth_mm: np.ndarray
    lung: np.ndarray
    lung_hu: float
    fissure_mm: np.ndarray
    back: np.ndarray
    bronchi: np.ndarray
    shape_noise: np.ndarray
    texture: np.ndarray


def build(grid: Grid, body: Body, rng: np.random.Generator) -> Chest:
    """Paint the chest of ``body`` on ``grid``."""
    side = np.abs(grid.x)
    coarse, fine = grid.smooth(rng, 45.0), grid.smooth(rng, 16.0)
    texture = grid.smooth(rng, 7.0)
    wall_mm, back = _pleural_distance(grid, side)
    skin_mm = _skin_depth(grid, body)
    hu = _soft_tissue(grid, body, wall_mm, skin_mm, fine)
    _paint_bones(grid, hu, wall_mm, skin_mm, side)
    depth_mm = _abdomen(grid, body, hu, wall_mm, skin_mm, coarse)
    np.minimum(depth_mm, wall_mm, out=depth_mm)
    np.minimum(depth_mm, _apex_depth(grid, side), out=depth_mm)
    _mediastinum(grid, body, hu, depth_mm, fine)
    lung = _soft(grid, depth_mm)
    fissure_mm = 0.62 * grid.z + 0.78 * grid.y - 73.0
    fissure_mm += 3.0 * coarse
    tissue = body.mosaic_hu * coarse
    tissue += body.gravity_hu * back
    tissue += 18.0 * texture
    tissue += body.lung_hu
    _add_fissures(grid, tissue, fissure_mm)
    tissue -= hu
    tissue *= lung
    hu += tissue
    bronchi = _vasculature(grid, hu, lung, body, rng)
    _great_vessels(grid, body, hu, lung)
    return Chest(hu, depth_mm, lung, body.lung_hu, fissure_mm, back, bronchi, fine, texture)


def _pleural_distance(grid: Grid, side: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance inside the two half-chests (mm, positive inside) and the front-to-back position 0..1."""
    knots = [-60.0, 0.0, 12.0, 30.0, 60.0, 100.0, 150.0, 200.0, 300.0]
    centre_x = grid.column(knots, [44, 46, 48, 52, 56, 61, 64, 66, 64])
    radius_x = grid.column(knots, [26, 32, 38, 46, 55, 63, 69, 72, 70])
    centre_y = grid.column(knots, [24, 20, 16, 11, 6, 2, 0, 0, 0])
    radius_y = grid.column(knots, [30, 36, 44, 54, 66, 80, 90, 92, 88])
    across = (side - centre_x) / radius_x
    along = (grid.y - centre_y) / radius_y
    wall_mm = (1.0 - np.sqrt(across * across + along * along)) * np.minimum(radius_x, radius_y)
    return wall_mm, np.clip(0.5 + 0.5 * along, 0.0, 1.0)


def _skin_depth(grid: Grid, body: Body) -> np.ndarray:
    """Distance below the skin, mm, positive inside the body."""
    knots = [-60.0, -25.0, 0.0, 40.0, 80.0, 130.0, 200.0, 300.0]
    half_width = grid.column(knots, [150, 178, 188, 182, 168, 160, 160, 158]) + 1.2 * body.fat_mm
    front = grid.column(knots, [-28, -44, -56, -74, -92, -106, -110, -106]) - body.fat_mm
    rear = grid.column(knots, [90, 104, 112, 116, 116, 114, 112, 108]) + 0.5 * body.fat_mm
    centre, half_height = (front + rear) / 2, (rear - front) / 2
    bump = (
        body.breast_mm
        * np.exp(-(((np.abs(grid.x[:1]) - 74.0) / 42.0) ** 2))
        * np.exp(-(((grid.slice_z[:, None, None] - 128.0) / 48.0) ** 2))
    )
    across = (grid.x / half_width) ** 2
    along = grid.y - centre
    along += np.minimum(-along / half_height, 1.0).clip(0.0) * bump
    along = (along / half_height) ** 2
    return (1.0 - np.sqrt(across + along - 0.5 * np.minimum(across * along, 1.0))) * half_height


def _soft_tissue(grid: Grid, body: Body, wall_mm: np.ndarray, skin_mm: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """Air, skin, fat and muscle, with streaks of fat between the muscles."""
    thickness = grid.column([-40.0, 0.0, 50.0, 100.0, 300.0], [90, 70, 34, 20, 16])
    edge = grid.edge_mm
    muscle = _soft(grid, wall_mm + thickness + 4.0 * fine)
    muscle *= _soft(grid, skin_mm - 0.8 * body.fat_mm)
    spine = _ellipse(grid.x / 1.35, grid.y - 92.0, 38.0, 24.0)
    muscle = np.maximum(muscle, _soft(grid, spine))
    streaks = np.clip(1.4 * fine - 1.3, 0.0, 0.85)
    tissue: np.ndarray = FAT_HU + (MUSCLE_HU - FAT_HU) * muscle * (1.0 - streaks) + 9.0 * fine
    skin = np.clip(1.5 - skin_mm / 2.5, 0.0, 1.0)
    tissue += skin * (20.0 - tissue) * min(1.0, 3.0 / edge)
    tissue -= AIR_HU
    tissue *= _soft(grid, skin_mm)
    tissue += AIR_HU
    return tissue


def _paint_bones(grid: Grid, hu: np.ndarray, wall_mm: np.ndarray, skin_mm: np.ndarray, side: np.ndarray) -> None:
    """Ribs, shoulder blades, collar bones, sternum and spine."""
    _ribs(grid, hu, wall_mm, side)
    _shoulder_blades(grid, hu, wall_mm, skin_mm, side)
    for direction in (-1.0, 1.0):
        _tube(grid, hu, (-8.0, -46.0, 20.0 * direction), (-26.0, -6.0, 135.0 * direction), 6.0, 480.0)
    _sternum(grid, hu)
    _spine(grid, hu)


def _ribs(grid: Grid, hu: np.ndarray, wall_mm: np.ndarray, side: np.ndarray) -> None:
    """Bands around the half-chests that sink towards the front, where they end as cartilage."""
    shell = np.flatnonzero((np.abs(wall_mm + 6.0) < 4.0 + grid.edge_mm) & (side > 20.0))
    outside, x, y, z = (a.ravel()[shell] for a in (wall_mm, side, grid.y, grid.z))
    turns = (z + 0.42 * y) / 27.0
    off_rib = np.abs(turns - np.round(turns)) * 25.0
    rib = _soft(grid, 4.0 - np.abs(outside + 6.0)) * _soft(grid, 5.5 - off_rib)
    rib *= np.clip((z + 22.0) / 8.0, 0.0, 1.0)
    cartilage = np.clip((-y - 58.0) / 15.0, 0.0, 1.0) * np.clip((62.0 - x) / 15.0, 0.0, 1.0)
    voxels = hu.reshape(-1)
    voxels[shell] += rib * (560.0 - 450.0 * cartilage - voxels[shell])


def _shoulder_blades(grid: Grid, hu: np.ndarray, wall_mm: np.ndarray, skin_mm: np.ndarray, side: np.ndarray) -> None:
    """Thin plates over the back of the upper ribs, narrowing towards the feet."""
    shell = np.flatnonzero((np.abs(wall_mm + 21.0) < 4.0 + grid.edge_mm) & (skin_mm > 8.0) & (grid.y > 8.0))
    outside, x, z = (a.ravel()[shell] for a in (wall_mm, side, grid.z))
    reach = np.minimum(118.0 - z, x - 62.0 - 0.18 * np.maximum(z, 0.0))
    plate = _soft(grid, 2.6 - np.abs(outside + 21.0)) * np.clip(reach / 6.0 + 0.5, 0.0, 1.0)
    voxels = hu.reshape(-1)
    voxels[shell] += plate * (520.0 - voxels[shell])


def _sternum(grid: Grid, hu: np.ndarray) -> None:
    box = grid.box(np.array([10.0, -110.0, -30.0]), np.array([180.0, -20.0, 30.0]))
    x, y, z = grid.x[box], grid.y[box], grid.z[box]
    plane = grid.column([0.0, 40.0, 100.0, 170.0], [-42, -58, -80, -92])[box[0]]
    width = grid.column([20.0, 40.0, 60.0, 170.0], [25, 22, 14, 15])[box[0]]
    inside = np.minimum(np.minimum(width - np.abs(x), 5.5 - np.abs(y - plane)), np.minimum(z - 22.0, 165.0 - z))
    _blend(hu, box, _soft(grid, inside), 300.0)


def _spine(grid: Grid, hu: np.ndarray) -> None:
    """Vertebral bodies and discs, the canal, the arch with its processes."""
    low, high = grid.slice_z[0] - 10.0, grid.slice_z[-1] + 10.0
    box = grid.box(np.array([low, 30.0, -36.0]), np.array([high, 122.0, 36.0]))
    x, y, z = grid.x[box], grid.y[box], grid.z[box]
    phase = z / 25.0
    disc = np.clip((np.abs(phase - np.round(phase)) * 25.0 - 9.5) / 3.0, 0.0, 1.0)
    body = _ellipse(x, y - 54.0, 18.0, 15.0)
    rim = np.clip(1.0 - body / 4.0, 0.0, 1.0)
    _blend(hu, box, _soft(grid, body), (190.0 + 300.0 * rim) * (1.0 - disc) + 85.0 * disc)
    arch = np.maximum(_ellipse(x, y - 79.0, 17.0, 13.0), np.minimum(4.5 - np.abs(x), 114.0 - y))
    arch = np.maximum(arch, np.minimum(4.5 - np.abs(y - 82.0 - 0.12 * np.abs(x)), 34.0 - np.abs(x)))
    arch = np.minimum(arch, y - 68.0) - 9.0 * disc
    _blend(hu, box, _soft(grid, arch), 500.0)
    _blend(hu, box, _soft(grid, _ellipse(x, y - 76.0, 10.0, 8.0)), 22.0)


def _abdomen(
    grid: Grid, body: Body, hu: np.ndarray, wall_mm: np.ndarray, skin_mm: np.ndarray, coarse: np.ndarray
) -> np.ndarray:
    """Liver, spleen, stomach and bowel gas; returns the height above the diaphragm (mm, positive in the chest)."""
    right, left = (np.float32(dome) for dome in body.dome_mm)
    above_mm = np.where(grid.x < 0.0, right, left)
    above_mm += 46.0 * ((np.abs(grid.x) - 50.0) / 75.0) ** 2
    above_mm += 36.0 * ((grid.y + 24.0) / 76.0) ** 2
    above_mm += 4.0 * coarse
    above_mm -= grid.z
    above_mm *= 0.85
    box = (slice(int(np.searchsorted(grid.slice_z, min(body.dome_mm) - 20.0)), grid.shape[0]), slice(None), slice(None))
    x, y, z = grid.x[box], grid.y[box], grid.z[box]
    # Between the two half-chests the cavity reaches from the front wall's muscles to the spine.
    middle = np.minimum(30.0 - np.abs(x), np.minimum(38.0 - y, skin_mm[box] - body.fat_mm - 12.0))
    cavity = np.minimum(np.maximum(wall_mm[box] - 1.0, middle), -above_mm[box] - 1.5)
    cavity = _soft(grid, cavity)
    _blend(hu, box, cavity, FAT_HU + 10.0)
    liver_edge = 34.0 - 0.5 * (y + 30.0) - 0.7 * np.maximum(z - body.dome_mm[0] - 25.0, 0.0) + 8.0 * coarse[box]
    agent = max(body.blood_hu - 40.0, 0.0)
    _blend(hu, box, cavity * _soft(grid, liver_edge - x), LIVER_HU + 0.3 * agent)
    for centre, radii, value in (
        ((body.dome_mm[1] + 34.0, 38.0, 92.0), (42.0, 36.0, 24.0), 52.0 + 0.4 * agent),
        ((body.dome_mm[1] + 34.0, -22.0, 62.0), (32.0, 46.0, 36.0), 25.0),
        ((body.dome_mm[1] + 32.0, -56.0, 64.0), (22.0, 13.0, 24.0), -960.0),
        ((body.dome_mm[1] + 46.0, -8.0, 104.0), (20.0, 17.0, 14.0), -820.0),
    ):
        _ellipsoid(grid, hu, centre, radii, value, cavity, box)
    return above_mm


def _mediastinum(grid: Grid, body: Body, hu: np.ndarray, depth_mm: np.ndarray, fine: np.ndarray) -> None:
    """Mediastinal fat, then the heart with its fat rim, muscle and blood; both push the lungs aside in ``depth_mm``."""
    box = grid.box(np.array([grid.slice_z[0], -110.0, -64.0]), np.array([grid.slice_z[-1], 110.0, 64.0]))
    distance_mm = _mediastinal_distance(grid, box)
    np.minimum(depth_mm[box], distance_mm, out=depth_mm[box])
    central = _soft(grid, -distance_mm)
    central *= np.clip((grid.y[box] + grid.column([0.0, 40.0, 100.0, 170.0], [36, 50, 72, 84])[box[0]]) / 4.0, 0.0, 1.0)
    above = np.clip((body.dome_mm[0] + 20.0 - grid.z[box]) / 6.0, 0.0, 1.0)
    _blend(hu, box, central * above * (grid.y[box] < 44.0), -55.0 + 45.0 * fine[box])
    box = grid.box(np.array([85.0, -100.0, -75.0]), np.array([245.0, 65.0, 110.0]))
    heart = _heart_depth(grid, body, box)
    np.minimum(depth_mm[box], -heart, out=depth_mm[box])
    agent = body.blood_hu - 40.0
    for depth, value in ((0.0, -75.0), (4.0, 45.0 + 0.25 * agent), (13.0, body.blood_hu)):
        _blend(hu, box, _soft(grid, heart - depth), value)


def _heart_depth(grid: Grid, body: Body, box: Box) -> np.ndarray:
    """Depth below the heart's surface (mm, positive inside): an egg with its tip to the left, front and feet."""
    scale = np.float32(body.heart_scale)
    x, y, z = grid.x[box] - 22.0, grid.y[box] + 26.0, grid.z[box] - 162.0
    along = 0.72 * x - 0.38 * y + 0.58 * z
    square = x * x + y * y + z * z - along * along
    taper = 1.0 - 0.0022 * along
    radius = np.sqrt((along / 64.0) ** 2 + square / (47.0 * taper) ** 2)
    return (scale - radius) * np.float32(47.0)


def _mediastinal_distance(grid: Grid, box: Box) -> np.ndarray:
    """Distance outside the column between the lungs, with the spine and what runs along it (mm)."""
    x, y = grid.x[box], grid.y[box]
    centre = grid.column([0.0, 100.0, 300.0], [6.0, 2.0, 10.0])[box[0]]
    half = grid.column([-30.0, 0.0, 50.0, 90.0, 130.0, 170.0, 300.0], [34, 30, 26, 24, 24, 18, 16])[box[0]]
    column = -_ellipse((x - 3.0) * (24.0 / half), y - centre, 24.0, 62.0)
    spine = -_ellipse(x, y - 58.0, 22.0, 26.0)
    distance: np.ndarray = np.minimum(np.minimum(column, spine), np.abs(x - 3.0) - 2.0)
    return distance


def _apex_depth(grid: Grid, side: np.ndarray) -> np.ndarray:
    """Height below the domes of the lungs' apices (mm)."""
    dome = ((side - 48.0) / 30.0) ** 2 + ((grid.y - 18.0) / 36.0) ** 2
    return (grid.z - LUNG_TOP_MM - 12.0 * np.minimum(dome, 6.0)) * np.float32(0.8)


def _add_fissures(grid: Grid, tissue: np.ndarray, fissure_mm: np.ndarray) -> None:
    """Brighten the oblique fissures and the right horizontal one: sheets about 1 mm thick."""
    thin_hu = 150.0 / grid.edge_mm
    oblique = np.abs(fissure_mm)
    oblique *= -thin_hu / grid.edge_mm
    oblique += thin_hu
    tissue += np.maximum(oblique, 0.0, out=oblique)
    reach = 1.2 * grid.spacing_mm[0]
    box = grid.box(np.array([132.0 - reach, -100.0, -140.0]), np.array([146.0 + reach, 90.0, 0.0]))
    horizontal = np.maximum(1.0 - np.abs(grid.z[box] - 132.0 + 0.1 * grid.x[box]) / reach, 0.0)
    tissue[box] += 0.4 * thin_hu * horizontal * ((grid.x[box] < 0.0) & (fissure_mm[box] < 0.0))


def _vasculature(grid: Grid, hu: np.ndarray, lung: np.ndarray, body: Body, rng: np.random.Generator) -> np.ndarray:
    """Paint the lung vessels and the bronchi beside them; returns the open share of the bronchi."""
    tree = vessels.grow(rng)
    blood = vessels.fill(grid, tree, rng) * lung
    hu += blood * (0.6 * body.blood_hu + 10.0 - hu)
    near = tree.generation < 4
    bronchi = vessels.Branches(
        tree.start[near] + (0.0, 5.0, 0.0),
        tree.end[near] + (0.0, 4.0, 0.0),
        0.8 * tree.radius_mm[near],
        tree.generation[near],
    )
    open_share: np.ndarray = 0.5 * vessels.fill(grid, bronchi, rng) * lung
    hu += open_share * (-780.0 - hu)  # a thin wall lifts the mean of lumen and wall
    return open_share


def _great_vessels(grid: Grid, body: Body, hu: np.ndarray, lung: np.ndarray) -> None:
    """Aorta, vena cava, pulmonary arteries, the vessels of the neck, the gullet, and the airway, in that order."""
    blood = body.blood_hu
    for start, end, radius, value in (
        ((60.0, -14.0, -26.0), (150.0, -14.0, -27.0), 9.0, blood),
        ((86.0, -22.0, -10.0), (150.0, -24.0, -6.0), 16.0, blood),
        ((86.0, -22.0, -8.0), (78.0, 6.0, 14.0), 14.0, blood),
        ((78.0, 6.0, 14.0), (86.0, 34.0, 24.0), 13.0, blood),
        ((86.0, 36.0, 25.0), (170.0, 44.0, 22.0), 12.0, blood),
        ((170.0, 44.0, 22.0), (330.0, 40.0, 10.0), 11.0, blood),
        ((150.0, -34.0, 8.0), (112.0, -22.0, 16.0), 14.0, blood),
        ((112.0, -20.0, 16.0), (120.0, 8.0, 38.0), 10.5, blood),
        ((116.0, -14.0, 12.0), (122.0, 2.0, -40.0), 10.0, blood),
        ((145.0, 12.0, 40.0), (150.0, 0.0, 12.0), 9.0, blood),
        ((148.0, 10.0, -40.0), (150.0, 0.0, -8.0), 9.0, blood),
        ((30.0, -20.0, -24.0), (72.0, -16.0, -24.0), 8.0, blood),
        ((30.0, -22.0, 20.0), (64.0, -26.0, -18.0), 7.0, blood),
        ((-50.0, -4.0, -22.0), (76.0, -14.0, -8.0), 6.0, blood),
        ((-50.0, 0.0, 24.0), (76.0, 2.0, 16.0), 5.5, blood),
        ((-50.0, 26.0, 5.0), (215.0, 28.0, 6.0), 7.0, 38.0),
        ((-60.0, 6.0, 0.0), (104.0, 12.0, 2.0), 11.0, 20.0),
        ((-60.0, 6.0, 0.0), (106.0, 12.0, 2.0), 9.0, -985.0),
        ((106.0, 12.0, 2.0), (130.0, 16.0, -36.0), 6.5, -975.0),
        ((106.0, 12.0, 2.0), (136.0, 20.0, 42.0), 6.0, -975.0),
    ):
        _tube(grid, hu, start, end, radius, value, lung)


def _tube(
    grid: Grid,
    hu: np.ndarray,
    start: tuple[float, float, float],
    end: tuple[float, float, float],
    radius_mm: float,
    value: float,
    lung: np.ndarray | None = None,
) -> None:
    """Paint a straight tube between two points ``(z, y, x)``; what it fills is taken from ``lung``."""
    low, high = np.minimum(start, end) - radius_mm, np.maximum(start, end) + radius_mm
    box = grid.box(low, high)
    z, y, x = grid.z[box] - start[0], grid.y[box] - start[1], grid.x[box] - start[2]
    axis = np.subtract(end, start).astype(np.float32)
    along = np.clip((z * axis[0] + y * axis[1] + x * axis[2]) / np.float32(axis @ axis), 0.0, 1.0)
    square = (z - along * axis[0]) ** 2 + (y - along * axis[1]) ** 2 + (x - along * axis[2]) ** 2
    filled = _soft(grid, radius_mm - np.sqrt(square))
    _blend(hu, box, filled, value)
    if lung is not None:
        lung[box] *= 1.0 - filled


def _ellipsoid(
    grid: Grid,
    hu: np.ndarray,
    centre: tuple[float, float, float],
    radii: tuple[float, float, float],
    value: float,
    within: np.ndarray,
    within_box: Box,
) -> None:
    z, y, x = (a[within_box] - c for a, c in zip((grid.z, grid.y, grid.x), centre, strict=True))
    depth = (1.0 - np.sqrt((z / radii[0]) ** 2 + (y / radii[1]) ** 2 + (x / radii[2]) ** 2)) * np.float32(min(radii))
    _blend(hu, within_box, _soft(grid, depth) * within, value)


def _ellipse(x: np.ndarray, y: np.ndarray, radius_x: float, radius_y: float) -> np.ndarray:
    """Depth inside an upright elliptical column (mm, positive inside)."""
    return (1.0 - np.sqrt((x / radius_x) ** 2 + (y / radius_y) ** 2)) * np.float32(min(radius_x, radius_y))


def _soft(grid: Grid, depth_mm: np.ndarray) -> np.ndarray:
    """Share of a voxel inside a surface, from the depth below it."""
    share = depth_mm * np.float32(1.0 / grid.edge_mm)
    share += np.float32(0.5)
    return np.clip(share, 0.0, 1.0, out=share)


def _blend(hu: np.ndarray, box: Box, share: np.ndarray, value: float | np.ndarray) -> None:
    """Replace ``share`` of each voxel of ``box`` by ``value``."""
    part = hu[box]
    part += share * (value - part)
