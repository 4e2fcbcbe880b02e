"""How sure a figure is: patient-level bootstrap intervals, paired comparison of two models, McNemar, Holm.

Scans of one patient are alike, so whole patients are resampled (Efron and Tibshirani, An Introduction to the Bootstrap,
1993, ch. 8 and 13).
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from covidnet.errors import CovidnetError
from covidnet.evaluation.metrics import FloatArray, Predictions, weighted

MIN_PATIENTS_PER_CLASS = 10
MAX_UNDEFINED = 0.05  # share of resamples in which a figure may be undefined before its interval is withheld

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Intervals:
    """Percentile intervals by metric name; None where the data can't carry one, and ``warnings`` says why."""

    values: dict[str, Interval | None]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PairedResult:
    """Metric of ``a`` less that of ``b`` on the same scans.

    Args:
        difference: on the scans themselves.
        low: lower end of the interval; NaN, as ``high`` and ``p_value``, where the data can't carry one.
        high: upper end.
        p_value: two-sided, from the same resamples as the interval, so that both tell the same story.
    """

    difference: float
    low: float
    high: float
    p_value: float


def intervals(
    predictions: Predictions,
    positive: str,
    *,
    temperature: float = 1.0,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Intervals:
    """Patient-clustered percentile bootstrap intervals of every figure of `metrics.classification`.

    Args:
        positive: class of the binary figures.
        temperature: of the probabilities.
        resamples: number of draws of all patients with replacement.
        confidence: e.g. 0.95.

    Returns:
        Intervals, all None with a warning where a class has fewer than 10 patients.
    """
    weights = resample_weights(predictions.patients, resamples, seed)
    figures = _figures(predictions, positive, temperature, weights)
    if reason := too_few(predictions):
        return Intervals(dict.fromkeys(figures), (reason,))
    values = {name: _percentiles(draws, confidence) for name, draws in figures.items()}
    withheld = sorted(name for name, interval in values.items() if interval is None)
    warning = f"no interval for {', '.join(withheld)}: undefined in more than {MAX_UNDEFINED:.0%} of the resamples"
    return Intervals(values, (warning,) if withheld else ())


def paired_difference(
    a: Predictions,
    b: Predictions,
    metric: str = "accuracy",
    *,
    positive: str | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedResult:
    """Difference of a metric between two models on the same scans, both seen through the same resamples of patients.

    Args:
        positive: class of the binary figures; the first by default.

    Raises:
        CovidnetError: the two don't hold the same scans and labels in the same order, or there is no such metric.
    """
    _require_same_scans(a, b)
    positive = positive or a.classes[0]
    weights = resample_weights(a.patients, resamples, seed)
    weights = np.vstack([np.ones(len(a)), weights])  # row 0: the scans themselves
    figures = [_figures(predictions, positive, 1.0, weights) for predictions in (a, b)]
    if metric not in figures[0]:
        raise CovidnetError(f"no metric {metric!r}; there are {', '.join(sorted(figures[0]))}")
    difference, draws = np.split(figures[0][metric] - figures[1][metric], [1])
    interval = None if too_few(a) else _percentiles(draws, confidence)
    if interval is None:
        return PairedResult(float(difference[0]), np.nan, np.nan, np.nan)
    return PairedResult(float(difference[0]), *interval, _two_sided(draws[np.isfinite(draws)]))


def share_interval(
    hits: NDArray[np.bool_], patients: Sequence[str], resamples: int, confidence: float, seed: int
) -> tuple[float, Interval | None]:
    """Share of hits among scans with its patient-clustered percentile interval; None with fewer than 10 patients."""
    share = float(np.mean(hits))
    if len(set(patients)) < MIN_PATIENTS_PER_CLASS:
        return share, None
    weights = resample_weights(patients, resamples, seed)
    return share, _percentiles(weights @ hits / weights.sum(axis=1), confidence)


def patients_needed(result: PairedResult, patients: int) -> int | None:
    """How many patients would tell a difference of the size observed from none; None where these do, or there is none.

    The width of an interval falls with the square root of the number of patients.
    """
    if not result.low <= 0 <= result.high or result.difference == 0:  # NaN: no interval, nothing to go by
        return None
    half = (result.high - result.low) / 2
    return max(patients + 1, math.ceil(patients * (half / abs(result.difference)) ** 2))


def mcnemar(a: Predictions, b: Predictions) -> float:
    """Exact McNemar p-value of two models' right and wrong answers on the same scans.

    Treats scans as independent: where patients have several scans, `paired_difference` is the one to rely on.

    Raises:
        CovidnetError: the two don't hold the same scans and labels in the same order.
    """
    _require_same_scans(a, b)
    right_a, right_b = a.predicted == a.labels, b.predicted == b.labels
    only_a, only_b = int((right_a & ~right_b).sum()), int((~right_a & right_b).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for the number of comparisons (Holm, 1979), in the order given; NaN stays NaN, uncounted."""
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(len(p), np.nan)
    order = np.argsort(p)[: np.isfinite(p).sum()]  # NaN sorts last
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in adjusted]


def resample_weights(patients: Sequence[str], resamples: int, seed: int) -> FloatArray:
    """How often each scan is in each resample of patients with replacement, ``float64 (R, N)``."""
    unique, index = np.unique(np.asarray(patients), return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(len(unique), np.full(len(unique), 1 / len(unique)), size=resamples)
    return draws[:, index].astype(np.float64)


def too_few(predictions: Predictions) -> str | None:
    """Why these scans can't carry an interval, or None where they can."""
    labelled = set(zip(predictions.patients, predictions.labels.tolist(), strict=True))
    patients = Counter(label for _, label in labelled)
    few = [f"{patients[k]} of {c}" for k, c in enumerate(predictions.classes) if patients[k] < MIN_PATIENTS_PER_CLASS]
    if not few:
        return None
    return f"no intervals: they need at least {MIN_PATIENTS_PER_CLASS} patients of every class; found {', '.join(few)}"


def _figures(predictions: Predictions, positive: str, temperature: float, weights: FloatArray) -> dict[str, FloatArray]:
    probabilities = predictions.probabilities(temperature)
    return weighted(predictions.labels, probabilities, predictions.classes, positive, weights)


def _percentiles(draws: FloatArray, confidence: float) -> Interval | None:
    defined = draws[np.isfinite(draws)]
    if len(defined) < (1 - MAX_UNDEFINED) * len(draws):
        return None
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _two_sided(draws: FloatArray) -> float:
    """P-value of no difference: twice the smaller tail; the observed data count as one draw, so it is never 0."""
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(draws) + 1))


def _require_same_scans(a: Predictions, b: Predictions) -> None:
    same = a.scan_ids == b.scan_ids and a.classes == b.classes and np.array_equal(a.labels, b.labels)
    if not same or a.patients != b.patients:
        raise CovidnetError(
            "a paired comparison needs two models' predictions of the same scans, in the same order, with the same "
            f"labels and classes; found {len(a)} and {len(b)} scans that differ: evaluate both on the same dataset"
        )
