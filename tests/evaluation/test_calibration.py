"""Calibration and energy against closed forms, scikit-learn and torchmetrics."""

import math

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.metrics import brier_score_loss

from covidnet.errors import CovidnetError
from covidnet.evaluation import calibration


def sample(scans: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose labels are drawn from softmax(logits / temperature): the right temperature is known."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (scans, 3))
    shares = softmax(logits / temperature, axis=1).cumsum(axis=1)
    return logits, (rng.random((scans, 1)) > shares).sum(axis=1)


@pytest.mark.parametrize("truth", [0.5, 1.0, 2.5])
def test_temperature_is_recovered(truth: float) -> None:
    assert calibration.fit_temperature(*sample(20_000, truth)) == pytest.approx(truth, rel=0.03)


def test_temperature_is_where_the_likelihood_is_stationary() -> None:
    logits, labels = sample(300, 1.7)
    temperature = calibration.fit_temperature(logits, labels)
    # d NLL / d(1/T) = E[z under softmax] - z of the truth, zero at the minimum
    slope = (softmax(logits / temperature, axis=1) * logits).sum(axis=1) - logits[np.arange(300), labels]
    assert slope.mean() == pytest.approx(0, abs=1e-4)


def test_temperature_for_two_classes_has_a_closed_form() -> None:
    # three of four answers right at logit gap 2: sigmoid(2 / T) = 3/4, so T = 2 / ln 3
    logits = np.tile([2.0, 0.0], (4, 1))
    assert calibration.fit_temperature(logits, [0, 0, 0, 1]) == pytest.approx(2 / math.log(3), abs=1e-6)


def test_temperature_of_separable_logits_stays_in_range() -> None:
    low, high = calibration.TEMPERATURE_RANGE
    always_right, always_wrong = [0, 1, 2], [1, 2, 0]
    assert low <= calibration.fit_temperature(3 * np.eye(3), always_right) < 0.1
    assert calibration.fit_temperature(3 * np.eye(3), always_wrong) == pytest.approx(high, rel=1e-2)


def test_temperature_never_changes_the_answer() -> None:
    logits, _ = sample(100, 1.0)
    np.testing.assert_array_equal(softmax(logits / 3, axis=1).argmax(1), logits.argmax(1))


def test_reliability_bins_hold_equally_many_scans() -> None:
    logits, labels = sample(100, 1.0)
    points = calibration.reliability(labels, softmax(logits, axis=1), bins=15)
    assert points.count.sum() == 100
    assert set(points.count) == {6.0, 7.0}
    assert (np.diff(points.confidence) >= 0).all()


def test_calibration_error_by_hand() -> None:
    probabilities = np.array([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1], [0.9, 0.1]])
    # two bins: confidence 0.6 with accuracy 1/2, confidence 0.9 with accuracy 1
    error = calibration.expected_calibration_error([0, 1, 0, 0], probabilities, bins=2)
    assert error == pytest.approx((0.1 + 0.1) / 2, abs=1e-12)


def test_calibration_error_shrinks_with_the_right_temperature() -> None:
    logits, labels = sample(5000, 2.5)
    before, after = (
        calibration.expected_calibration_error(labels, softmax(logits / t, axis=1))
        for t in (1.0, calibration.fit_temperature(logits, labels))
    )
    assert before > 0.1
    assert after < 0.03


def test_brier_is_scikit_learns() -> None:
    logits, labels = sample(200, 1.0)
    p = softmax(logits, axis=1)
    expected = brier_score_loss(labels, p, scale_by_half=False, labels=[0, 1, 2])
    assert calibration.brier(labels, p) == pytest.approx(expected, abs=1e-9)


def test_energy_by_hand() -> None:
    # -T ln(sum exp(z / T)): three equal logits c give -(c + T ln 3)
    np.testing.assert_allclose(calibration.energy([[1.0, 1.0, 1.0]], 2.0), [-(1 + 2 * math.log(3))], atol=1e-12)
    logits, _ = sample(50, 1.0)
    # log softmax is z + energy at T = 1
    np.testing.assert_allclose(log_softmax(logits, 1), logits + calibration.energy(logits)[:, None], atol=1e-9)


@pytest.mark.parametrize("logits", [np.empty((0, 3)), np.array([[np.nan, 1, 2]]), np.ones(3)])
def test_unusable_logits_are_refused(logits: np.ndarray) -> None:
    with pytest.raises(CovidnetError, match="expected finite logits"):
        calibration.fit_temperature(logits, np.zeros(len(logits), int))
