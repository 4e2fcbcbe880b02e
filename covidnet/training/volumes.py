"""Scans in memory on the training device, and the batches drawn from them without any state to save."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from covidnet.data.packed import Packed


@dataclass(frozen=True, slots=True)
class Volumes:
    """Scans and class indices on one device.

    Args:
        scans: ``uint8 (N, D, H, W)``.
        labels: ``int64 (N,)``.
    """

    scans: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, step: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
        """The batch of a step: a function of (seed, step) alone, so that a resumed run sees what it would have seen.

        Every scan appears once per epoch; an epoch's incomplete last batch is left out.
        """
        size = min(size, len(self))
        per_epoch = len(self) // size
        order = torch.randperm(len(self), generator=generator(seed, step // per_epoch))
        start = step % per_epoch * size
        chosen = order[start : start + size].to(self.labels.device)
        return self.scans[chosen], self.labels[chosen]


def select(
    packed: Packed, indices: np.ndarray, classes: Sequence[str], size: tuple[int, int, int], device: torch.device
) -> Volumes:
    """Put chosen scans on the device, resized to ``size`` where they are stored at another."""
    scans = torch.from_numpy(np.ascontiguousarray(packed.scans[indices])).to(device)
    if tuple(scans.shape[1:]) != tuple(size):
        parts = [_resize(part, size) for part in scans.split(64)]
        scans = torch.cat(parts)
    return Volumes(scans, torch.from_numpy(packed.labels(classes)[indices]).to(device))


def _resize(scans: Tensor, size: tuple[int, int, int]) -> Tensor:
    resized = torch.nn.functional.interpolate(scans[:, None].float(), size, mode="area")
    return resized[:, 0].round().to(torch.uint8)


def generator(seed: int, *key: int) -> torch.Generator:
    """A CPU generator that is a function of its arguments alone."""
    state = np.random.SeedSequence([seed, *key]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))
