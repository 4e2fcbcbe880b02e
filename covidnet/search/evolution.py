"""Evolutionary search over the same supernet, after EMARS (He et al., MICCAI 2022).

    warm-up      as in `covidnet.search.dnas`
    generations  weight updates of paths out of a population, then as many children, of which the better half of all survives
    result       covidnet.search.result: the last population, judged with re-estimated normalisation

Paths have three objectives: accuracy with shared weights, size, and potential, here what a path's accuracy has gained since
it was last judged, so that what learns slowly isn't lost at once. Parents are the better of pairs (NSGA-II: Deb et al.,
2002); children take each block from either of them and change one in ten.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from covidnet.config import Augment, Search
from covidnet.models.supernet import Supernet
from covidnet.search import dnas, result
from covidnet.search.budget import BlockChoice, Costing
from covidnet.training import distributed
from covidnet.training.volumes import Volumes, generator

POPULATION, GENERATIONS, MUTATION = 12, 8, 0.1
JUDGED_SCANS, JUDGED_BATCHES = 256, 3  # for the accuracy of a path, and for its normalisation before

Judge = Callable[[BlockChoice, Volumes, int], result.Judgement]


@dataclass(slots=True)
class Individual:
    """A path and what is known of it."""

    path: BlockChoice
    size_mib: float
    accuracy: float | None = None  # before it is judged
    potential: float | None = None  # of newcomers unknown

    def objectives(self, unknown: float) -> tuple[float, float, float]:
        """What is to be large; a potential that isn't known counts as ``unknown``."""
        return self.accuracy or 0.0, unknown if self.potential is None else self.potential, -self.size_mib


class Evolution(dnas.Run):
    """A search whose architectures are a population; `dnas.search` carries it out.

    Args:
        judge_half: scans of the other half of the training patients, which paths are judged on.
        judge: a path with shared weights on scans, its normalisation from so many batches of the weights' half.

    The others are those of `dnas.Run`.
    """

    phase = "evolution"

    def __init__(
        self,
        supernet: Supernet,
        costing: Costing,
        weight_half: Volumes,
        judge_half: Volumes,
        settings: Search,
        augmentation: Augment,
        seed: int,
        judge: Judge,
    ) -> None:
        super().__init__(supernet, costing, weight_half, judge_half, settings, augmentation, seed)
        del self.batches["search.alpha_batch"]  # no alpha
        self.judge, self.sample = judge, Volumes(*judge_half.batch(0, JUDGED_SCANS, seed))
        self.population: list[Individual] = []
        self.rng = np.random.default_rng(seed)

    def candidates(self) -> list[BlockChoice]:
        """The last population."""
        return [individual.path for individual in self.population]

    def state(self) -> dict[str, Any]:
        return super().state() | {
            "population": [asdict(individual) for individual in self.population],
            "rng": self.rng.bit_generator.state,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.population = [Individual(**individual) for individual in state["population"]]
        self.rng.bit_generator.state = state["rng"]
        self._show()

    def _drawn(self, temperature: float) -> BlockChoice:
        if self.step < self.warmup_steps:
            return super()._drawn(temperature)
        if not self.population:
            paths = result.random_paths(self.costing, POPULATION, generator(self.seed, 20))
            self.population = [Individual(path, self.costing.size_mib(path)) for path in paths]
        return self.population[int(self.rng.integers(len(self.population)))].path

    def _move(self, temperature: float) -> dict[str, Any]:
        """Breed after the last step of a generation."""
        begun, steps = self.step - self.warmup_steps, self.settings.steps
        if (begun + 1) * GENERATIONS // steps > begun * GENERATIONS // steps:
            self._breed()
        return {}

    def _breed(self) -> None:
        """Children, everyone judged anew, the first by rank kept."""
        known = {individual.path for individual in self.population}
        bred = children(self.population, self.costing, POPULATION, known, self.rng)
        self.population += [Individual(path, self.costing.size_mib(path)) for path in bred]
        found = [self.judge(one.path, self.sample, JUDGED_BATCHES).accuracy for one in self.population]
        for individual, accuracy in zip(self.population, distributed.from_first(found), strict=True):
            individual.potential = None if individual.accuracy is None else accuracy - individual.accuracy
            individual.accuracy = accuracy
        self.population = survivors(self.population, POPULATION)
        self._show()

    def _show(self) -> None:
        """Let the history, the progress and the picture tell of the population: the share of each operation."""
        if self.population:
            paths = torch.tensor(self.candidates())  # (P, blocks)
            shares = nn.functional.one_hot(paths, self.scores.shape[1]).double().mean(dim=0)
            self.scores = torch.log(shares + 1e-9).to(self.scores)


def children(
    population: Sequence[Individual], costing: Costing, count: int, known: set[BlockChoice], rng: np.random.Generator
) -> list[BlockChoice]:
    """New paths within the budget, each block of either parent, some of them changed.

    Args:
        known: paths that are no children; those that are made are added.

    Returns:
        ``count`` of them; fewer where so many are hardly to be found.
    """
    ranks = rank(population)
    made: list[BlockChoice] = []
    for _ in range(result.DRAWS_PER_PATH * count):
        pairs = rng.integers(len(population), size=(2, 2))
        parents = [population[min(pair, key=lambda i: ranks[i])].path for pair in pairs]
        pick, changed = rng.integers(2, size=costing.blocks), rng.random(costing.blocks) < MUTATION
        drawn = rng.integers(costing.operations, size=costing.blocks)
        path = tuple(int(drawn[i]) if changed[i] else parents[pick[i]][i] for i in range(costing.blocks))
        if path not in known and costing.fits(path):
            known.add(path)
            made.append(path)
        if len(made) == count:
            break
    return made


def survivors(population: Sequence[Individual], count: int) -> list[Individual]:
    """The first by rank."""
    ranks = rank(population)
    return [population[i] for i in sorted(range(len(population)), key=lambda i: ranks[i])[:count]]


def rank(population: Sequence[Individual]) -> list[tuple[int, float]]:
    """Number of the non-dominated front and, within it, how crowded it is there (NSGA-II); smaller is better."""
    gains = [i.potential for i in population if i.potential is not None]
    unknown = float(np.median(gains)) if gains else 0.0
    points = np.array([individual.objectives(unknown) for individual in population])
    ranks: list[tuple[int, float]] = [(0, 0.0)] * len(points)
    left, front = set(range(len(points))), 0
    while left:
        first = [i for i in left if not any(dominates(points[j], points[i]) for j in left)]
        for i, distance in zip(first, crowding(points[first]), strict=True):
            ranks[i] = (front, -distance)
        left -= set(first)
        front += 1
    return ranks


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    """No worse in anything and better in something."""
    return bool((a >= b).all() and (a > b).any())


def crowding(points: np.ndarray) -> list[float]:
    """Sum over the objectives of the distance between a point's two neighbours, as a share of the range; ends: infinite."""
    distance = np.zeros(len(points))
    for values in points.T:
        order = np.argsort(values)
        width = float(np.ptp(values)) or 1.0
        distance[order[[0, -1]]] = np.inf
        distance[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / width
    return [float(value) for value in distance]
