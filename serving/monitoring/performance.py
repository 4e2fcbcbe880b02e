"""How good the model is on the scans of which the truth was told: sensitivity, specificity, calibration, with intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from serving.monitoring.store import Outcome

Z = 1.959964  # of a two-sided 95 % interval


class Estimate(NamedTuple):
    """A figure with its 95 % interval; NaN and -inf to inf where there is nothing to tell it from."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Performance:
    """Live figures.

    Args:
        scans: that they are from.
        sensitivity: by class, one against the rest.
        specificity: by class.
        calibration_gap: mean confidence minus accuracy: above 0 the model is too sure of itself.
    """

    scans: int
    sensitivity: dict[str, Estimate]
    specificity: dict[str, Estimate]
    calibration_gap: Estimate


def measure(outcomes: Sequence[Outcome], classes: Sequence[str]) -> Performance:
    """Figures of the outcomes; a tie of probabilities counts for the first of its classes, as the model's answer does."""
    truth = [outcome.label for outcome in outcomes]
    predicted = [max(outcome.probabilities, key=outcome.probabilities.__getitem__) for outcome in outcomes]
    pairs = list(zip(truth, predicted, strict=True))
    sensitivity, specificity = {}, {}
    for name in classes:
        positives = [found == name for true, found in pairs if true == name]
        negatives = [found != name for true, found in pairs if true != name]
        sensitivity[name] = share(sum(positives), len(positives))
        specificity[name] = share(sum(negatives), len(negatives))
    accuracy = share(sum(true == found for true, found in pairs), len(pairs))
    confidence = sum(max(outcome.probabilities.values()) for outcome in outcomes) / max(1, len(outcomes))
    gap = Estimate(confidence - accuracy.value, confidence - accuracy.high, confidence - accuracy.low)
    return Performance(len(outcomes), sensitivity, specificity, gap)


def share(hits: int, trials: int) -> Estimate:
    """A share with Wilson's score interval (J. Am. Stat. Assoc. 22, 1927), which stays within 0..1."""
    if not trials:
        return Estimate(math.nan, -math.inf, math.inf)
    p, square = hits / trials, Z * Z
    centre = (p + square / (2 * trials)) / (1 + square / trials)
    half = Z / (1 + square / trials) * math.sqrt(p * (1 - p) / trials + square / (4 * trials * trials))
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half))
