import math

import pytest
import torch

from covidnet.search.gumbel import anneal, entropy, sample


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_candidates_are_drawn_with_their_softmax_probability():
    alpha = torch.log(torch.tensor([[0.6, 0.3, 0.1]])).repeat(20000, 1)
    path, _ = sample(alpha, 1.0, rng())
    share = torch.bincount(path, minlength=3) / len(path)
    torch.testing.assert_close(share, torch.tensor([0.6, 0.3, 0.1]), atol=0.015, rtol=0)


@pytest.mark.parametrize("temperature", [1e-4, 0.3, 5.0, 1e4])
@pytest.mark.parametrize("spread", [0.0, 1.0, 200.0])
def test_the_gate_is_one_and_its_gradient_finite_at_every_temperature(temperature, spread):
    alpha = (torch.randn(21, 8, generator=rng(1)) * spread).requires_grad_()
    path, gates = sample(alpha, temperature, rng(2))
    assert gates.dtype == torch.float32
    torch.testing.assert_close(gates, torch.ones(21))
    assert bool((path >= 0).all())
    gates.sum().backward()
    assert bool(torch.isfinite(alpha.grad).all())


def test_the_gradient_is_that_of_the_softmax_weight():
    """d gate / d alpha_j = p_c (1[j = c] - p_j) / temperature, p the softmax of the noisy scores."""
    alpha, temperature = torch.tensor([[0.3, -0.2, 0.9]], dtype=torch.float64, requires_grad=True), 0.7
    path, gates = sample(alpha, temperature, rng(3))
    gates.sum().backward()
    noise = torch.rand(1, 3, generator=rng(3)).clamp(1e-9, 1 - 1e-7).double()
    scores = torch.log_softmax(alpha.detach(), 1) - torch.log(-torch.log(noise))
    p = torch.softmax(scores / temperature, 1)[0]
    chosen = int(path)
    by_hand = [float(p[chosen] * (float(j == chosen) - p[j]) / temperature) for j in range(3)]
    assert alpha.grad[0].tolist() == pytest.approx(by_hand, rel=1e-9)


def test_entropy_runs_from_log_of_the_candidates_to_zero():
    assert entropy(torch.zeros(4, 8)) == pytest.approx(math.log(8))
    assert entropy(torch.eye(8) * 1e4) == pytest.approx(0.0, abs=1e-6)


def test_temperature_falls_geometrically():
    assert [anneal((2.0, 0.5), p) for p in (-1.0, 0.0, 0.5, 1.0, 2.0)] == pytest.approx([2.0, 2.0, 1.0, 0.5, 0.5])
