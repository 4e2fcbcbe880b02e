import math

import numpy as np
import pytest
import torch
from torch import nn

from covidnet.config import Augment, Training
from covidnet.data.augment import Pasted
from covidnet.errors import CovidnetError
from covidnet.models.blocks import Classifier
from covidnet.training import loop
from covidnet.training.checkpoint import Checkpoint
from covidnet.training.volumes import Volumes, generator


def volumes(count=40, seed=0):
    rng = np.random.default_rng(seed)
    scans = rng.integers(0, 100, (count, 4, 16, 16), dtype=np.uint8)
    labels = np.arange(count) % 2
    scans[labels == 1, :, 4:12, 4:12] += 100
    return Volumes(torch.from_numpy(scans), torch.from_numpy(labels))


def model():
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU())
    return Classifier(features, nn.Linear(8, 2), dropout=0.2)


SETTINGS = Training(batch=8, lr=0.01, evaluations=3)


def fit(work, net=None, scans=240, settings=SETTINGS):
    work.mkdir(exist_ok=True)
    net = net or model()
    fitted = loop.fit(
        net, volumes(), volumes(seed=1), settings, Augment(), scans=scans, seed=0, work=work, title="test"
    )
    return net, fitted


def test_it_learns_and_keeps_the_weights_of_the_best_validation_pass(tmp_path):
    net, fitted = fit(tmp_path)
    assert fitted.scans_seen == 240
    assert [entry["step"] for entry in fitted.history] == [10, 20, 30]
    assert fitted.best["loss"] == min(entry["loss"] for entry in fitted.history)
    scores = torch.from_numpy(loop.logits(net, volumes(seed=1)))
    loss = float(nn.functional.cross_entropy(scores, volumes(seed=1).labels))
    assert loss == pytest.approx(fitted.best["loss"], abs=1e-6)
    assert fitted.best["accuracy"] > 0.9


def test_without_boxes_the_loss_is_that_of_the_logits():
    net, labels = model().eval(), torch.tensor([0, 1, 1, 0])
    volume = torch.randn(4, 1, 4, 16, 16)
    expected = nn.functional.cross_entropy(net(volume), labels, label_smoothing=0.1)
    torch.testing.assert_close(loop.loss_of(net, net.features(volume), labels, 0.1), expected)


def test_each_part_of_a_scan_with_a_box_answers_for_its_own_label():
    net, labels, others = model().eval(), torch.tensor([0, 1]), torch.tensor([1, 1])
    maps = torch.randn(2, 8, 2, 4, 4)
    inside = torch.zeros(2, 4, 8, 8, dtype=torch.bool)
    inside[0, :2, :4] = True  # a quarter: the upper half of the cells of the first slice; the second scan has no box
    found = loop.loss_of(net, maps, labels, 0.0, Pasted(inside, others))

    def loss(cells, label):
        return nn.functional.cross_entropy(net.head(cells.mean(dim=1))[None], torch.tensor([label]))

    box = torch.zeros(2, 4, 4, dtype=torch.bool)
    box[0, :2] = True
    first = 0.25 * loss(maps[0][:, box], 1) + 0.75 * loss(maps[0][:, ~box], 0)
    torch.testing.assert_close(found, (first + loss(maps[1].flatten(1), 1)) / 2)


def test_a_cell_that_a_box_covers_by_half_counts_half_for_each_label():
    net = model().eval()
    maps = torch.randn(1, 8, 1, 1, 2)
    inside = torch.zeros(1, 2, 2, 4, dtype=torch.bool)
    inside[..., 0] = True  # half of the first of two cells
    found = loop.loss_of(net, maps, torch.tensor([0]), 0.0, Pasted(inside, torch.tensor([1])))
    first, second = maps[0, :, 0, 0].T
    parts = [(0.25, first, 1), (0.75, (0.5 * first + second) / 1.5, 0)]
    expected = sum(
        weight * nn.functional.cross_entropy(net.head(pooled)[None], torch.tensor([label]))
        for weight, pooled, label in parts
    )
    torch.testing.assert_close(found, expected)


def test_an_interrupted_run_goes_on_to_the_same_weights_bit_for_bit(tmp_path, monkeypatch):
    whole, _ = fit(tmp_path / "whole")
    steps = []
    real = loop.update

    def interrupted_update(*args):
        steps.append(1)
        if len(steps) == 13:
            import signal

            signal.raise_signal(signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(loop, "update", interrupted_update)
    with pytest.raises(CovidnetError, match="interrupted; its state is saved"):
        fit(tmp_path / "parts")
    resumed, fitted = fit(tmp_path / "parts")
    assert len(steps) == 30  # no step was run twice
    assert len(fitted.history) == 3
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_damaged_checkpoint_is_named_and_never_loaded(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"half a file")
    with pytest.raises(CovidnetError, match=r"checkpoint.pt is damaged .* delete it"):
        fit(tmp_path)


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt")
    checkpoint.save({"step": 1})
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save({"step": 2})
    assert checkpoint.load() == {"step": 1}


def test_a_diverged_loss_stops_with_the_step(tmp_path):
    net = model()
    nn.init.constant_(net.head.weight, float("inf"))
    with pytest.raises(CovidnetError, match=r"loss became nan at step 0; lower training.lr"):
        fit(tmp_path, net)


def test_an_epoch_shows_every_scan_once_and_orders_differ_by_epoch():
    data = Volumes(torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1), torch.arange(20))
    first = torch.cat([data.batch(step, 5, seed=0)[1] for step in range(4)])
    second = torch.cat([data.batch(step, 5, seed=0)[1] for step in range(4, 8)])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(20))
    assert first.tolist() != second.tolist()


def test_generators_are_functions_of_their_key():
    a, b, c = (torch.rand(3, generator=generator(*key)) for key in ((0, 1, 2), (0, 1, 2), (0, 2, 1)))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_one_cycle_rises_linearly_and_falls_to_zero():
    assert loop.one_cycle(0.05, warmup=0.1) == pytest.approx(0.5)
    assert loop.one_cycle(0.1) == pytest.approx(1.0)
    assert loop.one_cycle(0.55) == pytest.approx(0.5)
    assert loop.one_cycle(1.0) == pytest.approx(0.0, abs=1e-9)


def test_budgets_equal_epochs_or_equal_multiply_accumulates():
    epochs = Training(budget="epochs", epochs=3)
    compute = Training(budget="compute", tmacs=2.0)
    assert loop.planned_scans(epochs, 100, macs=10**9) == 300
    assert loop.planned_scans(compute, 100, macs=10**9) == 2000
    assert loop.planned_scans(compute, 100, macs=4 * 10**9) == 500


@pytest.mark.parametrize(("steps", "count"), [(100, 4), (7, 3), (2, 6), (1, 1)])
def test_the_last_step_is_always_validated(steps, count):
    marks = loop.evaluation_steps(steps, count)
    assert max(marks) == steps
    assert len(marks) == min(count, steps)
    assert min(marks) >= math.ceil(steps / count)
