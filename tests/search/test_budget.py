"""Limits: of the distribution that a search samples from, and of a path."""

import re

import pytest
import torch

from covidnet.config import Budget
from covidnet.errors import UsageError
from covidnet.search import result
from covidnet.search.budget import Costing
from covidnet.training.volumes import generator
from tests.toy_space import COSTS, costing


def test_the_sampled_distribution_keeps_to_the_budget_exactly_and_moves_no_more_than_it_must():
    alpha = torch.randn(4, 8, generator=generator(0))
    free = float(COSTS.size_mib(torch.softmax(alpha, 1)))
    assert torch.equal(Costing(COSTS, Budget(size_mib=free * 1.01)).within(alpha), alpha)
    limited = Costing(COSTS, Budget(size_mib=free * 0.8, macs=None)).within(alpha)
    assert float(COSTS.size_mib(torch.softmax(limited, 1))) == pytest.approx(free * 0.8, rel=1e-5)
    shift = limited - alpha  # proportional to cost: one multiplier for all blocks
    assert float(torch.corrcoef(torch.stack([shift.flatten(), COSTS.parameters.flatten().float()]))[0, 1]) < -0.9999


def test_two_limits_hold_together():
    uniform = torch.full((4, 8), 1 / 8)
    size, macs = float(COSTS.size_mib(uniform)) * 0.8, float(COSTS.expected_macs(uniform)) * 0.7
    p = torch.softmax(Costing(COSTS, Budget(size_mib=size, macs=macs)).within(torch.zeros(4, 8)), 1)
    assert float(COSTS.size_mib(p)) <= size * 1.001
    assert float(COSTS.expected_macs(p)) <= macs * 1.001


def test_a_budget_below_the_space_says_what_is_possible():
    with pytest.raises(UsageError, match=r"size_mib is 0\.0001, .* goes from 0\.\d+ to 0\.\d+"):
        costing(0.0001)


def test_a_limit_on_the_receptive_field_holds_for_the_distribution_and_the_found_path():
    least, most = Costing(COSTS, Budget(size_mib=None)).range("receptive_field")
    limit = least + 0.3 * (most - least)
    costing = Costing(COSTS, Budget(size_mib=None, receptive_field=limit))
    alpha = torch.randn(4, 8, generator=generator(0))
    p = torch.softmax(costing.within(alpha), 1)
    assert costing.expected("receptive_field", p) == pytest.approx(limit, rel=1e-4)
    assert costing.receptive_field(result.within_budget(alpha, costing)) <= limit


def test_a_path_that_costs_just_its_limit_is_within_it_and_excess_is_the_worst_ratio_less_one():
    path = (0, 3, 7, 5)
    size, macs = costing().size_mib(path), costing().macs(path)
    assert costing(size).excess(path) == 0
    assert costing(size).fits(path)
    assert not costing(size * (1 - 1e-6)).fits(path)
    assert costing(size / 2, macs=macs / 4).excess(path) == pytest.approx(3.0)
    assert costing(size / 0.5, macs=macs / 0.8).excess(path) == pytest.approx(-0.2)
    assert costing().excess(path) == -1


def test_the_range_of_a_cost_is_that_of_the_cheapest_and_the_dearest_path():
    sizes = [costing().size_mib((a, b, 7, 7)) for a in range(8) for b in range(8)]
    last = [costing().size_mib((7, 7, a, b)) for a in range(8) for b in range(8)]
    least, most = costing().range("size_mib")
    assert least == pytest.approx(min(sizes))
    assert most == pytest.approx(max(sizes) + max(last) - min(sizes))


def test_a_limit_that_no_architecture_exceeds_is_told():
    _, most = costing().range("size_mib")
    (told,) = costing(most).ineffective()
    assert re.match(
        rf"search.budget.size_mib of {most:g} limits nothing: this space goes from 0\.\d+ to {most:.4g}$", told
    )
    assert costing(most * 0.999).ineffective() == []
    assert costing().ineffective() == []


def test_neighbours_differ_in_one_block():
    base = (0, 3, 7, 5)
    paths = costing().neighbours(base)
    assert len(set(paths)) == len(paths) == 4 * 7
    assert all(sum(a != b for a, b in zip(path, base, strict=True)) == 1 for path in paths)


def test_a_limit_at_the_very_bottom_leaves_the_cheapest_path():
    least, _ = costing().range("size_mib")
    p = torch.softmax(costing(least).within(torch.randn(4, 8, generator=generator(0))), dim=1)
    assert bool((p[:, 7] > 0.99).all())
