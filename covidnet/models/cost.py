"""What an architecture costs: by formula for the search, by count for any model."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from covidnet.models.covidnet3d import Operation, Space

Size = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a network for one scan.

    Args:
        parameters: trainable weights.
        macs: multiply-accumulates of one forward pass, convolutions and linear layers, all three kernel dimensions.
    """

    parameters: int
    macs: int

    @property
    def size_mib(self) -> float:
        """MiB of float32 parameters, the unit of the paper's tables."""
        return self.parameters * 4 / 2**20


def count(model: nn.Module, size: Size, channels: int) -> Cost:
    """Count a model's cost by running it on the meta device (no arithmetic, no memory).

    Args:
        model: any network of float ``(B, channels, D, H, W)``.
        size: ``(D, H, W)`` of the input.
    """
    from copy import deepcopy

    shadow = deepcopy(model).to("meta").eval()
    macs = 0

    def add(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        if isinstance(module, nn.Conv3d):
            macs += output[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            macs += module.weight.numel()

    hooks = [m.register_forward_hook(add) for m in shadow.modules() if isinstance(m, nn.Conv3d | nn.Linear)]
    with torch.no_grad():
        shadow(torch.zeros(1, channels, *size, device="meta"))
    for hook in hooks:
        hook.remove()
    return Cost(sum(p.numel() for p in model.parameters()), macs)


def block_parameters(width: int, operation: Operation) -> int:
    """Parameters of one MBConv: two 1x1x1 convolutions, one depthwise k^3, three affine normalisations."""
    hidden = width * operation.expansion
    if not operation.kernel:
        return 0
    return 2 * width * hidden + operation.kernel**3 * hidden + 2 * (2 * hidden + width)


def block_macs(width: int, operation: Operation, grid: Size) -> int:
    """Multiply-accumulates of one MBConv on a ``(D, H, W)`` grid."""
    hidden = width * operation.expansion
    voxels = grid[0] * grid[1] * grid[2]
    return voxels * (2 * width * hidden + operation.kernel**3 * hidden)


def block_grids(space: Space, size: Size) -> list[Size]:
    """``(D, H, W)`` on which each searchable block works."""
    grids: list[Size] = []
    d, h, w = (-(-side // space.stem_stride) for side in size)
    for stride, blocks in zip(space.strides, space.blocks, strict=True):
        d, h, w = (-(-side // stride) for side in (d, h, w))
        grids += [(d, h, w)] * blocks
    return grids


def receptive_field(space: Space) -> tuple[float, Tensor]:
    """Voxels across that a cell of the last map sees, along H and W, as parts that add up.

    Returns:
        that of the stem, and what each candidate of each block adds, ``(blocks, operations)``.
    """
    jump, added = space.stem_stride, []  # jump: voxels from one cell to the next
    for stride, blocks in zip(space.strides, space.blocks, strict=True):
        jump *= stride
        added += [[jump * max(operation.kernel - 1, 0) for operation in space.operations]] * blocks
    return 3.0, torch.tensor(added, dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class CostTable:
    """Costs of a space as tensors, so that the expected cost of an architecture distribution is differentiable.

    Args:
        fixed: cost of the stem, calibration convolutions and head.
        parameters: ``(blocks, operations)``.
        macs: ``(blocks, operations)``.
        receptive_field: as `receptive_field` gives it.
    """

    fixed: Cost
    parameters: Tensor
    macs: Tensor
    receptive_field: tuple[float, Tensor]

    def size_mib(self, probabilities: Tensor) -> Tensor:
        """Expected MiB under ``(blocks, operations)`` probabilities; the exact size for one-hot rows."""
        return (self.fixed.parameters + (probabilities * self.parameters.to(probabilities)).sum()) * 4 / 2**20

    def expected_macs(self, probabilities: Tensor) -> Tensor:
        """Expected multiply-accumulates under ``(blocks, operations)`` probabilities."""
        return self.fixed.macs + (probabilities * self.macs.to(probabilities)).sum()


def table(space: Space, size: Size, channels: int, classes: int) -> CostTable:
    """Cost of every candidate of every block, by formula."""
    widths, grids = space.block_widths, block_grids(space, size)
    parameters = [[block_parameters(w, op) for op in space.operations] for w in widths]
    macs = [[block_macs(w, op, g) for op in space.operations] for w, g in zip(widths, grids, strict=True)]
    return CostTable(
        _fixed(space, size, channels, classes),
        torch.tensor(parameters, dtype=torch.float64),
        torch.tensor(macs, dtype=torch.float64),
        receptive_field(space),
    )


def _fixed(space: Space, size: Size, channels: int, classes: int) -> Cost:
    d, h, w = (-(-side // space.stem_stride) for side in size)
    parameters = 27 * channels * space.stem + 2 * space.stem
    macs = d * h * w * 27 * channels * space.stem
    width_in = space.stem
    for width, stride in zip(space.widths, space.strides, strict=True):
        d, h, w = (-(-side // stride) for side in (d, h, w))
        parameters += width_in * width + 2 * width
        macs += d * h * w * width_in * width
        width_in = width
    parameters += width_in * space.last + 2 * space.last + (space.last + 1) * classes
    macs += d * h * w * width_in * space.last + space.last * classes
    return Cost(parameters, macs)
