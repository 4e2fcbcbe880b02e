"""Near duplicates: the same scan under another window, format, mirroring or a slightly other crop.

Every scan is turned to the orientation of the average one and given a few neighbours among those near its pivots, which
are the square root of N of the scans, so that the work grows as N^1.5 and not as N^2. Each pair's signatures are
registered, over mirrorings and crops of every axis, and scored by the correlation of what the two have beyond the average
scan. Pairs that come near are looked at voxel by voxel (`covidnet.data.audit.confirm`), which decides.

    for first, second, likeness in near_duplicates(packed.scans): ...
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from covidnet.data.audit.confirm import likeness
from covidnet.data.audit.signatures import (
    COARSE,
    FLIPS,
    KEPT,
    UNCUT,
    crop_matrices,
    every,
    signatures,
    signs,
    weights,
)

# Likeness of one scan. Measured: real people reach 0.57, 16 million pairs of phantoms 0.86, a scan saved again 0.94 to 1.
ALIKE = 0.91
NEAR = 0.75  # correlation of signatures from which a pair is looked at: a scan saved again has 0.83 to 1
GATE = 0.7  # coarse score that a pair needs to be registered in full
EXACT = 8192  # scans up to which neighbours are searched among all
CELLS = 8  # of pivots, in which a scan's neighbours are searched
NEIGHBOURS, BUDGET = 16, 300_000  # candidates per scan, and in all
PRIOR = 5.0  # the average starts from this many empty scans: of three scans it says little
BATCH = 1024


def near_duplicates(scans: np.ndarray, threshold: float = ALIKE) -> list[tuple[int, int, float]]:
    """Pairs of scans that are one, as ``(first, second, likeness)``, most alike first.

    Args:
        scans: packed, ``uint8 (N, D, H, W)``.
        threshold: likeness from which a pair counts.
    """
    found = []
    for pair in propose(signatures(scans)):
        first, second = (np.flip(scans[row], axes) for row, axes in zip(pair.rows, pair.mirrored, strict=True))
        found.append((*pair.rows, likeness(first, second, pair.crop)))
    return sorted((pair for pair in found if pair[2] >= threshold), key=lambda pair: -pair[2])


@dataclass(frozen=True, slots=True)
class Proposal:
    """Two scans that may be one.

    Args:
        rows: of the scans.
        mirrored: axes along which each is mirrored.
        crop: entry of `crop_matrices` for each axis ``(3,)``, which then takes the first to the second.
    """

    rows: tuple[int, int]
    mirrored: tuple[tuple[int, ...], tuple[int, ...]]
    crop: np.ndarray


def propose(signatures: np.ndarray) -> Iterator[Proposal]:
    """Pairs of scans whose signatures agree, mirrored and cropped, beyond what all have in common.

    Args:
        signatures: ``(N, *KEPT)`` of `covidnet.data.audit.signatures`.
    """
    count = len(signatures)
    if count < 2:
        return
    aligned = align(signatures)
    coarse, fine = (_average(aligned, kept) for kept in (COARSE, KEPT))
    pairs = neighbours(_descriptors(aligned), min(NEIGHBOURS, max(3, BUDGET // count), count - 1))
    for batch in _batches(pairs):
        first, second = (aligned.rows(batch[:, side], COARSE) for side in (0, 1))
        flip = _best_flip(first, second, coarse)
        score, crop = register(first, second, coarse, flip, np.full((len(batch), 3), UNCUT), step=2)
        likely = score >= GATE
        if not likely.any():
            continue
        batch, flip = batch[likely], flip[likely]
        first, second = (aligned.rows(batch[:, side], KEPT) for side in (0, 1))
        score, crop = register(first, second, fine, flip, crop[likely], step=1)
        flips = FLIPS[flip] ^ FLIPS[aligned.flip[batch[:, 0]]], FLIPS[aligned.flip[batch[:, 1]]]
        for index in np.flatnonzero(score >= NEAR):
            rows = int(batch[index, 0]), int(batch[index, 1])
            yield Proposal(rows, (_axes(flips[0][index]), _axes(flips[1][index])), crop[index])


def _axes(flips: np.ndarray) -> tuple[int, ...]:
    return tuple(np.flatnonzero(flips).tolist())


@dataclass(frozen=True, slots=True)
class Aligned:
    """Signatures, and how each is mirrored and cropped to lie like the average scan.

    Args:
        signatures: ``(N, *KEPT)``.
        flip: entry of `FLIPS` ``(N,)``.
        crop: entry of `crop_matrices` for each axis ``(N, 3)``.
    """

    signatures: np.ndarray
    flip: np.ndarray
    crop: np.ndarray

    def rows(self, rows: np.ndarray, kept: tuple[int, int, int], cropped: bool = False) -> np.ndarray:
        """The lowest ``kept`` frequencies of chosen scans, mirrored and, if asked for, cropped; ``float32 (P, *kept)``."""
        chosen: np.ndarray = _low(self.signatures[rows], kept) * signs(FLIPS[self.flip[rows]], kept)
        for axis in range(3 if cropped else 0):
            chosen = _crop(chosen, axis, self.crop[rows, axis])
        return chosen


def align(signatures: np.ndarray) -> Aligned:
    """Mirror and crop every scan to lie like the average of all, so that neighbours are people and not crops."""
    count = len(signatures)
    aligned = Aligned(signatures, np.zeros(count, np.int64), np.full((count, 3), UNCUT))
    nothing = np.zeros(COARSE, np.float32)
    for step in (0, 0, 2, 1):  # mirrorings settle first
        average = _average(aligned, COARSE)[None]
        for rows in _batches(np.arange(count)):
            low = _low(signatures[rows], COARSE)
            aligned.flip[rows] = flip = _best_flip(low, average, nothing)
            if step:
                _, aligned.crop[rows] = register(low, average, nothing, flip, aligned.crop[rows], step)
    return aligned


def neighbours(descriptors: np.ndarray, count: int) -> np.ndarray:
    """Pairs ``(P, 2)`` of scans that are among each other's ``count`` nearest, one way or both, as far as the cells see.

    Args:
        descriptors: unit vectors ``float32 (N, F)``.
    """
    total = len(descriptors)
    pivots = np.random.default_rng(0).choice(total, 1 if total <= EXACT else round(total**0.5), replace=False)
    towards = descriptors @ descriptors[pivots].T  # (N, sqrt N)
    cells = min(CELLS, len(pivots))
    probed = np.argpartition(-towards, cells - 1, axis=1)[:, :cells]
    home = towards.argmax(1)
    best = np.full((total, count), -2.0, np.float32)
    who = np.zeros((total, count), np.int64)
    for cell in range(len(pivots)):
        members = np.flatnonzero(home == cell)
        for asking in _batches(np.flatnonzero((probed == cell).any(1))):
            alike = descriptors[asking] @ descriptors[members].T
            alike[asking[:, None] == members] = -2.0
            scores = np.concatenate([best[asking], alike], axis=1)
            names = np.concatenate([who[asking], np.broadcast_to(members, alike.shape)], axis=1)
            top = np.argpartition(-scores, count - 1, axis=1)[:, :count]
            best[asking], who[asking] = (np.take_along_axis(a, top, axis=1) for a in (scores, names))
    scan, column = np.nonzero(best > -2.0)
    other = who[scan, column]
    keys = np.unique(np.minimum(scan, other) * total + np.maximum(scan, other))
    return np.stack([keys // total, keys % total], axis=1)


def register(
    first: np.ndarray, second: np.ndarray, average: np.ndarray, flip: np.ndarray, crop: np.ndarray, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of pairs beyond the average scan, with the first one mirrored and cropped to fit the second.

    One axis after the other takes the crop that fits best, given those of the other axes.

    Args:
        first: signatures ``(P, *kept)``.
        second: signatures ``(P, *kept)``.
        average: ``(*kept)``.
        flip: entry of `FLIPS` for each pair.
        crop: entry of `crop_matrices` for each pair and axis ``(P, 3)``, to start from.
        step: of the crops tried, in entries of `CROP_STEPS`.

    Returns:
        scores ``(P,)`` and crops ``(P, 3)``.
    """
    kept = (average.shape[0], average.shape[1], average.shape[2])
    mirrored, second = first * signs(FLIPS[flip], kept), _unit(second)
    with_average = _dot(second, average)[:, None]
    crop, score, tried = crop.copy(), np.full(len(first), -1.0, np.float32), every(step)
    for axis in range(3):
        fitted = mirrored
        for other in {0, 1, 2} - {axis}:
            fitted = _crop(fitted, other, crop[:, other])
        scores = _beyond_average(*_products(fitted, second, average, axis, tried), with_average, average)
        crop[:, axis], score = tried[scores.argmax(1)], scores.max(1)
    return score, crop


