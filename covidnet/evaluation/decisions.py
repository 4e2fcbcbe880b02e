"""What a model is worth when its answers are acted on: the decision curve, and what abstaining buys."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from covidnet.evaluation.metrics import FloatArray

THRESHOLDS = np.arange(1, 100) / 100


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """Share of wrong answers among the surest, for every share that is answered.

    Args:
        coverage: ``(N,)``, increasing to 1.
        risk: ``(N,)``.
        area: mean risk over all coverages (AURC; Geifman and El-Yaniv, NeurIPS 2017): lower is better.
    """

    coverage: FloatArray
    risk: FloatArray
    area: float

    def risk_at(self, coverage: float) -> float:
        """Risk when at least that share of the scans, the surest, is answered."""
        return float(self.risk[min(int(np.ceil(coverage * len(self.risk))) - 1, len(self.risk) - 1)])


def net_benefit(target: ArrayLike, score: ArrayLike, thresholds: ArrayLike = THRESHOLDS) -> FloatArray:
    """True positives less false positives, the latter at the odds of the threshold, per scan.

    Source: Vickers and Elkin, Medical Decision Making 26, 2006, eq. 1.

    Args:
        target: ``bool (N,)``.
        score: probability ``(N,)``; at or above a threshold the scan is acted on.
        thresholds: ``(T,)``, each above 0 and below 1.

    Returns:
        ``(T,)``; compare with 0 (act on nobody) and with that of a score of 1 for everybody.
    """
    y, p = np.asarray(target, dtype=bool), np.asarray(score, dtype=np.float64)
    t = np.asarray(thresholds, dtype=np.float64)
    acted = p >= t[:, None]  # (T, N)
    benefit: FloatArray = (acted & y).mean(axis=1) - (acted & ~y).mean(axis=1) * t / (1 - t)
    return benefit


def risk_coverage(labels: ArrayLike, probabilities: ArrayLike) -> RiskCoverage:
    """Answers in the order of their probability, the surest first.

    Args:
        labels: ``int (N,)``.
        probabilities: ``(N, K)``.
    """
    y, p = np.asarray(labels, dtype=np.int64), np.asarray(probabilities, dtype=np.float64)
    order = np.argsort(-p.max(axis=1), kind="stable")
    answered = np.arange(1, len(y) + 1)
    risk: FloatArray = np.cumsum((p.argmax(axis=1) != y)[order]) / answered
    return RiskCoverage(answered / len(y), risk, float(risk.mean()))
