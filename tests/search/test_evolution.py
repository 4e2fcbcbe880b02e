"""The evolutionary search: what survives, what is bred from it, and the whole of it on a tiny space."""

import json

import numpy as np
import pytest
import torch

from covidnet.config import Augment, Budget, Search
from covidnet.models.supernet import Supernet
from covidnet.search import evolution, result
from covidnet.search.evolution import Evolution, Individual, children, crowding, dominates, rank, survivors
from tests.toy_space import SIZE, SPACE, costing, volumes


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


def test_children_are_few_where_there_are_few_to_be_had():
    least, _ = costing().range("size_mib")
    only = [Individual((7, 7, 7, 7), least, 0.5)]
    assert children(only, costing(least), 12, {(7, 7, 7, 7)}, np.random.default_rng(0)) == []


SETTINGS = Search(method="evolution", size=SIZE, batch=8, warmup_steps=6, steps=24, budget=Budget(size_mib=0.04))
TARGET = (5, 3, 0, 1)
STILL = Augment(flip=False, rotate_deg=0, scale=0, shift=0, intensity=0, noise=0)


def evolving(settings=SETTINGS):
    """A search that knows what is right: the accuracy of a path is how much of it is as in `TARGET`."""
    torch.manual_seed(0)

    def judge(path, held_out, batches):
        assert (len(held_out), batches) == (48, evolution.JUDGED_BATCHES)  # of as many scans as there are
        return result.Judgement(0.5, float(np.mean(np.array(path) == TARGET)))

    supernet = Supernet(SPACE, 1, 3)
    return Evolution(supernet, costing(0.04), volumes(), volumes(seed=1), settings, STILL, 0, judge)


def test_a_population_of_the_budget_is_trained_after_the_warm_up_and_gets_better():
    run, rows, best = evolving(), [], []
    for _ in range(30):
        rows.append(run.iterate())
        best.append(max((i.accuracy or 0.0 for i in run.population), default=0.0))
    assert [row["phase"] for row in rows] == ["warm-up"] * 6 + ["evolution"] * 24
    assert all(row["alpha_loss"] is None for row in rows)
    assert len({value for value in best if value}) > 1
    assert best == sorted(best)
    paths = run.candidates()
    assert len(set(paths)) == len(paths) == evolution.POPULATION
    assert all(costing(0.04).fits(path) for path in paths)
    shares = torch.softmax(run.scores, dim=1)
    assert shares[0].tolist() == pytest.approx([sum(p[0] == o for p in paths) / len(paths) for o in range(8)], abs=1e-6)


def test_a_generation_is_bred_eight_times_in_all():
    run, bred = evolving(), []
    honest = run._breed
    run._breed = lambda: (bred.append(run.step), honest())
    for _ in range(30):
        run.iterate()
    assert bred == [8, 11, 14, 17, 20, 23, 26, 29]  # the steps that end a generation


def test_an_evolution_that_was_stopped_goes_on_as_if_it_never_was(tmp_path):
    whole = evolving()
    for _ in range(30):
        whole.iterate()
    begun = evolving()
    for _ in range(17):
        begun.iterate()
    torch.save(begun.state(), tmp_path / "state.pt")
    resumed = evolving()
    resumed.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(13):
        resumed.iterate()
    assert resumed.population == whole.population
    assert json.dumps(resumed.history) == json.dumps(whole.history)
    for a, b in zip(whole.supernet.parameters(), resumed.supernet.parameters(), strict=True):
        assert torch.equal(a, b)


def test_potential_is_what_a_path_gained_since_it_was_last_judged():
    run = evolving()
    gains = iter([0.3, 0.5])

    def judge(path, held_out, batches):
        return result.Judgement(0.5, gain)

    run.judge = judge
    for gain in gains:
        while run.iterate()["step"] < (8 if gain == 0.3 else 11):
            pass
    known = [i.potential for i in run.population if i.potential is not None]
    assert known
    assert known == pytest.approx([0.2] * len(known))
