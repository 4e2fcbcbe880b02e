"""Settings of the search over several seeds, held against the default."""

import numpy as np
import pytest

from benchmarks.evolution import Outcome
from benchmarks.searches import DEFAULT, summary
from covidnet.evaluation.metrics import Predictions

LABELS = np.arange(60) % 3
IDS = tuple(f"scan{i}" for i in range(60))


def answered(right: float) -> Outcome:
    """A search whose network is right about this share of the scans."""
    shown = np.where(np.arange(60) < 60 * right, LABELS, (LABELS + 1) % 3)
    return Outcome({"right": right}, [], Predictions(IDS, IDS, LABELS, 4.0 * np.eye(3)[shown], ("a", "b", "c")))


def test_a_change_is_held_against_the_default_over_the_seeds_that_both_have():
    found = summary({DEFAULT: [answered(0.5), answered(0.7), answered(0.1)], "larger": [answered(0.6), answered(1.0)]})
    assert [row["right"] for row in found["rows"]] == [0.5, 0.7, 0.1, 0.6, 1.0]
    assert list(found["differences"]) == ["larger"]
    larger = found["differences"]["larger"]
    assert larger["seeds"] == 2
    assert larger["accuracy"] == pytest.approx((0.6 + 1.0 - 0.5 - 0.7) / 2)
    assert larger["interval"][0] < larger["accuracy"] < larger["interval"][1]
