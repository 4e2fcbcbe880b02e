import json

import numpy as np
import pytest
import torch

from covidnet.config import Augment, Budget, Search
from covidnet.errors import CovidnetError, UsageError
from covidnet.models import cost
from covidnet.models.covidnet3d import SPACES, Operation, Space
from covidnet.models.supernet import Supernet
from covidnet.search import dnas, result
from covidnet.search.budget import Costing
from covidnet.search.gumbel import sample
from covidnet.training.volumes import Volumes, generator

TINY = Space("tiny", widths=(8, 12), strides=(2, 2), blocks=(2, 2), stem=8, last=16)
SIZE = (8, 16, 16)
STILL = Augment(flip=False, rotate_deg=0, scale=0, shift=0, intensity=0, noise=0)


def volumes(count=48, seed=0):
    """Three classes that differ by where a bright cube lies: learnable in a few steps."""
    rng = np.random.default_rng(seed)
    scans = rng.integers(0, 90, (count, *SIZE), dtype=np.uint8)
    labels = np.arange(count) % 3
    for scan, label in zip(scans, labels, strict=True):
        scan[2:6, 4:12, 5 * label : 5 * label + 5] += 120
    return Volumes(torch.from_numpy(scans), torch.from_numpy(labels))


def run(work, settings, seed=0, stop_after=None, augment=STILL):
    torch.manual_seed(seed)
    supernet = Supernet(TINY, 1, 3)
    state = dnas._Run(supernet, costing(), volumes(), volumes(seed=1), settings, augment, seed)
    if stop_after is not None:
        for _ in range(stop_after):
            state.iterate()
        torch.save(state.state(), work / "checkpoint.pt")
        return supernet, None
    searched = dnas.search(
        supernet, costing(), volumes(), volumes(seed=1), settings, augment,
        seed=seed, work=work, title="test", after_warmup=lambda: 0.5,
    )  # fmt: skip
    return supernet, searched


SETTINGS = Search(size=(8, 16, 16), batch=8, warmup_steps=4, steps=8, budget=Budget(size_mib=None))


def test_every_block_gets_an_architecture_gradient_within_a_few_steps():
    torch.manual_seed(0)
    state = dnas._Run(Supernet(TINY, 1, 3), costing(), volumes(), volumes(seed=1), SETTINGS, STILL, 0)
    touched = torch.zeros(4, dtype=torch.bool)
    for _ in range(12):
        state.iterate()
        if state.alpha.grad is not None:
            touched |= (state.alpha.grad != 0).any(dim=1)
    assert bool(touched.all())


def test_a_judgement_is_loss_and_accuracy_with_the_supernets_weights(monkeypatch):
    monkeypatch.setitem(SPACES, "tiny", TINY)
    supernet = Supernet(TINY, 1, 3)
    torch.nn.init.zeros_(supernet.head.weight)
    supernet.head.bias.data = torch.tensor([0.0, 2.0, 0.0])  # says the second class of every scan
    genotype = result.genotype_of((0, 1, 2, 3), supernet, "tiny", ("a", "b", "c"), SIZE)
    held_out = Volumes(volumes().scans, torch.tensor([1] * 36 + [0] * 12))
    judged = result.judge(supernet, genotype, volumes(), held_out, batches=1)
    assert judged.accuracy == 0.75
    right, wrong = torch.log_softmax(supernet.head.bias.detach(), 0)[[1, 0]].tolist()
    assert judged.loss == pytest.approx(-(0.75 * right + 0.25 * wrong), abs=1e-5)


def test_the_supernet_is_judged_once_when_the_warm_up_ends(tmp_path):
    torch.manual_seed(0)
    steps, judged = [], []

    def after_warmup():
        judged.append(len(steps))
        return 0.7

    searched = dnas.search(
        Supernet(TINY, 1, 3), costing(), volumes(), volumes(seed=1), SETTINGS, STILL,
        seed=0, work=tmp_path, title="test", after_warmup=after_warmup, log=lambda step, _: steps.append(step),
    )  # fmt: skip
    assert steps == list(range(12))
    assert judged == [4]
    assert searched.warmup_accuracy == 0.7


def test_the_architecture_update_leaves_the_weights_alone():
    torch.manual_seed(0)
    state = dnas._Run(Supernet(TINY, 1, 3), costing(), volumes(), volumes(seed=1), SETTINGS, STILL, 0)
    state.iterate()
    before = {name: value.clone() for name, value in state.supernet.named_parameters()}
    grads = [None if p.grad is None else p.grad.clone() for p in state.supernet.parameters()]
    state._update_alpha(1.0)
    for (name, value), grad in zip(state.supernet.named_parameters(), grads, strict=True):
        assert torch.equal(value, before[name])
        assert value.requires_grad
        assert (value.grad is None) == (grad is None)
        assert grad is None or torch.equal(value.grad, grad)


