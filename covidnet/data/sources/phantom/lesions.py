"""Pneumonia, and the harmless findings that look like it.

Every finding is an opacity: a field in 0..1 that pulls lung tissue towards a target density, with an outline bent by
smooth noise. How the two pneumonias differ follows Bai et al., Radiology 296(2):E46, 2020: COVID-19 is more often
peripheral, ground-glass and reticular, and less often central or with effusion. No attribute decides alone, and the
harder the data set, the more often a scan shows a habit of the other class.
"""

from dataclasses import dataclass

import numpy as np

from covidnet.data.sources.phantom.anatomy import Chest
from covidnet.data.sources.phantom.grid import Box, Grid


@dataclass(frozen=True, slots=True)
class Habit:
    """How one class of pneumonia tends to look; ranges are (low, high)."""

    bilateral: float  # probability
    foci: tuple[int, int]
    radius_mm: tuple[float, float]
    rim_mm: float  # decay of the density of foci with depth under the pleura; 0: they follow the bronchi instead
    low_back: float  # preference for the lower, posterior lung
    target_hu: tuple[float, float]
    core: float  # probability that a focus has a consolidated core
    paving: float  # probability of a reticular pattern
    effusion: float
    buds: float  # probability of a cluster of small nodules


HABITS = {
    "NCP": Habit(0.9, (6, 13), (20.0, 42.0), 8.0, 1.8, (-650.0, -430.0), 0.25, 0.35, 0.03, 0.04),
    "CP": Habit(0.15, (2, 4), (26.0, 52.0), 0.0, 0.5, (-420.0, -120.0), 0.85, 0.05, 0.3, 0.35),
}


@dataclass(slots=True)
class Burden:
    """Opacity and target density of what is drawn so far, ``float32 (D, H, W)`` each."""

    opacity: np.ndarray
    target_hu: np.ndarray


def add_distractors(grid: Grid, chest: Chest, hardness: float, rng: np.random.Generator) -> None:
    """Paint harmless findings: dependent and plate atelectasis, nodules, apical scars, faint patches."""
    present = rng.random(5) < np.array([0.35, 0.2, 0.25, 0.2, 0.0]) + hardness * np.array([0.4, 0.3, 0.3, 0.25, 0.3])
    strength = rng.uniform(0.35, 1.0, 5) * (0.6 + 0.4 * hardness)
    burden = _nothing(grid)
    if present[0]:
        _dependent_atelectasis(grid, chest, burden, strength[0], rng)
    if present[1]:
        _plate_atelectasis(grid, chest, burden, strength[1], rng)
    if present[2]:
        for centre in _sites(grid, chest, rng, int(rng.integers(1, 4)), (-1, 1), 0.0, 0.0):
            _focus(grid, chest, burden, centre, float(rng.uniform(3.0, 7.0)), 40.0, strength[2], 0.1)
    if present[3]:
        scar = np.clip((22.0 - chest.depth_mm) / 14.0, 0.0, 1.0) * np.clip((34.0 - grid.z) / 12.0, 0.0, 1.0)
        _lay(burden, slice(None), strength[3] * scar * np.clip(0.4 + 0.7 * chest.shape_noise, 0.0, 1.0), -420.0)
    if present[4]:
        for centre in _sites(grid, chest, rng, int(rng.integers(1, 3)), (-1, 1), 0.0, 0.4):
            _focus(grid, chest, burden, centre, float(rng.uniform(9.0, 20.0)), -620.0, strength[4], 0.5)
    _apply(chest, burden)


def add_pneumonia(label: str, grid: Grid, chest: Chest, hardness: float, rng: np.random.Generator) -> np.ndarray:
    """Paint the pneumonia of ``label``; returns where it is, ``bool (D, H, W)``."""
    habit = _blend_habits(label, hardness, rng)
    reach = float(np.exp(rng.normal(0.0, 0.1 + 0.15 * hardness)))  # severity of this patient
    visibility = float(np.exp(rng.normal(0.0, 0.05 + 0.15 * hardness)).clip(0.5, 1.5))
    contrast = min((1.0 - 0.4 * hardness) * visibility, 1.0)
    shrink = (1.15 - 0.4 * hardness) * reach
    count = max(1, round(int(rng.integers(habit.foci[0], habit.foci[1] + 1)) * (1.0 - 0.35 * hardness) * reach))
    main = int(rng.choice((-1, 1)))
    sides = (-1, 1) if rng.random() < habit.bilateral else (main,)
    burden = _nothing(grid)
    centres = _sites(grid, chest, rng, count, sides, habit.rim_mm, habit.low_back)
    for centre in centres:
        radius = float(rng.uniform(*habit.radius_mm)) * shrink
        target = float(rng.uniform(*habit.target_hu))
        ruggedness = float(rng.uniform(0.3, 0.6))
        _focus(grid, chest, burden, centre, radius, target, contrast, ruggedness, habit.rim_mm)
        if rng.random() < habit.core:
            _focus(
                grid, chest, burden, centre, 0.6 * radius, min(target + 300.0, 45.0), contrast, ruggedness, habit.rim_mm
            )
    if rng.random() < habit.paving:
        _pave(grid, burden, rng)
    if rng.random() < habit.buds:
        _tree_in_bud(grid, chest, burden, centres[0], contrast, rng)
    burden.target_hu += 45.0 * chest.texture
    burden.opacity *= 1.0 - chest.bronchi  # open bronchi stay dark inside a consolidation
    if rng.random() < habit.effusion:
        _effusion(grid, chest, burden, main, float(rng.uniform(8.0, 26.0)) * shrink)
    return (_apply(chest, burden) > 0.3 * contrast) & (chest.lung > 0.5)


