"""The profile of the training data in the bundle."""

import numpy as np
import pytest

from covidnet.data.packed import Packed, Row
from covidnet.errors import CovidnetError
from covidnet.evaluation.metrics import Predictions
from covidnet.export import reference
from covidnet.export.reference import Reference


def packed(count: int = 30) -> Packed:
    rng = np.random.default_rng(0)
    scans = rng.integers(0, 256, (count, 4, 8, 8), dtype=np.uint8)
    rows = [
        Row(
            f"s{i}",
            f"p{i}",
            "NCP",
            "train" if i % 3 else "validation",
            "nifti",
            "",
            f"{1 + i % 2}.0;0.7;0.7",
            20 + i,
            "",
        )
        for i in range(count)
    ]
    return Packed(scans, tuple(rows))


def predictions(count: int) -> Predictions:
    logits = np.random.default_rng(1).normal(size=(count, 2))
    ids = tuple(map(str, range(count)))
    return Predictions(ids, ids, np.zeros(count, np.int64), logits, ("NCP", "Normal"))


def test_features_of_a_volume_are_those_of_numpy() -> None:
    volume = np.random.default_rng(2).integers(0, 256, (16, 16, 40), dtype=np.uint8)
    found = reference.describe(volume)
    assert found["volume_mean"] == pytest.approx(volume.mean())
    assert found["volume_p05"] == pytest.approx(np.quantile(volume, 0.05), abs=1)
    assert found["volume_p95"] == pytest.approx(np.quantile(volume, 0.95), abs=1)
    assert found["volume_roughness"] == pytest.approx(np.abs(np.diff(volume.astype(float), axis=2)).mean())


def test_inputs_come_from_the_training_split_and_answers_from_the_validation_split() -> None:
    built = reference.build(packed(), predictions(10), temperature=1.0)
    assert built.features["slices"].scans == 20
    assert built.features["confidence"].scans == 10
    assert sum(built.predictions.values()) == 10
    assert built.features["spacing_z_mm"].values.tolist() == [1.0] * 10 + [2.0] * 10
    assert {"spacing_y_mm", "volume_mean", "energy"} <= set(built.features)


def test_it_is_read_back_and_is_the_same_each_time() -> None:
    built = reference.build(packed(), predictions(10), temperature=1.0)
    again = Reference.from_dict(built.to_dict())
    assert again.to_dict() == built.to_dict() == reference.build(packed(), predictions(10), temperature=1.0).to_dict()


def test_many_values_become_order_statistics() -> None:
    values = np.random.default_rng(3).normal(size=5_000)
    feature = reference.profile(values.tolist())
    assert feature.scans == 5_000
    assert len(feature.values) == reference.MOST_VALUES
    assert np.median(feature.values) == pytest.approx(np.median(values), abs=0.02)


@pytest.mark.parametrize("tree", [{}, {"features": [], "predictions": {}}, {"features": {"a": {"scans": 1}}}])
def test_a_damaged_profile_is_refused(tree: dict) -> None:
    with pytest.raises(CovidnetError, match=r"reference\.json"):
        Reference.from_dict(tree)


def test_values_out_of_order_are_refused() -> None:
    tree = {"features": {"a": {"scans": 2, "values": [2.0, 1.0]}}, "predictions": {"NCP": 1}}
    with pytest.raises(CovidnetError, match="ascending"):
        Reference.from_dict(tree)
