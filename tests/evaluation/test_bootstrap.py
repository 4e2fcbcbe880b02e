"""Intervals and tests against scipy and hand formulas, and coverage by simulation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from covidnet.errors import CovidnetError
from covidnet.evaluation.bootstrap import (
    PairedResult,
    holm,
    intervals,
    mcnemar,
    paired_difference,
    patients_needed,
    resample_weights,
    share_interval,
)
from covidnet.evaluation.metrics import Predictions

CLASSES = ("NCP", "Normal")


def answers(right: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> Predictions:
    """Predictions that are right exactly where ``right`` says so."""
    called = np.where(right, labels, 1 - labels)
    ids = tuple(f"scan{i}" for i in range(len(right)))
    return Predictions(ids, tuple(f"patient{i}" for i in patients), labels, 2.0 * np.eye(2)[called], CLASSES)


def one_scan_each(right: np.ndarray) -> Predictions:
    return answers(right, np.arange(len(right)) % 2, np.arange(len(right)))


def test_one_scan_per_patient_agrees_with_scipy() -> None:
    right = np.random.default_rng(0).random(150) < 0.8
    low, high = intervals(one_scan_each(right), "NCP", resamples=8000, seed=1).values["accuracy"] or (0, 0)
    expected = scipy.stats.bootstrap(
        (right.astype(float),), np.mean, n_resamples=8000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert (low, high) == pytest.approx(tuple(expected), abs=0.008)


def test_scans_of_a_patient_are_drawn_together() -> None:
    weights = resample_weights(["a", "b", "a", "c", "b"], resamples=50, seed=0)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 1], weights[:, 4])
    assert set((weights[:, [0, 1, 3]]).sum(axis=1)) == {3.0}


def test_repeating_every_scan_of_a_patient_adds_no_certainty() -> None:
    right = np.random.default_rng(0).random(80) < 0.75
    labels, patients = np.arange(80) % 2, np.arange(80)
    once = intervals(answers(right, labels, patients), "NCP", seed=3).values
    thrice = intervals(answers(*(np.repeat(x, 3) for x in (right, labels, patients))), "NCP", seed=3).values
    assert thrice["accuracy"] == pytest.approx(once["accuracy"])


def test_wider_confidence_holds_narrower() -> None:
    p = one_scan_each(np.random.default_rng(0).random(100) < 0.7)
    narrow = intervals(p, "NCP", confidence=0.8).values["accuracy"] or (0, 0)
    wide = intervals(p, "NCP", confidence=0.99).values["accuracy"] or (0, 0)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_fewer_than_ten_patients_of_a_class_get_no_interval() -> None:
    labels = np.array([0] * 9 + [1] * 40)
    found = intervals(answers(np.ones(49, bool), labels, np.arange(49)), "NCP")
    assert set(found.values.values()) == {None}
    assert found.warnings == ("no intervals: they need at least 10 patients of every class; found 9 of NCP",)


def test_ten_scans_of_one_patient_are_one_patient() -> None:
    labels, patients = np.array([0] * 20 + [1] * 20), np.array([0] * 20 + list(range(1, 21)))
    found = intervals(answers(np.ones(40, bool), labels, patients), "NCP")
    assert found.values["accuracy"] is None


def test_figure_that_is_often_undefined_is_withheld_alone() -> None:
    right = np.ones(60, bool)
    right[np.arange(60) % 2 == 1] = False
    right[1] = True  # a single scan called Normal: its precision is undefined in a third of the resamples
    found = intervals(one_scan_each(right), "NCP")
    assert found.values["precision_Normal"] is None
    assert found.values["accuracy"] is not None
    assert "precision_Normal" in found.warnings[0]


def test_paired_difference_of_a_model_with_itself_is_nothing() -> None:
    p = one_scan_each(np.random.default_rng(0).random(60) < 0.7)
    result = paired_difference(p, p)
    assert (result.difference, result.low, result.high, result.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_paired_difference_agrees_with_the_paired_normal_formula() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.random(400) < 0.85, rng.random(400) < 0.75
    result = paired_difference(one_scan_each(a), one_scan_each(b), resamples=8000)
    gaps = a.astype(float) - b
    half = 1.96 * gaps.std() / math.sqrt(400)
    assert result.difference == pytest.approx(gaps.mean(), abs=1e-12)
    assert (result.low, result.high) == pytest.approx((gaps.mean() - half, gaps.mean() + half), abs=0.006)
    assert result.p_value == pytest.approx(2 * scipy.stats.norm.sf(gaps.mean() / (gaps.std() / 20)), abs=0.01)


def test_paired_difference_changes_sign_with_the_order() -> None:
    rng = np.random.default_rng(4)
    a, b = (one_scan_each(rng.random(80) < share) for share in (0.9, 0.7))
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert forth.difference == pytest.approx(-back.difference)
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low))
    assert forth.p_value == pytest.approx(back.p_value)


def test_paired_difference_without_enough_patients_gives_the_difference_alone() -> None:
    result = paired_difference(one_scan_each(np.ones(12, bool)), one_scan_each(np.zeros(12, bool)))
    assert result.difference == 1.0
    assert all(math.isnan(value) for value in (result.low, result.high, result.p_value))


def test_comparison_of_other_scans_or_metrics_is_refused() -> None:
    a, b = one_scan_each(np.ones(40, bool)), one_scan_each(np.ones(42, bool))
    with pytest.raises(CovidnetError, match="same scans"):
        paired_difference(a, b)
    with pytest.raises(CovidnetError, match="same scans"):
        mcnemar(a, b)
    with pytest.raises(CovidnetError, match="no metric 'acuracy'; there are accuracy"):
        paired_difference(a, a, "acuracy")


def test_mcnemar_is_the_exact_binomial_of_discordant_scans() -> None:
    a, b = np.ones(40, bool), np.ones(40, bool)
    a[:2], b[2:12] = False, False  # 10 right in a alone, 2 in b alone
    expected = 2 * sum(math.comb(12, k) for k in range(3)) / 2**12
    assert mcnemar(one_scan_each(a), one_scan_each(b)) == pytest.approx(expected, abs=1e-12)
    assert mcnemar(one_scan_each(a), one_scan_each(a)) == 1.0


def test_patients_needed_grows_with_the_square_of_what_is_missing() -> None:
    assert patients_needed(PairedResult(0.02, -0.02, 0.06, 0.3), 100) == 400  # half width 0.04 is twice the difference
    assert patients_needed(PairedResult(0.02, 0.01, 0.03, 0.01), 100) is None
    assert patients_needed(PairedResult(0.0, -0.1, 0.1, 1.0), 100) is None
    assert patients_needed(PairedResult(0.1, math.nan, math.nan, math.nan), 100) is None


def test_interval_of_a_share_is_that_of_accuracy() -> None:
    p = one_scan_each(np.random.default_rng(0).random(80) < 0.7)
    share, interval = share_interval(p.predicted == p.labels, p.patients, 500, 0.95, 3)
    assert interval == pytest.approx(intervals(p, "NCP", resamples=500, seed=3).values["accuracy"])
    assert share == pytest.approx((p.predicted == p.labels).mean())
    assert share_interval(np.ones(9, bool), [str(i) for i in range(9)], 100, 0.95, 0) == (1.0, None)


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1 and never decreasing: 0.04, 0.06, 0.06, 0.06
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06], abs=1e-12)
    assert holm([0.7, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_leaves_undefined_p_values_out() -> None:
    adjusted = holm([math.nan, 0.02, 0.01])
    assert math.isnan(adjusted[0])
    assert adjusted[1:] == pytest.approx([0.02, 0.02])


def coverage(repetitions: int, patients: int, resamples: int) -> float:
    """How often a 95 % interval of accuracy holds the truth: 1 to 3 scans a patient, patients of unequal difficulty."""
    rng = np.random.default_rng(7)
    hits = 0
    for seed in range(repetitions):
        patient = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
        difficulty = rng.beta(4, 1, patients)  # mean 0.8: the true accuracy
        right = rng.random(len(patient)) < difficulty[patient]
        p = answers(right, patient % 2, patient)
        low, high = intervals(p, "NCP", resamples=resamples, seed=seed).values["accuracy"] or (0, 0)
        hits += low <= 0.8 <= high
    return hits / repetitions


def test_coverage_in_a_small_simulation() -> None:
    assert 0.89 <= coverage(120, patients=100, resamples=300) <= 0.99


@pytest.mark.slow
def test_coverage_of_the_clustered_interval() -> None:
    assert 0.93 <= coverage(1000, patients=150, resamples=1000) <= 0.97


def test_resamples_draw_every_patient_alike_and_the_same_ones_by_seed() -> None:
    patients = [f"p{i % 20}" for i in range(40)]
    weights = resample_weights(patients, resamples=2000, seed=5)
    assert weights.shape == (2000, 40)
    assert set(weights.sum(axis=1)) == {40.0}  # two scans each
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.1)
    np.testing.assert_allclose(weights.var(axis=0), 19 / 20, atol=0.12)  # of drawing twenty times one in twenty
    np.testing.assert_array_equal(weights, resample_weights(patients, resamples=2000, seed=5))
    assert (weights != resample_weights(patients, resamples=2000, seed=6)).any()


def test_an_interval_holds_the_middle_share_of_the_resamples() -> None:
    hits = np.random.default_rng(0).random(30) < 0.6
    patients = [str(i) for i in range(30)]
    shares = resample_weights(patients, 400, 1) @ hits / 30
    _, interval = share_interval(hits, patients, 400, 0.9, 1)
    assert interval == pytest.approx(np.quantile(shares, [0.05, 0.95]))


def test_ten_patients_of_every_class_carry_an_interval() -> None:
    right = np.arange(20) % 7 > 0
    assert intervals(one_scan_each(right), "NCP", resamples=200).values["accuracy"] is not None
    assert share_interval(right[:10], [str(i) for i in range(10)], 100, 0.95, 0)[1] is not None
    assert not math.isnan(paired_difference(one_scan_each(right), one_scan_each(~right), resamples=200).low)
    found = intervals(answers(right[:19], np.arange(19) % 2, np.arange(19)), "NCP", resamples=200)
    assert found.warnings == ("no intervals: they need at least 10 patients of every class; found 9 of Normal",)


def test_what_is_defined_in_all_resamples_gives_no_warning() -> None:
    found = intervals(one_scan_each(np.random.default_rng(0).random(80) < 0.7), "NCP", resamples=100)
    assert found.warnings == ()
    assert None not in found.values.values()


def test_a_p_value_is_at_least_what_its_number_of_resamples_can_tell() -> None:
    best, worst = one_scan_each(np.ones(40, bool)), one_scan_each(np.zeros(40, bool))
    for a, b in ((best, worst), (worst, best)):
        assert paired_difference(a, b, resamples=199).p_value == pytest.approx(2 / 200)  # the data count as a draw


def test_paired_difference_of_a_binary_figure_is_that_of_the_first_class_unless_told() -> None:
    labels = np.arange(60) % 2
    of_first, none = np.where(labels == 0, np.arange(60) < 30, True), np.ones(60, bool)
    a, b = one_scan_each(none), one_scan_each(of_first)
    assert paired_difference(a, b, "sensitivity", resamples=100).difference == pytest.approx(0.5)
    assert paired_difference(a, b, "sensitivity", positive="Normal", resamples=100).difference == 0
    assert paired_difference(a, b, "specificity", positive="Normal", resamples=100).difference == pytest.approx(0.5)


@pytest.mark.parametrize("other", ["scan_ids", "patients", "labels", "classes"])
def test_a_comparison_needs_the_same_of_everything_but_the_answers(other: str) -> None:
    a = one_scan_each(np.ones(40, bool))
    changed = {
        "scan_ids": a.scan_ids[::-1],
        "patients": a.patients[::-1],
        "labels": 1 - a.labels,
        "classes": a.classes[::-1],
    }[other]
    with pytest.raises(CovidnetError, match="found 40 and 40 scans that differ"):
        mcnemar(a, replace(a, **{other: changed}))


def test_at_least_one_more_patient_is_needed_where_these_do_not_tell() -> None:
    # half width 0.05 is less than the difference, and still the interval holds 0
    assert patients_needed(PairedResult(0.06, -0.01, 0.09, 0.06), 100) == 101
    assert patients_needed(PairedResult(-0.25, -0.75, 0.0, 0.05), 100) == 225  # half width 3/8: 1.5^2 times as many
    assert patients_needed(PairedResult(0.25, 0.0, 0.75, 0.05), 100) == 225
    assert patients_needed(PairedResult(-0.02, -0.03, -0.01, 0.01), 90) is None