def _blend_habits(label: str, hardness: float, rng: np.random.Generator) -> Habit:
    """The label's own habit, with each attribute taken from the other class now and then."""
    own, other = HABITS[label], HABITS["CP" if label == "NCP" else "NCP"]
    borrowed = rng.random(8) < 0.15 * hardness
    source = [other if swap else own for swap in borrowed]
    return Habit(
        bilateral=source[0].bilateral,
        foci=source[1].foci,
        radius_mm=source[1].radius_mm,
        rim_mm=source[2].rim_mm,
        low_back=source[3].low_back,
        target_hu=source[4].target_hu,
        core=source[4].core,
        paving=source[5].paving,
        effusion=source[6].effusion,
        buds=source[7].buds,
    )


def _sites(
    grid: Grid,
    chest: Chest,
    rng: np.random.Generator,
    count: int,
    sides: tuple[int, ...],
    rim_mm: float,
    low_back: float,
) -> list[tuple[int, int, int]]:
    """Voxels for the centres of foci: under the pleura where ``rim_mm`` is positive, else along the bronchi."""
    candidates = rng.integers(0, grid.shape, (4000, 3))
    z, y, x = candidates.T
    z, y, x = candidates[(chest.depth_mm[z, y, x] > 2.0) & (chest.lung[z, y, x] > 0.9)].T
    depth = chest.depth_mm[z, y, x]
    height = np.clip(grid.z[z, y, x] / 220.0, 0.0, 1.0)
    weight = np.exp(low_back * (height + chest.back[z, y, x] - 1.0))
    if rim_mm > 0.0:
        lateral = np.abs(grid.x[z, y, x]) > 45.0
        weight = weight * np.exp(-depth / rim_mm) * np.where(lateral, 1.0, 0.1)
    else:
        weight = weight * np.clip(depth / 20.0, 0.0, 1.0)
    found = []
    for number in range(count):
        on_side = weight * (np.sign(grid.x[z, y, x]) == sides[number % len(sides)])
        pick = int(np.searchsorted(np.cumsum(on_side), rng.random() * on_side.sum()))
        found.append((int(z[pick]), int(y[pick]), int(x[pick])))
    return found


def _focus(
    grid: Grid,
    chest: Chest,
    burden: Burden,
    centre: tuple[int, int, int],
    radius_mm: float,
    target_hu: float,
    strength: float,
    ruggedness: float,
    rim_mm: float = 0.0,
) -> None:
    """One rounded opacity; with ``rim_mm`` it flattens against the pleura; a lobe's border half stops it."""
    box = _around(grid, centre, 1.6 * radius_mm)
    z, y, x = (a[box] - a[centre] for a in (grid.z, grid.y, grid.x))
    square = (z * z + y * y + x * x) / np.float32(radius_mm**2)
    if rim_mm > 0.0:
        deeper = np.maximum(chest.depth_mm[box] - chest.depth_mm[centre], 0.0)
        square += (deeper / np.float32(radius_mm)) ** 2
    other_lobe = (chest.fissure_mm[box] > 0.0) != (chest.fissure_mm[centre] > 0.0)
    rough = chest.shape_noise[box] + np.float32(0.6) * chest.texture[box]
    at_centre = float(chest.shape_noise[centre] + 0.6 * chest.texture[centre])
    # The centre itself is always inside, however the noise falls.
    inside = 1.0 - square - 0.7 * other_lobe + np.float32(ruggedness) * (rough - min(at_centre, 0.0))
    _lay(burden, box, np.clip(1.3 * inside, 0.0, 1.0) * np.float32(strength), target_hu)


