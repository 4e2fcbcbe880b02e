"""Each guard of the search is really left out, and is back afterwards."""

import pytest
import torch

from benchmarks import ablation
from covidnet.config import Augment, Search
from covidnet.models.covidnet3d import MBConv, Operation
from covidnet.models.supernet import SharedBlock
from covidnet.search import dnas, run
from tests.toy_space import SIZE, SPACE, costing, volumes

LIMIT_MIB = costing().size_mib((2, 2, 2, 2))


@pytest.fixture
def state_of():
    def make():
        torch.manual_seed(0)
        settings = Search(size=SIZE, batch=4, warmup_steps=2, steps=2)
        supernet, half = run.Supernet(SPACE, 1, 3), volumes(12)
        return dnas.Run(supernet, costing(LIMIT_MIB), half, half, settings, Augment(), 0)

    return make


def test_without_the_exact_budget_paths_are_drawn_by_alpha_and_their_cost_is_in_its_loss(state_of):
    guarded = state_of()
    assert not torch.equal(guarded.scores, guarded.alpha.detach())
    path, gates, batch = [2, 2, 2, 2], torch.ones(4), guarded.alpha_half.batch(0, 4, 3)
    expected, _ = guarded._loss(*batch, 3, path, gates)
    with ablation.penalised():
        free = state_of()
        assert torch.equal(free.scores, torch.zeros_like(free.scores))
        loss, _ = free._loss(*batch, 3, path, gates)
        for_weights, _ = free._loss(*batch, 3, path, None)
    identities = free.costing.size_mib((7, 7, 7, 7))  # stem, reductions and head, which no choice changes
    expected_mib = float(free.costing.costs.size_mib(torch.softmax(free.alpha.detach(), dim=1)))
    share = (expected_mib - identities) / (LIMIT_MIB - identities)
    assert (loss - expected).item() == pytest.approx(ablation.PENALTY * share, rel=1e-4)
    assert for_weights.item() == pytest.approx(expected.item(), rel=1e-5)


def test_without_identity_at_the_start_residuals_are_there_at_once(state_of):
    def residuals(supernet):
        return torch.cat([m.bn3.weight.detach() for m in supernet.modules() if isinstance(m, MBConv)]).unique().tolist()

    guarded = residuals(state_of().supernet)
    with ablation.random_residuals():
        assert residuals(state_of().supernet) == [1.0]
    assert residuals(state_of().supernet) == guarded != [1.0]


def test_the_gate_on_all_of_the_block_learns_from_the_identity_part_as_well():
    block, gate = SharedBlock(4, SPACE.operations), torch.ones((), requires_grad=True)
    x, weights, operation = torch.randn(2, 4, 4, 8, 8), torch.randn(2, 4, 4, 8, 8), Operation(3, 3)
    branch = block.candidates[operation.name](x).detach()

    def slope():
        return torch.autograd.grad((weights * block(x, operation, gate)).sum(), gate)[0]

    torch.testing.assert_close(slope(), (weights * branch).sum(), rtol=1e-4, atol=1e-4)
    with ablation.gated_whole():
        torch.testing.assert_close(slope(), (weights * (x + branch)).sum(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(block(x, operation, torch.zeros(())), torch.zeros_like(x))
        torch.testing.assert_close(block(x, operation, None), x + branch)
    torch.testing.assert_close(slope(), (weights * branch).sum(), rtol=1e-4, atol=1e-4)


def test_without_warm_up_the_steps_are_as_many():
    config = ablation.load(None, ["search.warmup_steps=30", "search.steps=50"])
    less = ablation.without_warm_up(config).search
    assert (less.warmup_steps, less.steps) == (0, 80)