# A supernet of three blocks whose candidates add a known vector to their input; the target is reached by candidate 2.
def _toy(gate_of, seed, steps=250):
    torch.manual_seed(seed)
    useful = torch.nn.functional.normalize(torch.randn(3, 24), dim=1)
    candidates = torch.nn.functional.normalize(torch.randn(3, 5, 24), dim=2) * 0.5
    candidates[:, 2] = useful * 0.8
    candidates[:, 4] = 0.0  # identity
    alpha = torch.zeros(3, 5, requires_grad=True)
    optimizer = torch.optim.Adam([alpha], lr=0.05, betas=(0.5, 0.999))
    for step in range(steps):
        path, gates = sample(alpha, 1.0, generator(seed, step))
        gates = gate_of(gates)
        chosen = candidates[torch.arange(3), path]  # (blocks, 24)
        loss = ((gates[:, None] * chosen - useful) ** 2).sum() + 0.0 * alpha.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return alpha.argmax(dim=1).tolist() == [2, 2, 2]


def test_the_search_finds_a_known_best_operation_and_a_boolean_mask_does_not():
    assert sum(_toy(lambda gates: gates, seed) for seed in range(10)) >= 9
    assert sum(_toy(lambda gates: gates.bool().float(), seed) for seed in range(10)) == 0


@pytest.mark.parametrize("augment", [STILL, Augment(mixup=0.2, cutout=0.3)], ids=["still", "mixed"])
def test_a_resumed_search_equals_an_uninterrupted_one_bit_for_bit(tmp_path, augment):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    net, whole = run(tmp_path / "whole", SETTINGS, augment=augment)
    run(tmp_path / "parts", SETTINGS, stop_after=6, augment=augment)
    resumed_net, resumed = run(tmp_path / "parts", SETTINGS, augment=augment)
    assert torch.equal(whole.alpha, resumed.alpha)
    assert json.dumps(whole.history) == json.dumps(resumed.history)
    for a, b in zip(net.parameters(), resumed_net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_diverged_search_stops_with_the_step_and_what_to_lower(tmp_path):
    with pytest.raises(CovidnetError, match=r"diverged at step \d+; lower search.lr"):
        run(tmp_path, SETTINGS.model_copy(update={"lr": 1e30}))


def test_the_sampled_distribution_keeps_to_the_budget_exactly_and_moves_no_more_than_it_must():
    costs = cost.table(TINY, SIZE, 1, 3)
    alpha = torch.randn(4, 8, generator=generator(0))
    free = float(costs.size_mib(torch.softmax(alpha, 1)))
    assert torch.equal(Costing(costs, Budget(size_mib=free * 1.01)).within(alpha), alpha)
    limited = Costing(costs, Budget(size_mib=free * 0.8, macs=None)).within(alpha)
    assert float(costs.size_mib(torch.softmax(limited, 1))) == pytest.approx(free * 0.8, rel=1e-5)
    shift = limited - alpha  # proportional to cost: one multiplier for all blocks
    assert float(torch.corrcoef(torch.stack([shift.flatten(), costs.parameters.flatten().float()]))[0, 1]) < -0.9999


def test_two_limits_hold_together():
    costs = cost.table(TINY, SIZE, 1, 3)
    uniform = torch.full((4, 8), 1 / 8)
    size, macs = float(costs.size_mib(uniform)) * 0.8, float(costs.expected_macs(uniform)) * 0.7
    p = torch.softmax(Costing(costs, Budget(size_mib=size, macs=macs)).within(torch.zeros(4, 8)), 1)
    assert float(costs.size_mib(p)) <= size * 1.001
    assert float(costs.expected_macs(p)) <= macs * 1.001


# ---- from alpha to one architecture


def costing(size_mib=None):
    return Costing(cost.table(TINY, SIZE, 1, 3), Budget(size_mib=size_mib))


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


def test_a_budget_below_the_space_says_what_is_possible():
    with pytest.raises(UsageError, match=r"size_mib is 0\.0001, .* goes from 0\.\d+ to 0\.\d+"):
        costing(0.0001)


def test_a_space_is_data_and_takes_another_operation():
    space = Space("mine", widths=(8,), strides=(2,), blocks=(1,), stem=8, last=16, operations=(Operation(9, 2),))
    assert Supernet(space, 1, 3)(torch.randn(2, 1, 8, 16, 16), (0,)).shape == (2, 3)


def test_a_limit_on_the_receptive_field_holds_for_the_distribution_and_the_found_path():
    costs = cost.table(TINY, SIZE, 1, 3)
    least, most = Costing(costs, Budget(size_mib=None)).range("receptive_field")
    limit = least + 0.3 * (most - least)
    costing = Costing(costs, Budget(size_mib=None, receptive_field=limit))
    alpha = torch.randn(4, 8, generator=generator(0))
    p = torch.softmax(costing.within(alpha), 1)
    assert costing.expected("receptive_field", p) == pytest.approx(limit, rel=1e-4)
    assert costing.receptive_field(result.within_budget(alpha, costing)) <= limit


def test_a_path_of_identities_alone_moves_nothing():
    tight = Costing(cost.table(TINY, SIZE, 1, 3), Budget(size_mib=None, receptive_field=3.001))
    torch.manual_seed(0)
    state = dnas._Run(Supernet(TINY, 1, 3), tight, volumes(), volumes(seed=1), SETTINGS, STILL, 0)
    state._update_alpha(1.0)
    assert float(state.alpha.detach().abs().max()) == 0
