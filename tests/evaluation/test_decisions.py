"""Decision curve, risk and coverage: by hand, and against a plain loop."""

import numpy as np
import pytest

from covidnet.evaluation.decisions import THRESHOLDS, net_benefit, risk_coverage


def test_net_benefit_by_hand() -> None:
    # at 0.2: all four acted on but the last; 2 true, 1 false of 4, odds 1/4
    target, score = [True, True, False, False], [0.9, 0.3, 0.2, 0.1]
    assert net_benefit(target, score, [0.2])[0] == pytest.approx(2 / 4 - 1 / 4 * 0.25)
    assert net_benefit(target, score, [0.5])[0] == pytest.approx(1 / 4)


def test_acting_on_everybody_is_prevalence_less_odds() -> None:
    target = np.arange(10) < 3
    t = np.array([0.1, 0.3, 0.6])
    np.testing.assert_allclose(net_benefit(target, np.ones(10), t), 0.3 - 0.7 * t / (1 - t), atol=1e-12)


def test_no_rule_beats_a_perfect_score() -> None:
    target = np.arange(10) < 3
    np.testing.assert_allclose(net_benefit(target, target.astype(float)), 0.3, atol=1e-12)


def test_risk_is_the_error_of_the_surest() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet((1, 1, 1), 50)
    y = rng.integers(0, 3, 50)
    curve = risk_coverage(y, p)
    order = sorted(range(50), key=lambda i: -p[i].max())
    for k in (1, 7, 50):
        wrong = sum(p[i].argmax() != y[i] for i in order[:k])
        assert curve.risk[k - 1] == pytest.approx(wrong / k)
        assert curve.coverage[k - 1] == pytest.approx(k / 50)
    assert curve.area == pytest.approx(curve.risk.mean())
    assert curve.risk_at(0.5) == curve.risk[24]
    assert curve.risk_at(1.0) == pytest.approx((p.argmax(1) != y).mean())


def test_the_decision_curve_runs_over_every_percent() -> None:
    assert pytest.approx([k / 100 for k in range(1, 100)]) == THRESHOLDS.tolist()
    assert net_benefit([True, False], [0.5, 0.5]).shape == (99,)


def test_risk_at_a_coverage_answers_at_least_that_share() -> None:
    # of four scans the surest two are right, then one is wrong, then one right
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6]])
    curve = risk_coverage([0, 1, 1, 1], p)
    np.testing.assert_allclose(curve.risk, [0, 0, 1 / 3, 1 / 4])
    assert [curve.risk_at(share) for share in (0.1, 0.5, 0.51, 0.75, 0.76, 1.0, 1.5)] == [
        0, 0, 1 / 3, 1 / 3, 1 / 4, 1 / 4, 1 / 4,
    ]  # fmt: skip
