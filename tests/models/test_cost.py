import pytest
import torch

from covidnet.models import cost, covidnet3d
from covidnet.models.covidnet3d import SPACES, Genotype, Operation
from tests.random_genotype import random_genotype


def path_of(genotype):
    return [genotype.space.operations.index(operation) for operation in genotype.operations]


def one_hot(genotype):
    return torch.nn.functional.one_hot(torch.tensor(path_of(genotype)), 8).double()


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
            genotype = random_genotype(variant, seed, channels=3)
            counted = cost.count(covidnet3d.build(genotype), (16, 64, 64), 3)
            assert float(costs.size_mib(one_hot(genotype))) == counted.size_mib
            assert float(costs.expected_macs(one_hot(genotype))) == counted.macs


def test_odd_sizes_round_up_like_the_convolutions_do():
    genotype = random_genotype("S", 5, channels=3)
    costs = cost.table(SPACES["S"], (17, 49, 51), 3, 3)
    assert float(costs.expected_macs(one_hot(genotype))) == cost.count(covidnet3d.build(genotype), (17, 49, 51), 3).macs


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


@pytest.mark.parametrize("strides", [(), (1, 2, 1, 1, 1, 1)])
def test_the_receptive_field_is_as_wide_as_the_gradient_of_one_cell(strides):
    """Weights of one and a tiny input keep every gradient positive, so that nothing cancels out or saturates."""
    layers = [
        ["5x5_MBConv3", *["Identity"] * 3],
        ["3x3_MBConv4", *["Identity"] * 3],
        *[["Identity"] * 4] * 3,
        ["Identity"],
    ]
    genotype = Genotype("S", ("a", "b"), 1, (4, 8, 96), tuple(map(tuple, layers)), strides)
    model = covidnet3d.build(genotype).eval().double()  # float32 gradients would underflow
    for name, parameter in model.named_parameters():
        parameter.data.fill_(0.0 if name.endswith("bias") else 1e-3)
    volume = torch.full((1, 1, 4, 8, 96), 1e-3, dtype=torch.float64, requires_grad=True)
    maps = model.features(volume)
    maps[0, 0, 0, 0, maps.shape[-1] // 2].backward()
    seen = torch.nonzero(volume.grad.amax(dim=(0, 1, 2, 3)))
    fixed, added = cost.receptive_field(genotype.space)
    by_parts = fixed + float(added[range(21), path_of(genotype)].sum())
    assert by_parts == int(seen.max() - seen.min()) + 1
