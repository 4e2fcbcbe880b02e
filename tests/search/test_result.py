"""From architecture parameters to one architecture."""

import numpy as np
import pytest
import torch

from covidnet.models.covidnet3d import SPACES, Genotype
from covidnet.models.supernet import Supernet
from covidnet.search import result
from covidnet.training.volumes import Volumes, generator
from tests.toy_space import SIZE, SPACE, costing, volumes


def test_a_judgement_is_loss_and_accuracy_with_the_supernets_weights(monkeypatch):
    monkeypatch.setitem(SPACES, "tiny", SPACE)
    supernet = Supernet(SPACE, 1, 3)
    torch.nn.init.zeros_(supernet.head.weight)
    supernet.head.bias.data = torch.tensor([0.0, 2.0, 0.0])  # says the second class of every scan
    genotype = Genotype.of_path((0, 1, 2, 3), SPACE, "tiny", ("a", "b", "c"), 1, SIZE)
    held_out = Volumes(volumes().scans, torch.tensor([1] * 36 + [0] * 12))
    judged = result.judge(supernet, genotype, volumes(), held_out, batches=1)
    assert judged.accuracy == 0.75
    right, wrong = torch.log_softmax(supernet.head.bias.detach(), 0)[[1, 0]].tolist()
    assert judged.loss == pytest.approx(-(0.75 * right + 0.25 * wrong), abs=1e-5)


def test_without_a_budget_the_result_is_the_argmax_and_its_most_probable_neighbours():
    alpha = torch.zeros(4, 8)
    for block, best in enumerate((1, 7, 3, 6)):
        alpha[block, best] = 5.0
    alpha[2, 0] = 4.9
    paths = result.candidates(alpha, costing(), 5, generator(0))
    assert paths[0] == (1, 7, 3, 6)
    assert paths[1] == (1, 7, 0, 6)
    assert all(sum(a != b for a, b in zip(p, paths[0], strict=True)) == 1 for p in paths[1:3])
    assert len(paths) == 5


def test_a_result_over_budget_is_mended_at_the_least_loss_of_probability():
    alpha = torch.zeros(4, 8)
    alpha[:, 6] = 2.0  # 7x7_MBConv4 everywhere
    alpha[3, 0] = 1.9  # block 3 hardly minds 3x3_MBConv3
    whole = costing().size_mib((6, 6, 6, 6))
    mended = result.within_budget(alpha, costing(whole - 0.001))
    assert mended == (6, 6, 6, 0)
    for budget in np.linspace(costing().size_mib((7, 7, 7, 7)) + 1e-4, whole, 7):
        assert costing(float(budget)).fits(result.within_budget(alpha, costing(float(budget))))


def test_random_architectures_keep_to_the_budget_and_are_not_all_alike():
    limited = costing(0.05)
    paths = result.random_paths(limited, 20, generator(0))
    assert all(limited.size_mib(path) <= 0.05 for path in paths)
    assert len(set(paths)) > 10


def test_candidates_are_all_different_however_sure_the_search_is():
    alpha = torch.zeros(4, 8)
    alpha[:, 2] = 4.0  # draws are the argmax most of the time
    paths = result.candidates(alpha, costing(), 16, generator(0))
    assert len(set(paths)) == len(paths) == 16


def test_neighbours_come_by_how_much_less_probable_they_are_in_whichever_block():
    alpha = torch.full((4, 8), -9.0)
    alpha[:, 0] = 0.0
    alpha[0, 1:3] = -2.4  # block 0 is sure of its choice, block 1 torn between three
    alpha[1, 1:3] = -0.3
    alpha[2, 5] = -1.0
    paths = result.candidates(alpha, costing(), 10, generator(0))
    assert paths[:5] == [(0, 0, 0, 0), (0, 1, 0, 0), (0, 2, 0, 0), (0, 0, 5, 0), (1, 0, 0, 0)]


def test_where_the_budget_leaves_but_one_path_it_is_the_only_one_drawn():
    least, _ = costing().range("size_mib")
    assert result.random_paths(costing(least), 8, generator(0)) == [(7, 7, 7, 7)]
    assert result.candidates(torch.zeros(4, 8), costing(least), 8, generator(0)) == [(7, 7, 7, 7)]
