import math

import pytest
import torch

from covidnet.config import Augment
from covidnet.data.augment import augment
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
