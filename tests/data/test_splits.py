from collections import Counter

import pytest

from covidnet.data.splits import assign, of_scans
from covidnet.errors import CovidnetError

SHARES = {"train": 0.65, "validation": 0.15, "test": 0.2}


def test_a_patients_scans_stay_together_and_shares_hold_per_class():
    patients = [f"p{i // 2}" for i in range(800)]  # two scans each
    labels = [["NCP", "Normal"][(i // 2) % 2] for i in range(800)]
    split = assign(patients, labels, SHARES, seed=1)
    assert set(split) == set(patients)
    per_class = Counter((labels[2 * int(p[1:])], side) for p, side in split.items())
    assert per_class == {
        ("NCP", "train"): 130, ("NCP", "validation"): 30, ("NCP", "test"): 40,
        ("Normal", "train"): 130, ("Normal", "validation"): 30, ("Normal", "test"): 40,
    }  # fmt: skip


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_scans():
    patients = [f"p{i}" for i in range(60)]
    labels = ["A", "B", "C"] * 20
    split = assign(patients, labels, SHARES, seed=3)
    assert assign(patients[::-1], labels[::-1], SHARES, seed=3) == split
    assert assign(patients, labels, SHARES, seed=4) != split


def test_every_split_gets_a_patient_of_every_class_even_when_shares_round_to_none():
    split = assign(["a", "b", "c"], ["X"] * 3, {"train": 0.9, "validation": 0.05, "test": 0.05}, seed=0)
    assert sorted(split.values()) == ["test", "train", "validation"]


def test_fewer_patients_than_splits_is_an_error_that_names_the_class():
    with pytest.raises(CovidnetError, match=r"class CP has 2 patient\(s\), too few for 3 splits"):
        assign(["a", "b", "c", "d", "e"], ["CP", "CP", "X", "X", "X"], SHARES, seed=0)


def test_a_given_test_list_stays_and_the_other_patients_become_training_and_validation():
    patients = [f"p{i // 2}" for i in range(200)]
    labels = [["NCP", "Normal"][(i // 2) % 2] for i in range(200)]
    given = ["test" if i >= 160 else None for i in range(200)]
    split = of_scans(patients, labels, given, {"train": 0.64, "validation": 0.16, "test": 0.2}, seed=0)
    assert split[160:] == ["test"] * 40
    # of 40 open patients per class, 0.16 / (0.64 + 0.16) are 8
    assert Counter(split[:160]) == {"train": 128, "validation": 32}
    assert all(split[i] == split[i + 1] for i in range(0, 200, 2))


def test_a_split_given_for_all_is_kept():
    given = ["test", "train", "train"]
    assert of_scans(["a", "b", "c"], ["X"] * 3, given, SHARES, seed=0) == given
