"""Architectures of a published space that nobody chose."""

from collections.abc import Sequence

import torch

from covidnet.models.covidnet3d import Genotype, space_of


def random_genotype(
    variant: str,
    seed: int,
    *,
    size: tuple[int, int, int] = (16, 64, 64),
    channels: int = 1,
    classes: Sequence[str] = ("NCP", "CP", "Normal"),
    strides: tuple[int, ...] | None = None,
) -> Genotype:
    """Every block's operation drawn uniformly, identity among them."""
    space = space_of(variant, strides)
    generator = torch.Generator().manual_seed(seed)
    path = torch.randint(len(space.operations), (sum(space.blocks),), generator=generator).tolist()
    return Genotype.of_path(path, space, variant, classes, channels, size)
