"""Two searches over several seeds, held against each other."""

import numpy as np
import pytest

from benchmarks.evolution import Outcome, summary
from covidnet.evaluation.metrics import Predictions


def test_all_seeds_answers_are_held_against_each_other_patient_by_patient():
    ids = tuple(f"scan{i}" for i in range(60))
    labels = np.arange(60) % 3
    right, wrong = 4.0 * np.eye(3)[labels], 4.0 * np.eye(3)[(labels + 1) % 3]
    half = np.where((np.arange(60) < 30)[:, None], right, wrong)
    answers = {
        name: [Predictions(ids, ids, labels, logits, ("a", "b", "c")) for logits in of_seeds]
        for name, of_seeds in {"ours": (right, half), "theirs": (half, wrong)}.items()
    }
    pairs = [tuple(Outcome({"search": n}, [], answers[n][i]) for n in ("ours", "theirs")) for i in (0, 1)]
    found = summary(pairs)["difference"]
    assert found["accuracy"] == pytest.approx((1.0 + 0.5) / 2 - (0.5 + 0.0) / 2)
    assert found["interval"] == pytest.approx([0.5, 0.5])  # every patient gains by the same, in one seed or the other
