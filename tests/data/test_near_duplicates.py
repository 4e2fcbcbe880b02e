"""The search for near duplicates, step by step: alignment, neighbours, registration, proposals."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, zoom

from covidnet.data.audit import near
from covidnet.data.audit.confirm import likeness
from covidnet.data.audit.near import near_duplicates, propose
from covidnet.data.audit.signatures import FLIPS, UNCUT, crop_matrices, every, signatures, signs, weights


def people(count, seed=0):
    """Smooth volumes that have half of their shape in common, and fine detail of their own."""
    rng = np.random.default_rng(seed)
    coarse, fine = rng.normal(size=(2, count + 1, 16, 32, 32))
    coarse, fine = (gaussian_filter(part, (0, s, 2 * s, 2 * s)) for part, s in ((coarse, 1.5), (fine, 0.6)))
    volumes = sum(part / part.std() for part in (coarse[1:], coarse[:1], fine[1:] / 2))
    return np.clip(128 + 40 * volumes, 0, 255).astype(np.uint8)


def test_a_proposal_says_how_to_lay_the_one_scan_over_the_other():
    scans = people(8)
    twin = np.flip(scans[3], (0, 2))[:, 1:]  # mirrored along D and W, one of 32 lines cut off
    twin = zoom(twin.astype(np.float32), (1, 32 / 31, 1), order=1, grid_mode=True, mode="nearest").round()
    proposals = {
        found.rows: found for found in propose(signatures(np.concatenate([scans, twin[None].astype(np.uint8)])))
    }
    found = proposals[3, 8]
    assert set(found.mirrored[0]) ^ set(found.mirrored[1]) == {0, 2}
    first, second = np.flip(scans[3], found.mirrored[0]), np.flip(twin, found.mirrored[1])
    assert likeness(first, second, found.crop) > 0.97 > likeness(first, second, np.full(3, UNCUT))
    start, end = divmod(int(found.crop[1]), 17)
    assert sorted((start - 8, end - 8)) == [0, 3]  # in hundredths of the side


def test_pairs_come_the_most_alike_first_and_from_the_asked_likeness_on():
    scans = people(6)
    noisy = [
        np.clip(scans[i] + np.random.default_rng(i).normal(0, sd, scans[i].shape), 0, 255) for i, sd in ((4, 8), (1, 2))
    ]
    everything = np.concatenate([scans, np.array(noisy).astype(np.uint8), scans[2:3]])
    pairs = near_duplicates(everything, 0.8)
    assert [pair[:2] for pair in pairs] == [(2, 8), (1, 7), (4, 6)]
    assert pairs[0][2] == pytest.approx(1, abs=1e-5)
    assert near_duplicates(everything, pairs[1][2]) == pairs[:2]


def test_two_scans_alone_may_be_one():
    scan = people(1)
    assert [pair[:2] for pair in near_duplicates(np.concatenate([scan, scan[:, ::-1]]))] == [(0, 1)]
    assert near_duplicates(people(2)) == []


def test_every_scan_is_turned_to_lie_like_the_others():
    scans = people(9)
    planted = np.random.default_rng(1).integers(0, 8, 9)
    turned = np.stack([np.flip(scan, np.flatnonzero(FLIPS[k])) for scan, k in zip(scans, planted, strict=True)])
    found = near.align(signatures(turned)).flip
    assert len({tuple(FLIPS[a] ^ FLIPS[b]) for a, b in zip(planted, found, strict=True)}) == 1


def unit_vectors(count, width=12, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def nearest_pairs(vectors, count):
    towards = vectors @ vectors.T - 3 * np.eye(len(vectors))
    nearest = np.argsort(-towards, axis=1)[:, :count]
    return {(min(i, int(j)), max(i, int(j))) for i, row in enumerate(nearest) for j in row}


@pytest.mark.parametrize("count", [1, 4, 39])
def test_neighbours_of_few_scans_are_the_nearest_of_all(count):
    vectors = unit_vectors(40)
    found = near.neighbours(vectors, count).tolist()
    assert [tuple(pair) for pair in found] == sorted(nearest_pairs(vectors, count))


def test_no_scan_is_its_own_neighbour_where_there_are_fewer_than_asked_for():
    assert near.neighbours(unit_vectors(3), 5).tolist() == [[0, 1], [0, 2], [1, 2]]


def test_neighbours_of_many_scans_are_searched_near_the_pivots_and_twins_always_found(monkeypatch):
    monkeypatch.setattr(near, "EXACT", 100)
    vectors = unit_vectors(400)
    vectors[300:] = vectors[:100]
    found = {tuple(pair) for pair in near.neighbours(vectors, 4).tolist()}
    assert {(i, i + 300) for i in range(100)} <= found
    expected = nearest_pairs(vectors, 4)
    assert len(found & expected) > 0.8 * len(expected)
    assert all(a < b for a, b in found)


def beyond_average(x, y, average):
    """Correlation of what two signatures, made unit vectors by their weights, have beyond the average."""
    weight = weights(average.shape)
    x, y = (part / np.sqrt((weight * part**2).sum()) - average for part in (x, y))
    return (weight * x * y).sum() / np.sqrt((weight * x**2).sum() * (weight * y**2).sum())


def test_registering_finds_the_crop_of_the_best_correlation_beyond_the_average():
    rng, kept = np.random.default_rng(0), (4, 8, 8)
    first, second = rng.normal(size=(2, 3, *kept)).astype(np.float32) / (1 + weights(kept))
    average = (0.2 * rng.normal(size=kept) / (1 + weights(kept)) / 4).astype(np.float32)
    flip, start = np.array([5, 0, 2]), np.array([[144, 140, 100], [0, 30, 288], [144, 144, 144]])

    def cropped(pair, crop):
        return apply(crop, first[pair] * signs(FLIPS[flip[pair] : flip[pair] + 1], kept)[0])

    score, crop = near.register(first, second, average, flip, start, step=4)
    assert set(crop.ravel()) <= set(every(4).tolist())
    for pair in range(3):
        last = [beyond_average(cropped(pair, [*crop[pair, :2], e]), second[pair], average) for e in every(4)]
        assert score[pair] == pytest.approx(max(last), abs=1e-4)
        assert every(4)[np.argmax(last)] == crop[pair, 2]
    truth = np.stack([cropped(pair, start[pair]) for pair in range(3)]).astype(np.float32)
    score, crop = near.register(first, truth, average, flip, start, step=1)
    np.testing.assert_allclose(score, 1, atol=1e-4)  # where it starts at the truth it stays
    np.testing.assert_array_equal(crop, start)


def apply(crop, part):
    """Entries of `crop_matrices`, one for each axis of a signature."""
    for axis, entry in enumerate(crop):
        matrix = crop_matrices(part.shape[axis])[entry]
        part = np.moveaxis(np.tensordot(matrix, part, (1, axis)), 0, axis)
    return part


def test_aligned_signatures_are_mirrored_cropped_and_cut_to_the_lowest_frequencies():
    whole = signatures(people(3))
    flip, crop = np.array([0, 6, 3]), np.array([[144, 144, 144], [30, 144, 200], [144, 7, 100]])
    aligned = near.Aligned(whole, flip, crop)
    for row in range(3):
        low = whole[row, :4, :8, :8].astype(np.float32) * signs(FLIPS[flip[row] : flip[row] + 1], (4, 8, 8))[0]
        np.testing.assert_allclose(aligned.rows(np.array([row]), (4, 8, 8))[0], low, atol=1e-6)
        found = aligned.rows(np.array([row]), (4, 8, 8), cropped=True)[0]
        np.testing.assert_allclose(found, apply(crop[row], low), atol=1e-6)


def test_descriptors_are_unit_vectors_whose_products_are_correlations_beyond_the_average():
    aligned = near.align(signatures(people(7)))
    parts = aligned.rows(np.arange(7), (4, 8, 8), cropped=True)
    weight = weights((4, 8, 8))
    average = sum(part / np.sqrt((weight * part**2).sum()) for part in parts) / (7 + near.PRIOR)
    found = near._descriptors(aligned)
    assert found.shape == (7, 256)
    expected = [[beyond_average(a, b, average) for b in parts] for a in parts]
    np.testing.assert_allclose(found @ found.T, expected, atol=1e-5)


def test_a_crop_lies_more_like_its_scan_once_both_are_cropped_to_the_average():
    scans = people(9)
    cut = zoom(scans[0, :, 2:-1].astype(np.float32), (1, 32 / 29, 1), order=1, grid_mode=True, mode="nearest")
    aligned = near.align(signatures(np.concatenate([scans, cut[None].astype(np.uint8)])))
    products = near._descriptors(aligned) @ near._descriptors(aligned)[0]
    plain = near.Aligned(aligned.signatures, aligned.flip, np.full((10, 3), UNCUT))
    assert products[9] > (near._descriptors(plain) @ near._descriptors(plain)[0])[9]
    assert products[9] > products[1:9].max() + 0.2