def _crop(parts: np.ndarray, axis: int, crop: np.ndarray) -> np.ndarray:
    """Apply an entry of `crop_matrices` per pair to one axis of ``(P, *kept)``."""
    moved = np.moveaxis(parts, axis + 1, 1)
    cropped = crop_matrices(moved.shape[1])[crop] @ moved.reshape(len(parts), moved.shape[1], -1)
    return np.moveaxis(cropped.reshape(moved.shape), 1, axis + 1)


def _products(
    first: np.ndarray, second: np.ndarray, average: np.ndarray, axis: int, tried: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Products ``(P, crops)`` of the second scan and of the average with the first one, cropped and of unit length.

    They follow from products ``(kept, kept)`` of one axis's coefficients: no cropped scan is ever made.
    """
    weight = _leading(weights(average.shape)[None], axis)[0]  # (kept, rest)
    own = np.arange(len(weight), dtype=np.float32)[:, None] ** 2
    x, y, m = (_leading(part, axis) for part in (first, second, average[None]))
    crops = crop_matrices(len(weight))[tried]
    turned = x.swapaxes(1, 2)

    def over_crops(products: np.ndarray, matrices: np.ndarray) -> np.ndarray:
        return np.asarray(products.reshape(len(products), -1) @ matrices.reshape(len(matrices), -1).T)

    squared = over_crops(x @ turned, crops.swapaxes(1, 2) @ (own * crops))
    squared += over_crops((x * weight[0]) @ turned, crops.swapaxes(1, 2) @ crops)
    size = np.sqrt(np.maximum(squared, 1e-12))
    return over_crops((y * weight) @ turned, crops) / size, over_crops((m * weight) @ turned, crops) / size


def _best_flip(first: np.ndarray, second: np.ndarray, average: np.ndarray) -> np.ndarray:
    """The mirroring, of those in `FLIPS`, under which the uncropped scans agree best."""
    first, second = _unit(first), _unit(second)
    scores = []
    for flip in signs(FLIPS, COARSE):
        mirrored = first * flip
        with_second, with_average = _dot(mirrored, second), _dot(mirrored, average)
        scores.append(_beyond_average(with_second, with_average, _dot(second, average), average))
    return np.asarray(np.argmax(scores, axis=0))


def _beyond_average(xy: np.ndarray, xm: np.ndarray, ym: np.ndarray, average: np.ndarray) -> np.ndarray:
    """Correlation of ``x - m`` and ``y - m`` for unit x and y, from their products."""
    mm = _dot(average[None], average)[0]
    return np.asarray((xy - xm - ym + mm) / np.sqrt(np.maximum((1 - 2 * xm + mm) * (1 - 2 * ym + mm), 1e-12)))


def _average(aligned: Aligned, kept: tuple[int, int, int], cropped: bool = False) -> np.ndarray:
    total = np.zeros(kept, np.float32)
    for rows in _batches(np.arange(len(aligned.flip))):
        total += _unit(aligned.rows(rows, kept, cropped)).sum(0)
    return total / np.float32(len(aligned.flip) + PRIOR)


def _descriptors(aligned: Aligned) -> np.ndarray:
    """Unit vectors ``float32 (N, 256)`` whose products are correlations of the aligned scans beyond their average.

    Only the search for neighbours uses crops to the average: they cost detail, which decides on a pair.
    """
    root, average = np.sqrt(weights(COARSE)), _average(aligned, COARSE, cropped=True)
    found = np.empty((len(aligned.flip), average.size), np.float32)
    for rows in _batches(np.arange(len(found))):
        found[rows] = ((_unit(aligned.rows(rows, COARSE, cropped=True)) - average) * root).reshape(len(rows), -1)
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6))


def _batches(rows: np.ndarray) -> list[np.ndarray]:
    return np.array_split(rows, max(1, -(-len(rows) // BATCH)))


def _low(signatures: np.ndarray, kept: tuple[int, int, int]) -> np.ndarray:
    return signatures[:, : kept[0], : kept[1], : kept[2]].astype(np.float32)


def _unit(parts: np.ndarray) -> np.ndarray:
    """Signatures ``(P, *kept)`` of weighted length 1; that of an empty scan stays zero."""
    length = np.sqrt(np.maximum(_dot(parts, parts), 1e-12))
    return np.asarray(parts / length[:, None, None, None])


def _dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Weighted product ``(P,)`` of signatures ``(P, *kept)``."""
    kept = first.shape[1:]
    return np.asarray((first * second * weights((kept[0], kept[1], kept[2]))).sum((1, 2, 3)))


def _leading(parts: np.ndarray, axis: int) -> np.ndarray:
    """``(P, kept of the axis, all others)``."""
    moved = np.moveaxis(parts, axis + 1, 1)
    return moved.reshape(len(parts), moved.shape[1], -1)
