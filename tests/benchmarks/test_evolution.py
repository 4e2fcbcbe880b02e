"""The evolutionary comparator: what survives, and what is bred from it."""

import numpy as np
import pytest

from benchmarks.evolution import Individual, Outcome, children, crowding, dominates, rank, summary, survivors
from covidnet.evaluation.metrics import Predictions
from tests.toy_space import costing


def individual(accuracy, size, potential=0.0):
    return Individual((0, 0, 0, 0), size, accuracy, potential)


def test_a_point_dominates_another_when_it_is_no_worse_in_anything_and_better_in_something():
    assert dominates(np.array([1.0, 2.0]), np.array([1.0, 1.0]))
    assert not dominates(np.array([1.0, 1.0]), np.array([1.0, 1.0]))
    assert not dominates(np.array([2.0, 0.0]), np.array([1.0, 1.0]))


def test_the_ends_of_a_front_are_never_crowded_and_the_middle_by_its_neighbours():
    points = np.array([[0.0, 4.0], [1.0, 2.0], [4.0, 0.0]])
    assert crowding(points) == [np.inf, pytest.approx(1 + 1), np.inf]
    close = np.array([[0.0, 4.0], [1.0, 3.0], [2.0, 2.0], [4.0, 0.0]])
    assert crowding(close)[1] == pytest.approx(2 / 4 + 2 / 4)
    assert crowding(close)[2] == pytest.approx(3 / 4 + 3 / 4)


def test_those_that_nothing_dominates_survive_whatever_their_objective():
    accurate, small, slow = individual(0.9, 3.0), individual(0.6, 1.0), individual(0.5, 3.0, potential=0.3)
    beaten = individual(0.55, 3.5, potential=-0.1)
    assert {i.size_mib for i in survivors([beaten, accurate, small, slow], 3)} == {3.0, 1.0}
    assert beaten not in survivors([beaten, accurate, small, slow], 3)
    assert rank([accurate, beaten])[1][0] == 1


def test_a_newcomers_potential_is_the_median_of_those_that_are_known():
    gains = [individual(0.5, 2.0, gain) for gain in (0.0, 0.1, 0.5)]
    newcomer = Individual((1, 1, 1, 1), 2.0, 0.5)
    fronts = [front for front, _ in rank([*gains, newcomer])]
    assert fronts == [2, 1, 0, 1]


def test_children_are_new_keep_to_the_budget_and_take_after_their_parents():
    limited = costing(costing().size_mib((3, 3, 3, 3)))
    parents = [Individual((0, 0, 0, 0), 0.0, 0.5), Individual((7, 7, 7, 7), 0.0, 0.5)]
    known = {parent.path for parent in parents}
    made = children(parents, limited, 12, set(known), np.random.default_rng(0))
    assert len(set(made)) == 12
    assert not known & set(made)
    assert all(limited.fits(path) for path in made)
    inherited = np.isin(np.array(made), (0, 7)).mean()
    assert 0.8 < inherited < 1  # one block in ten is changed


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
