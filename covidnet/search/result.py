"""From architecture parameters to one architecture: argmax within the budget, its neighbours, and what they beat."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from covidnet.config import Budget
from covidnet.errors import UsageError
from covidnet.models.blocks import Classifier
from covidnet.models.cost import CostTable
from covidnet.models.covidnet3d import Genotype
from covidnet.models.supernet import Supernet
from covidnet.training.loop import layout, logits, with_channels
from covidnet.training.volumes import Volumes

Path = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Judgement:
    """How an architecture does inside the supernet: with shared weights and its own normalisation statistics."""

    loss: float
    accuracy: float


class Costing:
    """Costs of discrete paths, and whether they keep to the budget.

    Raises:
        UsageError: no architecture of the space is within the budget; says the least that is possible.
    """

    def __init__(self, costs: CostTable, budget: Budget) -> None:
        self.costs, self.budget = costs, budget
        self.blocks, self.operations = costs.parameters.shape
        cheapest = tuple(costs.parameters.argmin(dim=1).tolist())
        if not self.fits(cheapest):
            raise UsageError(
                f"search.budget: no architecture fits; the smallest of this space has {self.size_mib(cheapest):.2f} MiB "
                f"and {self.macs(cheapest):.3g} multiply-accumulates"
            )

    def size_mib(self, path: Path) -> float:
        return float(self.costs.size_mib(self._one_hot(path)))

    def macs(self, path: Path) -> float:
        return float(self.costs.expected_macs(self._one_hot(path)))

    def excess(self, path: Path) -> float:
        """How far over budget, as the largest ratio minus one; 0 or less when within."""
        over = [-1.0]
        if self.budget.size_mib is not None:
            over.append(self.size_mib(path) / self.budget.size_mib - 1)
        if self.budget.macs is not None:
            over.append(self.macs(path) / self.budget.macs - 1)
        return max(over)

    def fits(self, path: Path) -> bool:
        return self.excess(path) <= 0

    def neighbours(self, path: Path) -> list[Path]:
        """All paths that differ in one block."""
        return [
            (*path[:block], operation, *path[block + 1 :])
            for block in range(self.blocks)
            for operation in range(self.operations)
            if operation != path[block]
        ]

    def _one_hot(self, path: Path) -> Tensor:
        return nn.functional.one_hot(torch.tensor(path), self.operations).double()


def within_budget(alpha: Tensor, costing: Costing) -> Path:
    """The argmax architecture; where it is over budget, the least improbable single-block changes that mend it."""
    log_p = torch.log_softmax(alpha.double(), dim=1)
    path: Path = tuple(alpha.argmax(dim=1).tolist())
    while not costing.fits(path):
        cheaper = [p for p in costing.neighbours(path) if costing.excess(p) < costing.excess(path)]
        path = max(cheaper, key=lambda p: _gain(log_p, p, path) / (costing.excess(path) - costing.excess(p)))
    return path


def candidates(alpha: Tensor, costing: Costing, count: int) -> list[Path]:
    """The argmax within budget and its most probable single-block neighbours within budget, ``count`` in all."""
    log_p = torch.log_softmax(alpha.double(), dim=1)
    best = within_budget(alpha, costing)
    near = [path for path in costing.neighbours(best) if costing.fits(path)]
    near.sort(key=lambda path: -_gain(log_p, path, best))
    return [best, *near[: count - 1]]


def random_paths(costing: Costing, count: int, generator: torch.Generator) -> list[Path]:
    """Architectures drawn at random under the same budget: what a search has to beat.

    Each is a uniform draw; while it is over budget, a random block gets a random cheaper operation.
    """
    paths = []
    while len(paths) < count:
        path: Path = tuple(torch.randint(costing.operations, (costing.blocks,), generator=generator).tolist())
        while not costing.fits(path):
            cheaper = [p for p in costing.neighbours(path) if costing.excess(p) < costing.excess(path)]
            path = cheaper[int(torch.randint(len(cheaper), (1,), generator=generator))]
        paths.append(path)
    return paths


def genotype_of(
    path: Path, supernet: Supernet, variant: str, classes: Sequence[str], size: tuple[int, int, int]
) -> Genotype:
    """Name a path's operations."""
    space = supernet.space
    layers = space.layers([space.operations[i].name for i in path])
    channels = supernet.stem[0].in_channels
    return Genotype(variant, tuple(classes), channels, size, tuple(tuple(layer) for layer in layers))


def judge(supernet: Supernet, genotype: Genotype, train: Volumes, held_out: Volumes, batches: int = 6) -> Judgement:
    """Loss and accuracy of an architecture with the supernet's weights.

    Args:
        train: scans for the normalisation statistics.
        held_out: scans that the supernet's weights haven't seen.
        batches: of 32 scans, for the statistics.
    """
    network = supernet.extract(genotype).to(train.labels.device, memory_format=torch.channels_last_3d)
    estimate_normalisation(network, train, batches)
    scores = torch.from_numpy(logits(network, held_out))
    labels = held_out.labels.cpu()
    loss = float(nn.functional.cross_entropy(scores, labels))
    return Judgement(loss, float((scores.argmax(dim=1) == labels).float().mean()))


def estimate_normalisation(network: Classifier, train: Volumes, batches: int) -> None:
    """Replace running statistics by plain averages over some training batches."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm3d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    network.train()
    with torch.inference_mode():
        for step in range(batches):
            scans, _ = train.batch(step, 32, 0)
            network(with_channels(network, layout(scans[:, None].float() / 127.5 - 1)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def _gain(log_p: Tensor, path: Path, base: Path) -> float:
    """Log-probability of a path less that of another."""
    return float(sum(log_p[i, p] - log_p[i, b] for i, (p, b) in enumerate(zip(path, base, strict=True)) if p != b))
