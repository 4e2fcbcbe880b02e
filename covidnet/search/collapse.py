"""Watch a search for the ways in which it is known to fail, and remember where it was last healthy.

A search by shared weights can end in identity everywhere (Zela et al., R-DARTS, ICLR 2020; Liang et al., DARTS+, 2019) or
in the largest operation everywhere, and its supernet can forget what it knew. Each shows in figures that every step has
anyway. The repair is R-DARTS's early stopping: the architecture goes back to where it was last healthy and stays there,
while the weights go on training under that distribution.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from covidnet.models.cost import CostTable

MOSTLY = 0.75  # mean probability that one kind of operation may reach; docs/method.md says why
FORGOTTEN = 0.5  # share of the accuracy above chance that may be lost
WINDOW = 32  # architecture updates over which the accuracy is averaged
HEALTHY = 0.5  # how far on the way to a collapse is healthy still


@dataclass(frozen=True, slots=True)
class Health:
    """One look at a search.

    Args:
        identity: probability of identity, mean over blocks.
        largest: probability of a block's largest operation, mean over blocks.
        accuracy: of the last `WINDOW` sampled paths, each on its batch of the architecture half; None before.
    """

    identity: float
    largest: float
    accuracy: float | None


class Watch:
    """How far a search is from collapse, and the last alpha that was healthy.

    Args:
        costs: of the space; they say which operations are identity (no parameters) and which is a block's largest.
        start: ``(blocks, operations)`` probabilities that the search starts from. A tight budget puts many of them on
            identity before anything is learned, so shares are judged by how far they have come from these.
        chance: accuracy of always saying the most frequent class.
        batch: scans of one update.
    """

    def __init__(self, costs: CostTable, start: Tensor, chance: float, batch: int) -> None:
        self._identity = (costs.parameters == 0).double()
        largest = costs.parameters.argmax(dim=1)
        self._largest = torch.nn.functional.one_hot(largest, costs.parameters.shape[1]).double()
        self._start = self._shares(start)
        self._chance = chance
        self._error = math.sqrt(0.25 / (WINDOW * batch))  # standard error of the averaged accuracy, at most
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._best = 0.0
        self.healthy: Tensor | None = None
        self.collapse: dict[str, Any] | None = None

    def look(self, probabilities: Tensor, accuracy: float) -> Health:
        """The figures after one architecture update.

        Args:
            probabilities: ``(blocks, operations)`` that paths are drawn from.
            accuracy: of the update's path on its batch.
        """
        self._recent.append(accuracy)
        mean = sum(self._recent) / WINDOW if len(self._recent) == WINDOW else None
        self._best = max(self._best, mean or 0.0)
        return Health(*self._shares(probabilities), mean)

    def judge(self, health: Health, alpha: Tensor, step: int) -> None:
        """Keep a healthy alpha ``(blocks, operations)`` in `healthy`, or note in `collapse` what went wrong."""
        reasons = {
            f"{health.identity:.0%} of the probability is on identity": _way(health.identity, self._start[0]),
            f"{health.largest:.0%} of the probability is on the largest operation": _way(
                health.largest, self._start[1]
            ),
        }
        learned, noise = self._best - self._chance, 5 * self._error
        if health.accuracy is not None and learned > noise:
            told = f"sampled paths fell from {self._best:.0%} accuracy to {health.accuracy:.0%}"
            reasons[told] = (self._best - health.accuracy) / max(FORGOTTEN * learned, noise)
        reason = max(reasons, key=reasons.__getitem__)
        if reasons[reason] > 1:
            self.collapse = {"step": step, "reason": reason}
        elif reasons[reason] <= HEALTHY or self.healthy is None:
            self.healthy = alpha.detach().clone()

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        recent = list(self._recent)
        return {"recent": recent, "best": self._best, "healthy": self.healthy, "collapse": self.collapse}

    def load_state(self, state: dict[str, Any]) -> None:
        self._recent.extend(state["recent"])
        self._best, self.healthy, self.collapse = state["best"], state["healthy"], state["collapse"]

    def _shares(self, probabilities: Tensor) -> tuple[float, float]:
        """Probability of identity and of the largest operation, means over blocks."""
        p = probabilities.detach().double().cpu()
        return float((p * self._identity).sum() / len(p)), float((p * self._largest).sum() / len(p))


def _way(share: float, start: float) -> float:
    """How far a share has come from its start, 0, to what counts as collapse, 1: `MOSTLY`, or half of what was left."""
    limit = max(MOSTLY, (1 + start) / 2)
    return (share - start) / (limit - start)
