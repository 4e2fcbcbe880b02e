"""Whether a probability means what it says.

Needs numpy and scipy only: prediction and serving use it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_softmax

from covidnet.errors import CovidnetError
from covidnet.evaluation.metrics import FloatArray

TEMPERATURE_RANGE = (0.05, 20.0)  # logits that separate the classes wholly would be sharpened without end


@dataclass(frozen=True, slots=True)
class Reliability:
    """Equal-mass bins of the winning class's probability, low to high.

    Args:
        confidence: mean probability of the predicted class per bin, ``(bins,)``.
        accuracy: share of right predictions per bin.
        count: scans per bin.
    """

    confidence: FloatArray
    accuracy: FloatArray
    count: FloatArray


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature that minimises the negative log-likelihood of softmax(logits / T) (Guo et al., ICML 2017, §4.2).

    Args:
        logits: ``(N, K)`` of validation scans, never of test scans.
        labels: ``int (N,)``.

    Returns:
        T in 0.05..20; above 1 softens an overconfident model.

    Raises:
        CovidnetError: no scans, or logits that are not finite.
    """
    from scipy.optimize import minimize_scalar  # a quarter of a second that prediction needn't wait for

    z, y = _finite(logits), np.asarray(labels, dtype=np.int64)

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(z / np.exp(log_temperature), axis=1)
        return float(-scaled[np.arange(len(y)), y].mean())

    low, high = np.log(TEMPERATURE_RANGE)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-8})
    return float(np.exp(found.x))


def reliability(labels: ArrayLike, probabilities: ArrayLike, bins: int = 15) -> Reliability:
    """Confidence against accuracy in bins of equally many scans (fewer bins where there are fewer scans than bins)."""
    y, p = np.asarray(labels, dtype=np.int64), np.asarray(probabilities, dtype=np.float64)
    confidence, right = p.max(axis=1), (p.argmax(axis=1) == y).astype(np.float64)
    groups = np.array_split(np.argsort(confidence, kind="stable"), min(bins, len(y)))
    return Reliability(
        np.array([confidence[group].mean() for group in groups]),
        np.array([right[group].mean() for group in groups]),
        np.array([len(group) for group in groups], dtype=np.float64),
    )


def expected_calibration_error(labels: ArrayLike, probabilities: ArrayLike, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-mass bins (Nguyen and O'Connor, EMNLP 2015), 0..1.

    Equal mass, since equal width leaves most bins of a confident model nearly empty.
    """
    points = reliability(labels, probabilities, bins)
    return float(np.average(np.abs(points.confidence - points.accuracy), weights=points.count))


def brier(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Squared distance of the probabilities to the one-hot truth, mean over scans: 0 (best) to 2 (Brier, 1950)."""
    p = np.asarray(probabilities, dtype=np.float64)
    truth = np.eye(p.shape[1])[np.asarray(labels, dtype=np.int64)]
    return float(((p - truth) ** 2).sum(axis=1).mean())


def energy(logits: ArrayLike, temperature: float = 1.0) -> FloatArray:
    """Free energy ``-T logsumexp(logits / T)`` per scan, ``(N,)``: for monitoring.

    Source: Liu et al., NeurIPS 2020, eq. 3.
    """
    z = np.asarray(logits, dtype=np.float64)
    scores: FloatArray = -temperature * np.logaddexp.reduce(z / temperature, axis=1)
    return scores


def _finite(logits: ArrayLike) -> FloatArray:
    z = np.asarray(logits, dtype=np.float64)
    if z.ndim != 2 or not len(z) or not np.isfinite(z).all():
        raise CovidnetError(
            f"calibration: expected finite logits (N, K) of at least one validation scan; found shape {z.shape}, "
            f"{int((~np.isfinite(z)).sum())} values NaN or infinite"
        )
    return z
