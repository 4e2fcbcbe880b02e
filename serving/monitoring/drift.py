"""Has the input or the model changed? The last 200 scans against the bundle's reference profile.

Each value becomes its smoothed conformal rank in the reference: uniform on 0..1 for scans like the training data, tied
or not (Vovk et al., Algorithmic Learning in a Random World, 2005, §2.5). Uniformity of the window's ranks is tested
with Kolmogorov's statistic, the predicted classes' shares with Cohen's h (variance-stabilised, so rare classes don't
cry wolf). As ranks don't depend on the feature, one limit serves all of them; both limits are set by simulation
(`python -m benchmarks.monitoring`): less than one alarm in 10,000 scans that are like the training data.
"""

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Mapping

import numpy as np

from covidnet.export.reference import Reference

WINDOW = 200  # scans: what one has to see within, so what is remembered
LEAST = 50  # scans before anything is said
EVERY = 10  # scans between two looks
RANK_LIMIT = 2.4  # of Kolmogorov's statistic over its scale
SHARE_LIMIT = 3.8  # of Cohen's h over its standard error
TENTHS = 10
PREVALENCE = "prevalence"


class Drift:
    """A sliding window of ranks, of fixed size whatever the traffic.

    Args:
        reference: of the bundle that is served.
        seed: of the draws between tied ranks.
    """

    def __init__(self, reference: Reference, seed: int = 0) -> None:
        self.reference = reference
        self._values = {name: feature.values.tolist() for name, feature in reference.features.items()}
        self._draw = np.random.default_rng(seed).random
        self._ranks = {name: deque[float](maxlen=WINDOW) for name in reference.features}
        self._labels = deque[str](maxlen=WINDOW)
        self._since_look = 0
        self.ratios: dict[str, float] = {}

    @property
    def scans(self) -> int:
        """In the window."""
        return len(self._labels)

    def add(self, features: Mapping[str, float], label: str) -> dict[str, int]:
        """Take one scan; every `EVERY` of them `ratios` are made new: statistic over limit, above 1 is drift.

        Args:
            features: by the reference's names; others are left alone, missing ones are no fault.
            label: predicted class.

        Returns:
            tenth of the reference, 0 to 9, that each feature's value falls in.
        """
        bins = {}
        for name, ranks in self._ranks.items():
            if name in features:
                rank = self._rank(name, features[name])
                ranks.append(rank)
                bins[name] = min(int(rank * TENTHS), TENTHS - 1)
        self._labels.append(label)
        self._since_look += 1
        if self._since_look >= EVERY:
            self._since_look = 0
            self.ratios = self._look()
        return bins

    def _rank(self, name: str, value: float) -> float:
        values = self._values[name]  # a list: NumPy takes ten times as long for a single value
        below, not_above = bisect_left(values, value), bisect_right(values, value)
        return (below + self._draw() * (not_above - below + 1)) / (len(values) + 1)

    def _look(self) -> dict[str, float]:
        ratios = {}
        for name, ranks in self._ranks.items():
            if len(ranks) >= LEAST:
                scale = math.sqrt(1 / len(ranks) + 1 / self.reference.features[name].scans)
                ratios[name] = _kolmogorov(np.sort(ranks)) / scale / RANK_LIMIT
        if len(self._labels) >= LEAST:
            ratios[PREVALENCE] = self._shares() / SHARE_LIMIT
        return ratios

    def _shares(self) -> float:
        """Largest shift of a class's share, in standard errors."""
        expected, seen = self.reference.predictions, len(self._labels)
        total = sum(expected.values())
        scale = math.sqrt(1 / seen + 1 / total)
        return max(
            abs(_angle(self._labels.count(label) / seen) - _angle(count / total)) / scale
            for label, count in expected.items()
        )


def _kolmogorov(ascending: np.ndarray) -> float:
    """Largest distance of the empirical distribution of ``(n,)`` ranks to the uniform one."""
    steps = np.arange(len(ascending) + 1) / len(ascending)
    return float(max((steps[1:] - ascending).max(), (ascending - steps[:-1]).max()))


def _angle(share: float) -> float:
    return 2 * math.asin(math.sqrt(share))
