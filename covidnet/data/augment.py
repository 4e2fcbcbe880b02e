"""Batched augmentation on the training device: one call per batch, no worker, reproducible from (seed, step)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from covidnet.config import Augment


def augment(batch: Tensor, settings: Augment, generator: torch.Generator) -> Tensor:
    """Mirror, turn, scale and shift in the axial plane, change grey levels, add noise, blot a box out.

    Depth is left alone: slices of a packed scan are millimetres apart, and an in-plane transform that treats them as
    channels costs a fraction of a volumetric one.

    Args:
        batch: ``uint8 (B, D, H, W)``.
        settings: the ranges; a scan's values are drawn independently of the others'.
        generator: on the CPU; the same generator gives the same batch on every device, but for the noise, which a GPU draws
            itself.

    Returns:
        ``float32 (B, 1, D, H, W)`` in about -1..1.
    """
    count = len(batch)
    draw = torch.rand(count, 7, generator=generator).to(batch.device) * 2 - 1  # one row per scan, -1..1
    flip, turn, scale, shift_y, shift_x, gain, offset = draw.unbind(1)

    angle = turn * math.radians(settings.rotate_deg)
    zoom = 1 + scale * settings.scale
    mirror = torch.where(flip < 0, -1.0, 1.0) if settings.flip else torch.ones_like(flip)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    affine = torch.stack(
        [
            torch.stack([cos * mirror, -sin, 2 * shift_x * settings.shift], dim=1),
            torch.stack([sin * mirror, cos, 2 * shift_y * settings.shift], dim=1),
        ],
        dim=1,
    )  # (B, 2, 3)
    volume = batch.float().div_(127.5).sub_(1)  # (B, D, H, W), slices as channels
    grid = torch.nn.functional.affine_grid(affine, list(volume.shape), align_corners=False)  # (B, H, W, 2)
    volume = torch.nn.functional.grid_sample(volume, grid, padding_mode="border", align_corners=False)

    gain, offset = 1 + gain * settings.intensity, offset * settings.intensity
    volume.mul_(gain.view(-1, 1, 1, 1)).add_(offset.view(-1, 1, 1, 1))
    if settings.noise:
        volume += _noise(volume, generator).mul_(2 * settings.noise)  # the range is 2 wide
    if settings.cutout:
        volume.masked_fill_(boxes(volume.shape, settings.cutout, generator).to(volume.device), 0.0)
    return volume.unsqueeze(1)


def _noise(volume: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers; drawing them on the CPU would take longer than a GPU's training step."""
    if volume.is_cuda:
        seed = int(torch.randint(2**62, (), generator=generator))
        generator = torch.Generator(volume.device).manual_seed(seed)
    return torch.randn(volume.shape, generator=generator, device=generator.device)


def boxes(shape: torch.Size, side: float, generator: torch.Generator) -> Tensor:
    """A box per scan (cutout: DeVries and Taylor, 2017), its sides drawn up to a share of the volume's.

    Its middle lies anywhere in the volume, so that a part of it may lie outside.

    Args:
        shape: ``(B, D, H, W)``.

    Returns:
        ``bool (B, D, H, W)``, true inside.
    """

    def within(_: int, place: Tensor) -> Tensor:
        middle, half = torch.rand(2, shape[0], 1, generator=generator) * torch.tensor([1.0, side / 2]).view(2, 1, 1)
        near: Tensor = (place - middle).abs() <= half
        return near

    return _where(shape, within)


def _where(shape: torch.Size, within: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Box per scan, ``bool (B, D, H, W)``, from its extent along each axis.

    Args:
        within: given the axis, 1 to 3, and the places ``(length,)`` of the voxels' middles, 0..1: ``bool (B, length)``.
    """
    inside = torch.ones(shape, dtype=torch.bool)
    for axis, length in enumerate(shape[1:], start=1):
        along = within(axis, (torch.arange(length) + 0.5) / length)
        inside &= along.view(shape[0], *(length if i == axis else 1 for i in range(1, len(shape))))
    return inside


@dataclass(frozen=True, slots=True)
class Pasted:
    """Boxes that `cutmix` has put into the scans of a batch.

    Args:
        inside: ``bool (B, D, H, W)``: the voxels that are another scan's.
        labels: of that other scan, in the form of the batch's own.
    """

    inside: Tensor
    labels: Tensor


def mixup(
    volume: Tensor, labels: Tensor, classes: int, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mix every scan, and its label, with another of the batch (Zhang et al., ICLR 2018).

    Args:
        volume: ``float (B, 1, D, H, W)``.
        labels: ``int64 (B,)``.
        alpha: the shares are drawn from Beta(alpha, alpha); 0 leaves everything as it is.
        generator: on the CPU.

    Returns:
        the mixed volumes, and ``float32 (B, K)`` targets.
    """
    if not alpha:
        return volume, labels
    order = torch.randperm(len(volume), generator=generator).to(volume.device)
    seed = int(torch.randint(2**62, (), generator=generator))
    drawn = np.random.default_rng(seed).beta(alpha, alpha, len(volume))  # PyTorch's Beta takes no generator
    share = torch.from_numpy(drawn).to(volume)
    targets = torch.nn.functional.one_hot(labels, classes).float()
    along = share.view(-1, 1, 1, 1, 1)
    return torch.lerp(volume[order], volume, along), torch.lerp(targets[order], targets, share.view(-1, 1))


def cutmix(volume: Tensor, labels: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Pasted | None]:
    """Put a box of another scan of the batch at its place in a scan (CutMix: Yun et al., ICCV 2019).

    CutMix mixes the two labels by volume. Here each part keeps its own, for a loss that asks each for it
    (`covidnet.training.loop.loss_of`).

    Args:
        volume: ``float (B, 1, D, H, W)``.
        labels: ``int64 (B,)``, or targets ``float32 (B, K)``.
        share: of the scans that get a box; 0 leaves everything as it is. The box's volume is drawn from 0 to all.
        generator: on the CPU.

    Returns:
        the mixed volumes, and what was put there.
    """
    if not share:
        return volume, None
    draw = torch.rand(len(volume), 5, generator=generator)
    side = torch.where(draw[:, 0] < share, draw[:, 1] ** (1 / 3), 0.0)  # of the volume's, along each axis

    def within(axis: int, place: Tensor) -> Tensor:
        start = (draw[:, 1 + axis] * (1 - side))[:, None]
        return (place >= start) & (place < start + side[:, None])

    inside = _where(volume[:, 0].shape, within).to(volume.device)
    order = torch.randperm(len(volume), generator=generator).to(volume.device)
    return torch.where(inside[:, None], volume[order], volume), Pasted(inside, labels[order])
