"""A search space of four blocks, searched in seconds, and scans that it learns from."""

import numpy as np
import torch

from covidnet.config import Budget
from covidnet.models import cost
from covidnet.models.covidnet3d import Space
from covidnet.search.budget import Costing
from covidnet.training.volumes import Volumes

SPACE = Space("tiny", widths=(8, 12), strides=(2, 2), blocks=(2, 2), stem=8, last=16)
SIZE = (8, 16, 16)
COSTS = cost.table(SPACE, SIZE, 1, 3)


def costing(size_mib: float | None = None, **limits: float) -> Costing:
    return Costing(COSTS, Budget(size_mib=size_mib, **limits))


def volumes(count: int = 48, seed: int = 0) -> Volumes:
    """Three classes that differ by where a bright cube lies: learnable in a few steps."""
    rng = np.random.default_rng(seed)
    scans = rng.integers(0, 90, (count, *SIZE), dtype=np.uint8)
    labels = np.arange(count) % 3
    for scan, label in zip(scans, labels, strict=True):
        scan[2:6, 4:12, 5 * label : 5 * label + 5] += 120
    return Volumes(torch.from_numpy(scans), torch.from_numpy(labels))
