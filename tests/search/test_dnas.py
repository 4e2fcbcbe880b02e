import json

import pytest
import torch

from covidnet.config import Augment, Budget, Search
from covidnet.data.augment import augment
from covidnet.errors import CovidnetError
from covidnet.models.covidnet3d import Operation, Space
from covidnet.models.supernet import Supernet
from covidnet.search import dnas
from covidnet.search.gumbel import sample
from covidnet.training.loop import one_cycle
from covidnet.training.volumes import Volumes, generator
from tests.toy_space import SPACE, costing, volumes

STILL = Augment(flip=False, rotate_deg=0, scale=0, shift=0, intensity=0, noise=0)


def run(work, settings, seed=0, stop_after=None, augment=STILL):
    torch.manual_seed(seed)
    supernet = Supernet(SPACE, 1, 3)
    state = dnas.Run(supernet, costing(), volumes(), volumes(seed=1), settings, augment, seed)
    if stop_after is not None:
        for _ in range(stop_after):
            state.iterate()
        torch.save(state.state(), work / "checkpoint.pt")
        return supernet, None
    return supernet, dnas.search(state, work=work, title="test", after_warmup=lambda: 0.5)


SETTINGS = Search(size=(8, 16, 16), batch=8, warmup_steps=4, steps=8, budget=Budget(size_mib=None))


def test_the_learning_rate_rises_then_falls_by_half_a_cosine_and_never_to_zero():
    torch.manual_seed(0)
    settings = SETTINGS.model_copy(update={"warmup_steps": 30, "steps": 10, "batch": 4})
    state = dnas.Run(Supernet(SPACE, 1, 3), costing(), volumes(), volumes(seed=1), settings, STILL, 0)
    rates = []
    for _ in range(40):
        state.iterate()
        rates.append({group["lr"] for group in state.weight_optimizer.param_groups})
    assert all(len(of_all) == 1 for of_all in rates)
    shares = [of_all.pop() / settings.lr for of_all in rates]
    top = shares.index(max(shares))
    assert shares[top] == pytest.approx(1, abs=0.01)
    assert 0 < top <= 3
    assert shares[top:] == sorted(shares[top:], reverse=True)
    assert shares[-1] == pytest.approx(one_cycle(0.75 * 39 / 40, warmup=0.05))
    assert 0.1 < shares[-1] < 0.25


def test_every_block_gets_an_architecture_gradient_within_a_few_steps():
    torch.manual_seed(0)
    state = dnas.Run(Supernet(SPACE, 1, 3), costing(), volumes(), volumes(seed=1), SETTINGS, STILL, 0)
    touched = torch.zeros(4, dtype=torch.bool)
    for _ in range(12):
        state.iterate()
        if state.alpha.grad is not None:
            touched |= (state.alpha.grad != 0).any(dim=1)
    assert bool(touched.all())


@pytest.mark.parametrize(("asked", "taken"), [(4, 4), (None, 8), (16, 8)])
def test_an_architecture_update_takes_its_own_number_of_scans_and_never_more_than_the_other(asked, taken):
    torch.manual_seed(0)
    supernet, seen = Supernet(SPACE, 1, 3), []
    supernet.stem.register_forward_hook(lambda module, given, _: seen.append(len(given[0])))
    settings = SETTINGS.model_copy(update={"warmup_steps": 1, "alpha_batch": asked})
    state = dnas.Run(supernet, costing(), volumes(), volumes(seed=1), settings, STILL, 0)
    state.iterate()
    state.iterate()
    assert seen == [8, 8, taken]


def test_the_supernet_is_judged_once_when_the_warm_up_ends(tmp_path):
    torch.manual_seed(0)
    steps, judged = [], []

    def after_warmup():
        judged.append(len(steps))
        return 0.7

    state = dnas.Run(Supernet(SPACE, 1, 3), costing(), volumes(), volumes(seed=1), SETTINGS, STILL, 0)
    searched = dnas.search(
        state, work=tmp_path, title="test", after_warmup=after_warmup, log=lambda step, _: steps.append(step)
    )
    assert steps == list(range(12))
    assert judged == [4]
    assert searched.warmup_accuracy == 0.7


def test_a_step_takes_the_loss_of_the_supernet_in_full_precision():
    torch.manual_seed(0)
    supernet = Supernet(SPACE, 1, 3)
    state = dnas.Run(supernet, costing(), volumes(), volumes(seed=1), SETTINGS, STILL, 0)
    path, state.step = [0, 3, 7, 5], 2
    scans, labels = state.weight_half.batch(2, SETTINGS.batch, 1)
    logits = supernet(augment(scans, STILL, generator(0, 1, 2)), path, None)
    loss, accuracy = state._loss(scans, labels, 1, path, None)
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=SETTINGS.label_smoothing)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert accuracy.item() == (logits.argmax(dim=1) == labels).float().mean().item()


def test_the_architecture_update_leaves_the_weights_alone():
    torch.manual_seed(0)
    state = dnas.Run(Supernet(SPACE, 1, 3), costing(), volumes(), volumes(seed=1), SETTINGS, STILL, 0)
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


def test_a_space_is_data_and_takes_another_operation():
    space = Space("mine", widths=(8,), strides=(2,), blocks=(1,), stem=8, last=16, operations=(Operation(9, 2),))
    assert Supernet(space, 1, 3)(torch.randn(2, 1, 8, 16, 16), (0,)).shape == (2, 3)


def test_an_architecture_that_diverges_stops_the_search_though_the_weights_are_well(tmp_path, monkeypatch):
    def watch(self, accuracy):
        self.alpha.data[1, 2] = float("nan")

    monkeypatch.setattr(dnas.Run, "_watch", watch)
    with pytest.raises(CovidnetError, match=r"diverged at step 4; lower search.lr .* or search.alpha_lr"):
        run(tmp_path, SETTINGS)


def test_health_is_judged_against_always_saying_the_most_frequent_class_of_the_judging_half(monkeypatch):
    seen = {}
    monkeypatch.setattr(dnas, "Watch", lambda _, start, chance, batch: seen.update(chance=chance, batch=batch))
    judging = Volumes(volumes(10).scans, torch.tensor([2] * 5 + [1] * 3 + [0] * 2))
    dnas.Run(Supernet(SPACE, 1, 3), costing(), volumes(), judging, SETTINGS, STILL, 0)
    assert (seen["chance"], seen["batch"]) == (0.5, SETTINGS.batch)


def test_a_path_of_identities_alone_moves_nothing():
    tight = costing(receptive_field=3.001)
    torch.manual_seed(0)
    state = dnas.Run(Supernet(SPACE, 1, 3), tight, volumes(), volumes(seed=1), SETTINGS, STILL, 0)
    state._update_alpha(1.0)
    assert float(state.alpha.detach().abs().max()) == 0
