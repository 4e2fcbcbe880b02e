"""Resource limits of a search: of the distribution that it samples from, and of the one architecture it ends with.

A penalty on expected cost would have to be weighed against the loss, and Adam's scaling would push a block of a few
hundred weights as hard as one of half a million. Instead the limit holds exactly, at every step: paths are drawn from the
distribution closest to softmax(alpha) whose expected cost is within budget. That is softmax(alpha - lambda * cost), with
the one lambda >= 0 at which the expectation meets the budget (the maximum-entropy solution; lambda is the multiplier of
the resource term).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from torch import Tensor, nn

from covidnet.config import Budget
from covidnet.errors import UsageError
from covidnet.models.cost import CostTable
from covidnet.search.latency import LatencyTable

BlockChoice = tuple[int, ...]
FloatArray = NDArray[np.float64]


class Costing:
    """Costs of distributions and of single paths, held against a budget.

    Args:
        costs: of the space.
        budget: limits.
        latency: of the same space; needed where the budget limits it.

    Raises:
        UsageError: no architecture of the space is within the budget; says what the space's range is.
    """

    def __init__(self, costs: CostTable, budget: Budget, latency: LatencyTable | None = None) -> None:
        self.costs, self.budget = costs, budget
        self.blocks, self.operations = costs.parameters.shape
        # every cost is that of the fixed parts and of each candidate of each block, (blocks, operations)
        self._costs = {
            "size_mib": (costs.fixed.size_mib, costs.parameters * 4 / 2**20),
            "macs": (float(costs.fixed.macs), costs.macs),
            "receptive_field": costs.receptive_field,
        }
        if latency is not None:
            self._costs["latency_ms"] = (latency.fixed_ms, latency.table)
        limits = budget.model_dump()
        self._limits = {name: limit for name, limit in limits.items() if limit is not None}
        # cost of each candidate as a share of what the budget leaves after the fixed parts, (blocks, operations); in NumPy,
        # as a multiplier is sought at every step, and on tables this small PyTorch takes ten times as long
        self._shares = {name: self._share(name, limit) for name, limit in self._limits.items()}
        for name, limit in self._limits.items():
            least, most = self.range(name)
            if least > limit:
                raise UsageError(
                    f"search.budget.{name} is {limit:g}, and no architecture of this space is within it: "
                    f"the space goes from {least:.4g} to {most:.4g}"
                )

    def range(self, name: str) -> tuple[float, float]:
        """Least and most of a figure of the budget, such as ``size_mib``, that an architecture of the space has."""
        fixed, table = self._costs[name]
        return fixed + float(table.amin(dim=1).sum()), fixed + float(table.amax(dim=1).sum())

    def ineffective(self) -> list[str]:
        """What to tell the user of limits that no architecture of the space exceeds."""
        ranges = {name: self.range(name) for name in self._limits}
        return [
            f"search.budget.{name} of {self._limits[name]:g} limits nothing: this space goes from {least:.4g} to {most:.4g}"
            for name, (least, most) in ranges.items()
            if most <= self._limits[name]
        ]

    def size_mib(self, path: BlockChoice) -> float:
        return float(self.costs.size_mib(self._one_hot(path)))

    def macs(self, path: BlockChoice) -> float:
        return float(self.costs.expected_macs(self._one_hot(path)))

    def latency_ms(self, path: BlockChoice) -> float:
        """Expected milliseconds, the sum of the path's parts; only with a table of latencies."""
        return self.expected("latency_ms", self._one_hot(path))

    def receptive_field(self, path: BlockChoice) -> float:
        """Voxels across that a cell of the last map sees."""
        return self.expected("receptive_field", self._one_hot(path))

    def expected(self, name: str, probabilities: Tensor) -> float:
        """Expected figure of the budget, such as ``size_mib``, under ``(blocks, operations)`` probabilities."""
        fixed, table = self._costs[name]
        return fixed + float((probabilities.double().cpu() * table).sum())

    def excess(self, path: BlockChoice) -> float:
        """How far over budget, as the largest ratio of cost to limit minus one; 0 or less when within."""
        one_hot = self._one_hot(path)
        return max([self.expected(name, one_hot) / limit - 1 for name, limit in self._limits.items()], default=-1.0)

    def fits(self, path: BlockChoice) -> bool:
        return self.excess(path) <= 0

    def within(self, alpha: Tensor) -> Tensor:
        """Scores whose softmax keeps the expected cost within budget.

        Args:
            alpha: ``(blocks, operations)``.

        Returns:
            ``alpha - lambda * cost``, ``(blocks, operations)``; alpha itself where it is within budget already.
        """
        fixed = alpha.detach().double().cpu().numpy()
        shift = np.zeros_like(fixed)
        multipliers = dict.fromkeys(self._shares, 0.0)
        for _ in range(3 if len(self._shares) > 1 else 1):  # each limit in turn, given the others
            for name, share in self._shares.items():
                others = shift + multipliers[name] * share
                multipliers[name] = _multiplier(fixed + others, share)
                shift = others - multipliers[name] * share
        return alpha + torch.from_numpy(shift).to(alpha)

    def neighbours(self, path: BlockChoice) -> list[BlockChoice]:
        """All paths that differ in one block."""
        return [
            (*path[:block], operation, *path[block + 1 :])
            for block in range(self.blocks)
            for operation in range(self.operations)
            if operation != path[block]
        ]

    def _share(self, name: str, limit: float) -> FloatArray:
        fixed, table = self._costs[name]
        share: FloatArray = table.double().numpy() / max(limit - fixed, 1e-9)
        return share

    def _one_hot(self, path: BlockChoice) -> Tensor:
        return nn.functional.one_hot(torch.tensor(path), self.operations).double()


def _multiplier(scores: FloatArray, share: FloatArray) -> float:
    """The lambda >= 0 at which the expected share of softmax(scores - lambda * share) is 1; 0 where it is less anyway."""

    def excess(multiplier: float) -> float:
        shifted = scores - multiplier * share
        weights = np.exp(shifted - shifted.max(axis=1, keepdims=True))
        return float(((weights * share).sum(axis=1) / weights.sum(axis=1)).sum()) - 1

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0 and high < 1e9:
        high *= 4
    return high if excess(high) > 0 else float(brentq(excess, 0.0, high))
