"""Which model wins: by validation, and the smaller of those that validation can't tell apart."""

import numpy as np
import pytest

from covidnet.config import parse
from covidnet.evaluation.candidates import Candidate, choose, title
from covidnet.evaluation.metrics import Predictions

CONFIG = parse({"classes": ["NCP", "Normal"], "evaluate": {"bootstrap": 200, "positive": "NCP"}})


def candidate(name: str, right: int, size_mib: float) -> Candidate:
    """So many of sixty validation scans, each of a patient of its own, are right; test scans are for nobody to look at."""
    labels, ids = np.arange(60) % 2, tuple(f"s{i}" for i in range(60))
    called = np.where(np.arange(60) < right, labels, 1 - labels)
    validation, test = (Predictions(ids, ids, labels, np.eye(2)[k], ("NCP", "Normal")) for k in (called, 1 - called))
    return Candidate(f"retrain/{name}", name, {"size_mib": size_mib}, validation, test, 1.0)


def test_a_model_that_is_better_beyond_chance_wins_whatever_its_size() -> None:
    winner, reason = choose([candidate("small", 30, 1), candidate("large", 60, 100), candidate("other", 35, 2)], CONFIG)
    assert winner.name == "large"
    assert reason == "it has the best validation accuracy, 100.0%"


def test_the_smallest_of_those_that_cannot_be_told_apart_wins() -> None:
    models = [
        candidate("best", 57, 100),
        candidate("alike", 54, 10),
        candidate("alike too", 56, 20),
        candidate("bad", 30, 1),
    ]
    winner, reason = choose(models, CONFIG)
    assert winner.name == "alike"
    assert reason.endswith("can't be told apart from the best: 90.0% beside 95.0% of best")


def test_the_best_may_be_the_smallest_too() -> None:
    winner, reason = choose([candidate("alike", 56, 10), candidate("best", 57, 1)], CONFIG)
    assert winner.name == "best"
    assert reason == (
        "it has the best validation accuracy, 95.0%, and is the smallest of those that can't be told apart from it"
    )


@pytest.mark.parametrize(
    ("name", "printed"), [("mc3_18", "MC3_18"), ("covidnet3d-s", "CovidNet3D-S"), ("my-net", "my-net")]
)
def test_models_of_the_paper_are_printed_as_there_and_others_as_they_are_called(name: str, printed: str) -> None:
    assert title(name) == printed
