"""Branching trees of the lungs: grown by halving, rendered as the volume that each short piece of a branch fills.

A vessel thinner than a voxel still brightens it by the share that it fills, as in a CT, so that the same tree looks
right at 4 mm and at 1 mm.
"""

from typing import NamedTuple

import numpy as np

from covidnet.data.sources.phantom.grid import Grid

# Directions (z, y, x) of the segmental roots of a lung; x is lateral. Upper, middle and lower lobe.
_ROOTS = np.array(
    [
        [-1.0, 0.1, 0.35],
        [-0.6, -0.8, 0.5],
        [-0.5, 0.7, 0.7],
        [0.1, -0.8, 0.7],
        [0.15, 0.1, 1.0],
        [0.1, 0.95, 0.5],
        [0.8, -0.4, 0.5],
        [0.8, 0.2, 0.8],
        [0.9, 0.7, 0.35],
    ]
)
_HILUM = np.array([128.0, 12.0, 36.0])  # (z, y, |x|)
_SPREAD = 0.62  # sideways share of a branch's direction
_LENGTH_MM, _RADIUS_MM = 27.0, 4.6
_SHORTEN, _THIN = 0.8, 0.775  # per generation
_GENERATIONS = 7


class Branches(NamedTuple):
    """Straight pieces of a tree: ends ``(N, 3)`` as (z, y, x), ``radius_mm`` and ``generation`` ``(N,)``."""

    start: np.ndarray
    end: np.ndarray
    radius_mm: np.ndarray
    generation: np.ndarray


def grow(rng: np.random.Generator) -> Branches:
    """The trees of both lungs, rooted at the hila."""
    direction = np.concatenate([_ROOTS * (1, 1, side) for side in (-1, 1)])
    start = np.concatenate([np.tile(_HILUM * (1, 1, side), (len(_ROOTS), 1)) for side in (-1, 1)])
    start = start + rng.normal(0.0, 3.0, start.shape)
    length = np.full(len(start), _LENGTH_MM) * rng.uniform(0.8, 1.2, len(start))
    radius = np.full(len(start), _RADIUS_MM) * rng.uniform(0.85, 1.15, len(start))
    pieces = []
    for generation in range(_GENERATIONS):
        direction = direction + _SPREAD * _sideways(rng, direction)
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        end = start + direction * length[:, None]
        pieces.append((start, end, radius, np.full(len(start), generation)))
        start, direction = np.repeat(end, 2, axis=0), np.repeat(direction, 2, axis=0)
        length = np.repeat(length, 2) * _SHORTEN * rng.uniform(0.75, 1.25, 2 * len(length))
        radius = np.repeat(radius, 2) * _THIN
    return Branches(*(np.concatenate(parts) for parts in zip(*pieces, strict=True)))


def fill(grid: Grid, branches: Branches, rng: np.random.Generator) -> np.ndarray:
    """The share of each voxel that the branches fill, ``float32 (D, H, W)`` in 0..1."""
    step_mm = 0.75 * grid.spacing_mm[2]
    span = branches.end - branches.start
    length = np.linalg.norm(span, axis=1)
    # Thick branches are filled by several strands, so that their section is a disc and not a line.
    strands = np.ceil((2.0 * branches.radius_mm / grid.spacing_mm[2]) ** 2).astype(int)
    count = np.ceil(length / step_mm).astype(int) * strands
    owner = np.repeat(np.arange(len(count)), count)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    along = (number + rng.random(len(owner))) / count[owner]
    off_axis = rng.standard_normal((len(owner), 3)) * (0.45 * branches.radius_mm[owner] * (strands[owner] > 1))[:, None]
    points = branches.start[owner] + span[owner] * along[:, None] + off_axis
    volume_mm3 = (np.pi * branches.radius_mm**2 * length / count)[owner]
    filled = _splat(grid.voxels(points), volume_mm3 / np.prod(grid.spacing_mm), grid.shape)
    np.minimum(filled, 1.0, out=filled)
    return filled


def _splat(voxels: np.ndarray, weights: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Share each point's weight among the eight voxels around it; points outside the volume are lost."""
    base = np.floor(voxels).astype(np.int64)
    inside = np.all((base >= 0) & (base < np.array(shape) - 1), axis=1)
    base, part, weights = base[inside], (voxels - base)[inside], weights[inside]
    flat = np.ravel_multi_index(tuple(base.T), shape)
    offsets = np.array([0, 1, shape[2], shape[2] + 1])
    offsets = np.concatenate([offsets, offsets + shape[1] * shape[2]])
    z, y, x = (np.stack([1.0 - share, share]) for share in part.T)  # (2, N) each
    shares = (z[:, None, None] * y[None, :, None] * x[None, None]).reshape(8, -1) * weights
    total = np.bincount((offsets[:, None] + flat).ravel(), shares.ravel(), int(np.prod(shape)))
    return total.astype(np.float32).reshape(shape)


def _sideways(rng: np.random.Generator, direction: np.ndarray) -> np.ndarray:
    """Random unit vectors at right angles to ``direction`` ``(N, 3)``; twins branch to opposite sides."""
    unit = direction / np.linalg.norm(direction, axis=1, keepdims=True)
    vectors = rng.standard_normal(direction.shape)
    vectors[1::2] = -vectors[: 2 * (len(vectors) // 2) : 2]
    vectors -= unit * np.sum(vectors * unit, axis=1, keepdims=True)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
