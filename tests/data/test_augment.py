import math

import pytest
import torch

from covidnet.config import Augment
from covidnet.data.augment import augment, cutmix, mixup
from covidnet.training.volumes import generator

STILL = Augment(flip=False, rotate_deg=0, scale=0, shift=0, intensity=0, noise=0)


def batch(count=6):
    return torch.randint(0, 255, (count, 4, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_with_everything_off_only_the_range_changes():
    scans = batch()
    out = augment(scans, STILL, generator(0))
    assert out.shape == (6, 1, 4, 16, 16)
    torch.testing.assert_close(out[:, 0], scans.float() / 127.5 - 1, atol=1e-4, rtol=0)


def test_a_flip_mirrors_left_and_right_and_nothing_else():
    scans = batch(32)
    out = augment(scans, STILL.model_copy(update={"flip": True}), generator(1))[:, 0]
    plain = scans.float() / 127.5 - 1
    mirrored = [bool(torch.allclose(o, p.flip(-1), atol=1e-4)) for o, p in zip(out, plain, strict=True)]
    same = [bool(torch.allclose(o, p, atol=1e-4)) for o, p in zip(out, plain, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 8 <= sum(mirrored) <= 24


def test_it_is_a_function_of_the_generator():
    a, b, c = (augment(batch(), Augment(), generator(0, key)) for key in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_noise_has_the_configured_deviation():
    scans = torch.full((8, 8, 32, 32), 128, dtype=torch.uint8)
    out = augment(scans, STILL.model_copy(update={"noise": 0.05}), generator(0))
    assert float(out.std()) == pytest.approx(0.1, rel=0.02)  # 0.05 of a range that is 2 wide


def test_a_turn_moves_a_point_by_no_more_than_its_angle():
    scans = torch.zeros(64, 1, 65, 65, dtype=torch.uint8)
    scans[:, :, 30:35, 60:65] = 255  # 30 voxels right of the centre
    out = augment(scans, STILL.model_copy(update={"rotate_deg": 10.0}), generator(2))[:, 0, 0]
    rows = (out + 1).sum(dim=2)  # (B, H)
    height = (rows * torch.arange(65)).sum(1) / rows.sum(1) - 32
    assert float(height.abs().max()) <= 30 * math.sin(math.radians(10)) + 1
    assert float(height.abs().max()) > 2


def test_cutout_blots_out_one_box_of_the_configured_size_and_draws_nothing_else_anew():
    scans = torch.full((64, 16, 20, 24), 255, dtype=torch.uint8)
    blotted = augment(scans, STILL.model_copy(update={"cutout": 0.5}), generator(0))[:, 0] == 0
    for mask in blotted:
        sides = [int(mask.any(dim=tuple(axis for axis in range(3) if axis != kept)).sum()) for kept in range(3)]
        assert int(mask.sum()) == math.prod(sides)  # a box, and no other voxel
        assert all(side <= length / 2 + 1 for side, length in zip(sides, mask.shape, strict=True))
    # along an axis: E[2h] less E[h^2] that lies outside, for h uniform up to 1/4
    assert float(blotted.float().mean()) == pytest.approx(0.2292**3, rel=0.35)
    plain, cut = (augment(batch(), Augment(cutout=cutout), generator(5)) for cutout in (0.0, 0.6))
    assert torch.equal(plain[cut != 0], cut[cut != 0])


def test_mixup_mixes_labels_as_it_mixes_scans():
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    volume = labels.float().view(-1, 1, 1, 1, 1).expand(-1, 1, 2, 3, 4)
    mixed, targets = mixup(volume, labels, 3, 1.0, generator(0))
    torch.testing.assert_close(targets.sum(1), torch.ones(6))
    torch.testing.assert_close(mixed[:, 0, 0, 0, 0], targets @ torch.tensor([0.0, 1.0, 2.0]))
    assert len({float(share) for share in targets.max(1).values}) > 2  # every scan has a share of its own
    again, _ = mixup(volume, labels, 3, 1.0, generator(0))
    assert torch.equal(mixed, again)


def test_mixup_draws_its_shares_from_the_beta_distribution():
    labels = torch.arange(2).repeat(2000)
    _, targets = mixup(torch.zeros(4000, 1, 1, 1, 1), labels, 2, 0.4, generator(0))
    own = targets.gather(1, labels[:, None])[:, 0]
    share = own[own < 1]  # mixed with the other class
    assert float(share.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(share.var()) == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.05)  # of Beta(a, a)


def test_without_mixup_labels_stay_labels():
    volume, labels = torch.rand(4, 1, 2, 2, 2), torch.tensor([0, 1, 1, 0])
    same, kept = mixup(volume, labels, 2, 0.0, generator(0))
    assert same is volume
    assert kept is labels


def test_cutmix_puts_one_box_of_one_other_scan_into_each_and_says_where():
    labels = torch.arange(64)
    volume = labels.float().view(-1, 1, 1, 1, 1).expand(-1, 1, 8, 12, 16)
    mixed, pasted = cutmix(volume, labels, 1.0, generator(0))
    for own, (scan, inside, other) in enumerate(zip(mixed[:, 0], pasted.inside, pasted.labels, strict=True)):
        sides = [int(inside.any(dim=tuple(axis for axis in range(3) if axis != kept)).sum()) for kept in range(3)]
        assert int(inside.sum()) == math.prod(sides)  # a box, and no other voxel
        assert bool((scan[inside] == other).all())
        assert bool((scan[~inside] == own).all())
    assert sorted(pasted.labels.tolist()) == labels.tolist()  # each scan gives one box
    assert float(pasted.inside.float().mean()) == pytest.approx(0.5, abs=0.1)  # volumes are uniform over 0..1
    again, _ = cutmix(volume, labels, 1.0, generator(0))
    assert torch.equal(mixed, again)


def test_cutmix_leaves_the_other_scans_as_they_are():
    labels = torch.arange(400)
    volume = labels.float().view(-1, 1, 1, 1, 1).expand(-1, 1, 4, 6, 6)
    mixed, pasted = cutmix(volume, labels, 0.3, generator(0))
    touched = pasted.inside.flatten(1).any(1)
    assert 0.2 < float(touched.float().mean()) < 0.35
    assert torch.equal(mixed[~touched], volume[~touched])


def test_cutmix_after_mixup_keeps_the_mixed_targets_of_both_scans():
    volume, labels = mixup(torch.rand(6, 1, 4, 6, 6), torch.tensor([0, 1, 2, 0, 1, 2]), 3, 0.4, generator(0))
    _, pasted = cutmix(volume, labels, 1.0, generator(1))
    assert pasted.labels.shape == (6, 3)
    torch.testing.assert_close(pasted.labels.sum(1), torch.ones(6))


def test_without_cutmix_nothing_is_pasted():
    volume, labels = torch.rand(4, 1, 2, 2, 2), torch.tensor([0, 1, 1, 0])
    same, pasted = cutmix(volume, labels, 0.0, generator(0))
    assert same is volume
    assert pasted is None
