"""From architecture parameters to one architecture: argmax within the budget, its neighbours, and what they beat."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from covidnet.models.blocks import Classifier
from covidnet.models.covidnet3d import Genotype
from covidnet.models.supernet import Supernet
from covidnet.search.budget import BlockChoice, Costing
from covidnet.training.loop import as_input, logits, place
from covidnet.training.volumes import Volumes

DRAWS_PER_PATH = 100


@dataclass(frozen=True, slots=True)
class Judgement:
    """How an architecture does inside the supernet: with shared weights and its own normalisation statistics."""

    loss: float
    accuracy: float


def within_budget(alpha: Tensor, costing: Costing) -> BlockChoice:
    """The argmax architecture; where it is over budget, the least improbable single-block changes that mend it."""
    scores = costing.within(alpha)
    log_p = torch.log_softmax(scores.double(), dim=1)
    path: BlockChoice = tuple(scores.argmax(dim=1).tolist())
    while not costing.fits(path):
        cheaper = [p for p in costing.neighbours(path) if costing.excess(p) < costing.excess(path)]
        path = max(cheaper, key=lambda p: _gain(log_p, p, path) / (costing.excess(path) - costing.excess(p)))
    return path


def candidates(alpha: Tensor, costing: Costing, count: int, generator: torch.Generator) -> list[BlockChoice]:
    """Different architectures to judge inside the supernet, all within budget, at most ``count`` in all.

    The argmax; its most probable single-block neighbours; and, half of them, draws from the distribution that the search
    ended with, which are likely but further away. Which one is the result is for `judge` to say, never for the draw.
    """
    log_p = torch.log_softmax(costing.within(alpha).double(), dim=1)
    best = within_budget(alpha, costing)
    near = [path for path in costing.neighbours(best) if costing.fits(path)]
    near.sort(key=lambda path: -_gain(log_p, path, best))
    near = near[: count - 1 - count // 2]
    return [best, *near, *draw(log_p.exp(), costing, count // 2, generator, known=[best, *near])]


def random_paths(costing: Costing, count: int, generator: torch.Generator) -> list[BlockChoice]:
    """Architectures drawn at random under the same budget: what a search has to beat.

    Drawn from the distribution that the search starts from (uniform, as far as the budget allows); those over budget are
    drawn again.
    """
    uniform = costing.within(torch.zeros(costing.blocks, costing.operations))
    return draw(torch.softmax(uniform, dim=1), costing, count, generator)


def draw(
    probabilities: Tensor,
    costing: Costing,
    count: int,
    generator: torch.Generator,
    known: Sequence[BlockChoice] = (),
) -> list[BlockChoice]:
    """Different paths from ``(blocks, operations)`` probabilities, within budget and none of those that are known.

    Returns:
        ``count`` of them; fewer where so many are hardly to be found, as under a very tight budget.
    """
    paths: list[BlockChoice] = []
    draws = 0
    while len(paths) < count and (draws < DRAWS_PER_PATH * count or not (paths or known)):
        draws += 1
        path = tuple(torch.multinomial(probabilities, 1, generator=generator).squeeze(1).tolist())
        if costing.fits(path) and path not in known and path not in paths:
            paths.append(path)
    return paths


def judge(supernet: Supernet, genotype: Genotype, train: Volumes, held_out: Volumes, batches: int = 6) -> Judgement:
    """Loss and accuracy of an architecture with the supernet's weights.

    Args:
        train: scans for the normalisation statistics.
        held_out: scans that the supernet's weights haven't seen.
        batches: of 32 scans, for the statistics.
    """
    network = place(supernet.extract(genotype), train.labels.device)
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
            network(as_input(network, scans))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def _gain(log_p: Tensor, path: BlockChoice, base: BlockChoice) -> float:
    """Log-probability of a path less that of another."""
    return float(sum(log_p[i, p] - log_p[i, b] for i, (p, b) in enumerate(zip(path, base, strict=True)) if p != b))
