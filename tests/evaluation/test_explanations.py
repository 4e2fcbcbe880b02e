"""Checks of the maps themselves, with MONAI's Grad-CAM as the independent source."""

import numpy as np
import torch
from torch import nn

from covidnet.data.packed import Packed, Row
from covidnet.evaluation import explanations
from covidnet.evaluation.candidates import Candidate
from covidnet.evaluation.metrics import Predictions
from covidnet.models import baselines
from covidnet.models.blocks import Classifier
from covidnet.training import loop


def network(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    features = nn.Sequential(
        nn.Conv3d(1, 8, 3, 2, 1), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 12, 3, 2, 1), nn.ReLU()
    )
    return Classifier(features, nn.Linear(12, 3)).eval()


def scans(count: int = 4) -> torch.Tensor:
    return torch.randint(0, 256, (count, 16, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_grad_cam_of_a_pooled_linear_head_is_the_positive_part_of_the_exact_map() -> None:
    # the gradient of a class's logit is its weight over the number of cells, everywhere (Selvaraju et al., 2017, sec. 3.1)
    model, given = network(), scans(1)
    exact = explanations.explain(model, given)[0, 1]
    found = explanations.grad_cam(model, given, 1)
    np.testing.assert_allclose(found, np.maximum(exact, 0) / exact.size, atol=1e-6)


def test_grad_cam_works_on_a_baseline() -> None:
    torch.manual_seed(0)
    model = baselines.build("densenet3d121", 1, 3, (16, 32, 32)).eval()
    heat = explanations.grad_cam(model, scans(1), 0)
    assert heat.ndim == 3
    assert np.isfinite(heat).all()
    assert heat.min() >= 0


def test_maps_are_exact_and_random_weights_destroy_them() -> None:
    model, given = network(), scans()
    maps = explanations.explain(model, given)
    with torch.no_grad():
        logits = model(loop.as_input(model, given)).numpy()
    found = explanations.sanity(model, maps, logits, given, seed=7)
    assert found.exactness < 1e-5
    assert abs(found.random_correlation) < 0.5
    assert found.scans == 4


def test_hits_are_counted_over_right_predictions_with_a_lesion_in_all_and_by_class() -> None:
    classes, labels = ("NCP", "CP", "Normal"), np.array([0, 0, 0, 1, 2])
    called = np.array([0, 0, 1, 1, 2])  # the third scan is taken for another class
    maps, lesions = np.zeros((5, 3, 1, 2, 2), np.float32), np.zeros((5, 2, 4, 4), np.uint8)
    lesions[:4, 0, 0, 0] = 1
    for scan, row in enumerate((0, 1, 0, 0, 0)):  # the second points at the other side
        maps[scan, labels[scan], 0, row, 0] = 1
    ids = tuple("abcde")
    predictions = Predictions(ids, ids, labels, np.eye(3)[called], classes)
    rows = tuple(Row(i, i, classes[k], "test", "", "", "", 2, "") for i, k in zip(ids, labels, strict=True))
    packed = Packed(np.zeros((5, 2, 4, 4), np.uint8), rows, lesions)
    found = explanations.localise(maps, Candidate("retrain/S", "s", {}, predictions, predictions, 1.0), packed)
    assert [(one.name.rpartition(", ")[2], one.scans, one.hit_rate) for one in found] == [
        ("Class activation map", 3, 2 / 3),
        ("NCP", 2, 0.5),
        ("CP", 1, 1.0),
    ]
    # of scans 0, 1 and 3 the second's map misses, and every map is laid over both other scans
    assert [one.swapped_hit_rate for one in found] == [4 / 6, 0.5, None]
    assert not explanations.localise(
        maps, Candidate("retrain/S", "s", {}, predictions, predictions, 1.0), Packed(packed.scans, rows)
    )


def test_randomising_leaves_the_model_itself_alone() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fresh = explanations.randomised(model, seed=3)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not torch.equal(fresh.head.weight, model.head.weight)


def test_the_same_weights_do_not_pass_for_random_ones(monkeypatch) -> None:
    model, given = network(), scans()
    maps = explanations.explain(model, given)
    monkeypatch.setattr(explanations, "randomised", lambda model, seed: model)
    found = explanations.sanity(model, maps, np.zeros((4, 3)), given, seed=0)
    assert found.random_correlation > 0.999
