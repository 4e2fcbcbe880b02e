"""Batched augmentation on the training device: one call per batch, no worker, reproducible from (seed, step)."""

import math

import torch
from torch import Tensor

from covidnet.config import Augment


def augment(batch: Tensor, settings: Augment, generator: torch.Generator) -> Tensor:
    """Mirror, turn, scale and shift in the axial plane, change grey levels, add noise.

    Depth is left alone: slices of a packed scan are millimetres apart, and an in-plane transform that treats them as
    channels costs a fraction of a volumetric one.

    Args:
        batch: ``uint8 (B, D, H, W)``.
        settings: the ranges; a scan's values are drawn independently of the others'.
        generator: on the CPU; the same generator gives the same batch on every device.

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
    volume = batch.float() / 127.5 - 1  # (B, D, H, W), slices as channels
    grid = torch.nn.functional.affine_grid(affine, list(volume.shape), align_corners=False)  # (B, H, W, 2)
    volume = torch.nn.functional.grid_sample(volume, grid, padding_mode="border", align_corners=False)

    gain, offset = 1 + gain * settings.intensity, offset * settings.intensity
    volume = volume * gain.view(-1, 1, 1, 1) + offset.view(-1, 1, 1, 1)
    if settings.noise:
        noise = torch.randn(volume.shape, generator=generator)
        volume = volume + noise.to(volume.device) * (2 * settings.noise)  # the range is 2 wide
    return volume.unsqueeze(1)
