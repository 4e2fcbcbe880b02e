"""Checks of the maps themselves, with MONAI's Grad-CAM as the independent source."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from covidnet.config import parse
from covidnet.data.packed import Packed, Row
from covidnet.evaluation import cam, explanations, overlay
from covidnet.evaluation.candidates import Candidate
from covidnet.evaluation.metrics import Predictions
from covidnet.models import baselines
from covidnet.models.blocks import Classifier
from covidnet.training import loop

CLASSES = ("NCP", "CP", "Normal")


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


def packed_of(labels: list[int], lesions: np.ndarray | None = None) -> Packed:
    """Noise of the given classes, all of it in the test split behind two scans to train with."""
    grey = np.random.default_rng(0).integers(0, 256, (len(labels) + 2, 4, 12, 12), dtype=np.uint8)
    splits = ["train", "train"] + ["test"] * len(labels)
    rows = tuple(
        Row(f"s{i}", f"p{i}", CLASSES[k], split, "", "", "", 4, "")
        for i, (split, k) in enumerate(zip(splits, [0, 0, *labels], strict=True))
    )
    if lesions is not None:
        lesions = np.concatenate([np.zeros((2, *lesions.shape[1:]), np.uint8), lesions])
    return Packed(grey, rows, lesions)


def judged(labels: list[int], logits: np.ndarray) -> Candidate:
    ids = tuple(f"s{i}" for i in range(len(labels)))
    predictions = Predictions(ids, ids, np.array(labels), logits, CLASSES)
    return Candidate("retrain/S", "s", {}, predictions, predictions, 1.0)


def test_examples_are_the_surest_of_every_class_in_turns_right_ones_first(monkeypatch) -> None:
    monkeypatch.setattr(overlay, "montage", lambda *scan, **how: Image.new("RGB", (1, 1)))
    labels = [0, 0, 0, 1, 1, 2, 2]
    called, sure = [0, 0, 1, 1, 1, 2, 0], [0.6, 0.9, 0.8, 0.5, 0.7, 0.55, 0.95]
    p = np.array([np.where(np.arange(3) == k, s, (1 - s) / 2) for k, s in zip(called, sure, strict=True)])
    maps = np.zeros((7, 3, 1, 2, 2), np.float32)
    config = parse({"evaluate": {"overlays": 4}})
    found = explanations.draw_examples(maps, judged(labels, np.log(p)), packed_of(labels), config)
    assert [(one.title, one.correct) for one in found] == [
        ("Predicted NCP (0.90), true label NCP", True),
        ("Predicted CP (0.70), true label CP", True),
        ("Predicted Normal (0.55), true label Normal", True),
        ("Predicted NCP (0.60), true label NCP", True),
        ("Predicted CP (0.80), true label NCP", False),
        ("Predicted NCP (0.95), true label Normal", False),
    ]
    assert all(one.png.startswith(b"\x89PNG") for one in found)


def test_an_example_is_drawn_of_its_own_scan_with_the_map_of_the_predicted_class(monkeypatch) -> None:
    shown = []

    def montage(volume, heat, title, *, label, mask):
        shown.append((volume, heat, label, mask))
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(overlay, "montage", montage)
    maps, lesions = np.zeros((2, 3, 1, 1, 1), np.float32), np.zeros((2, 4, 12, 12), np.uint8)
    maps[1, 2], lesions[1] = 5, 1
    packed, config = packed_of([0, 0], lesions), parse({"evaluate": {"overlays": 1}})
    explanations.draw_examples(maps, judged([0, 0], np.eye(3)[[0, 2]]), packed, config)
    (_, _, _, _), (volume, heat, label, mask) = shown
    np.testing.assert_array_equal(volume, packed.scans[3])
    assert (heat == 5).all()
    assert heat.shape == volume.shape
    assert label == "Normal"
    assert mask.all()


def test_pointing_is_measured_beside_the_centre_anywhere_and_the_maps_of_other_scans() -> None:
    rng = np.random.default_rng(0)
    lesions = np.zeros((8, 4, 12, 12), np.uint8)
    for lesion in lesions:
        z, y, x = rng.integers(0, (4, 10, 10))
        lesion[z, y : y + 2, x : x + 2] = 1
    maps = rng.normal(size=(8, 3, 2, 3, 3)).astype(np.float32)
    (found,) = explanations.localise(maps, judged([1] * 8, np.eye(3)[[1] * 8]), packed_of([1] * 8, lesions))[:1]
    masks, heats = lesions.astype(bool), maps[:, 1]
    assert (found.scans, found.grid) == (8, (2, 3, 3))
    assert found.hit_rate == np.mean([cam.lesion_hit(h, m) for h, m in zip(heats, masks, strict=True)])
    others = [cam.lesion_hit(heats[(i + s) % 8], masks[i]) for i in range(8) for s in range(1, 6)]
    assert found.swapped_hit_rate == np.mean(others)
    assert 0 < found.swapped_hit_rate != found.hit_rate
    centre = cam.centre_prior((4, 12, 12))
    assert found.centre_hit_rate == np.mean([cam.lesion_hit(centre, m, (2, 3, 3)) for m in masks])
    assert found.random_hit_rate == pytest.approx(np.mean([cam.random_hit_rate(m, (2, 3, 3)) for m in masks]))
    inside = [
        np.maximum(cam.upsample(h, m.shape), 0)[m].sum() / np.maximum(cam.upsample(h, m.shape), 0).sum()
        for h, m in zip(heats, masks, strict=True)
    ]
    assert found.energy_inside == pytest.approx(np.mean(inside), rel=1e-5)
    assert found.centre_energy_inside == pytest.approx(
        np.mean([centre[m].sum() / centre.sum() for m in masks]), rel=1e-5
    )


def test_grad_cam_is_asked_of_at_most_sixteen_scans_spread_over_all(monkeypatch) -> None:
    monkeypatch.setattr(explanations, "grad_cam", lambda model, scan, label: scan[0].numpy() * float(label == 1))
    for count, asked in ((16, 16), (17, 9), (40, 14), (1, 1)):
        lesions = np.ones((count, 4, 12, 12), np.uint8)
        lesions[:, 1:] = 0
        packed = packed_of([1] * count, lesions)
        candidate = judged([1] * count, np.eye(3)[[1] * count])
        given = torch.from_numpy(packed.scans[2:].copy())
        found = explanations.localise_by_gradient(network(), candidate, given, packed, "MC3_18")
        assert found is not None
        assert (found.scans, found.name) == (asked, "Grad-CAM of MC3_18")
    wrong = judged([1], np.eye(3)[[2]])
    assert explanations.localise_by_gradient(network(), wrong, given, packed, "MC3_18") is None


def test_exactness_is_the_largest_distance_of_a_map_and_constant_maps_correlate_with_nothing() -> None:
    model, given = network(), scans()
    maps = explanations.explain(model, given)
    with torch.no_grad():
        logits = model(loop.as_input(model, given)).numpy()
    logits[2, 1] -= 0.25
    found = explanations.sanity(model, maps, logits, given, seed=7)
    assert found.exactness == pytest.approx(0.25, abs=1e-5)
    flat = explanations.sanity(model, np.ones_like(maps), logits, given, seed=7)
    assert flat.random_correlation == 0
    assert flat.scans == 4


def test_of_many_scans_only_some_are_held_to_random_weights() -> None:
    model = network()
    grey = torch.randint(0, 256, (40, 4, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    maps = explanations.explain(model, grey, batch=7)
    assert maps.shape == (40, 3, 1, 2, 2)
    np.testing.assert_allclose(maps, explanations.explain(model, grey, batch=40), atol=1e-5)
    assert explanations.sanity(model, maps, np.zeros((40, 3)), grey, seed=0).scans == explanations.SANITY_SCANS