def _dependent_atelectasis(grid: Grid, chest: Chest, burden: Burden, strength: float, rng: np.random.Generator) -> None:
    """A hazy band along the lowest pleura of a patient on the back, in both lungs."""
    thickness = float(rng.uniform(8.0, 18.0))
    band = np.clip((thickness - chest.depth_mm) / thickness, 0.0, 1.0) * np.clip((chest.back - 0.72) / 0.12, 0.0, 1.0)
    band *= np.clip((grid.z - 60.0) / 80.0, 0.0, 1.0) * np.clip(0.75 + 0.4 * chest.shape_noise, 0.0, 1.0)
    _lay(burden, slice(None), band * np.float32(strength), -430.0)


def _plate_atelectasis(grid: Grid, chest: Chest, burden: Burden, strength: float, rng: np.random.Generator) -> None:
    """A few thin bright bands above the diaphragm."""
    for centre in _sites(grid, chest, rng, int(rng.integers(1, 4)), (-1, 1), 0.0, 2.5):
        normal = rng.normal((1.0, 0.0, 0.0), (0.3, 0.5, 0.3)).astype(np.float32)
        normal /= np.linalg.norm(normal)
        radius_mm = float(rng.uniform(20.0, 45.0))
        box = _around(grid, centre, 1.2 * radius_mm)
        z, y, x = (a[box] - a[centre] for a in (grid.z, grid.y, grid.x))
        off_plane = np.abs(z * normal[0] + y * normal[1] + x * normal[2])
        near = np.clip(1.2 - np.sqrt(z * z + y * y + x * x) / np.float32(radius_mm), 0.0, 1.0)
        width = 2.0 + 0.4 * grid.spacing_mm[0]
        _lay(burden, box, near * np.clip(1.0 - off_plane / width, 0.0, 1.0) * np.float32(strength), -200.0)


def _tree_in_bud(
    grid: Grid, chest: Chest, burden: Burden, centre: tuple[int, int, int], contrast: float, rng: np.random.Generator
) -> None:
    """A cluster of small nodules around a focus."""
    spread = np.array([20.0, 20.0, 20.0]) / grid.spacing_mm
    for offset in rng.standard_normal((int(rng.integers(8, 18)), 3)) * spread:
        place = tuple(int(v) for v in np.clip(np.rint(centre + offset), 0, np.array(grid.shape) - 1))
        if chest.depth_mm[place] > 0.0:
            bud = (place[0], place[1], place[2])
            _focus(grid, chest, burden, bud, float(rng.uniform(3.0, 5.5)), -60.0, contrast, 0.1)


def _pave(grid: Grid, burden: Burden, rng: np.random.Generator) -> None:
    """Crazy paving: thickened septa show as a net of lines inside the ground glass."""
    net = np.abs(grid.smooth(rng, max(9.0, 2.2 * grid.spacing_mm[2])))
    burden.target_hu += 240.0 * np.clip(1.0 - net / 0.35, 0.0, 1.0) * (burden.opacity > 0.05)


def _effusion(grid: Grid, chest: Chest, burden: Burden, side: int, height_mm: float) -> None:
    """Fluid that layers behind one lung, deepest at the base."""
    level = chest.back * 180.0 - (180.0 - height_mm) - np.clip(170.0 - grid.z, 0.0, 200.0) * 0.35
    fluid = np.clip(level / 4.0, 0.0, 1.0) * (np.sign(grid.x) == side)
    _lay(burden, slice(None), fluid, 12.0)


def _around(grid: Grid, centre: tuple[int, int, int], radius_mm: float) -> Box:
    """The box of voxels within ``radius_mm`` of a voxel, along each axis."""
    reach = (int(np.ceil(radius_mm / step)) + 1 for step in grid.spacing_mm)
    z, y, x = (slice(max(0, c - r), c + r + 1) for c, r in zip(centre, reach, strict=True))
    return z, y, x


def _nothing(grid: Grid) -> Burden:
    return Burden(np.zeros(grid.shape, np.float32), np.full(grid.shape, -600.0, np.float32))


def _lay(burden: Burden, box: Box | slice, opacity: np.ndarray, target_hu: float) -> None:
    """Add one finding; where two meet, the more opaque gives the opacity and the denser the target."""
    old = burden.opacity[box]
    part = burden.target_hu[box]
    touched = opacity > 0.0
    np.copyto(part, np.where(old > 0.0, np.maximum(part, target_hu), target_hu), where=touched)
    np.maximum(old, opacity, out=old)


def _apply(chest: Chest, burden: Burden) -> np.ndarray:
    """Pull lung tissue towards the targets, never making anything darker; returns the opacity."""
    opacity: np.ndarray = burden.opacity * chest.lung
    # A voxel that is lung in part changes by its lung alone, whose density its own no longer shows.
    tissue = np.where(chest.lung < 1.0, np.float32(chest.lung_hu), chest.hu)
    chest.hu += np.maximum(opacity * (burden.target_hu - tissue), 0.0)
    return opacity
