import torch

from covidnet.models import cost, covidnet3d
from covidnet.models.covidnet3d import SPACES, Genotype, Operation


def random_genotype(variant, seed):
    space = SPACES[variant]
    drawn = torch.randint(8, (21,), generator=torch.Generator().manual_seed(seed)).tolist()
    layers = space.layers([space.operations[i].name for i in drawn])
    return drawn, Genotype(variant, ("a", "b", "c"), 3, (16, 64, 64), tuple(map(tuple, layers)))


def test_a_blocks_cost_by_hand():
    # width 24, expansion 3, kernel 5 on a 4x8x8 grid: 72 hidden channels
    operation = Operation(5, 3)
    by_hand = 24 * 72 + 125 * 72 + 72 * 24 + (2 * 72 + 2 * 72 + 2 * 24)
    assert cost.block_parameters(24, operation) == by_hand
    assert cost.block_macs(24, operation, (4, 8, 8)) == 256 * (24 * 72 + 125 * 72 + 72 * 24)


def test_the_tables_equal_the_count_of_the_built_network():
    for variant in SPACES:
        costs = cost.table(SPACES[variant], (16, 64, 64), 3, 3)
        for seed in range(3):
            drawn, genotype = random_genotype(variant, seed)
            one_hot = torch.nn.functional.one_hot(torch.tensor(drawn), 8).double()
            counted = cost.count(covidnet3d.build(genotype), (16, 64, 64), 3)
            assert float(costs.size_mib(one_hot)) == counted.size_mib
            assert float(costs.expected_macs(one_hot)) == counted.macs


def test_odd_sizes_round_up_like_the_convolutions_do():
    drawn, genotype = random_genotype("S", 5)
    costs = cost.table(SPACES["S"], (17, 49, 51), 3, 3)
    one_hot = torch.nn.functional.one_hot(torch.tensor(drawn), 8).double()
    assert float(costs.expected_macs(one_hot)) == cost.count(covidnet3d.build(genotype), (17, 49, 51), 3).macs


def test_expected_size_is_differentiable_and_lies_between_the_extremes():
    costs = cost.table(SPACES["S"], (16, 64, 64), 1, 3)
    alpha = torch.zeros(21, 8, requires_grad=True)
    size = costs.size_mib(torch.softmax(alpha, 1))
    size.backward()
    assert (
        costs.fixed.size_mib
        < size.item()
        < costs.fixed.size_mib + float(costs.parameters.max(1).values.sum()) * 4 / 2**20
    )
    identity = [o.kernel for o in SPACES["S"].operations].index(0)
    assert bool((alpha.grad[:, identity] < 0).all())  # more identity, smaller network
