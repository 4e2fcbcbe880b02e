"""The supernet: every architecture of a space in one set of weights; a step runs one sampled path.

Two ways to hold a block's candidates, with one interface (`forward(x, operation, gate)` and `extract(operation)`):

* `SharedBlock`: all candidates are crops of one k=7, e=6 bottleneck: the centre of the kernel and the first channels
  (Single-Path NAS, Stamoulis et al., 2019; Once-for-All, Cai et al., ICLR 2020). Each step trains them all, so a short
  search is enough.
* `SeparateBlock`: the paper's way, each candidate with weights of its own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from covidnet.models.blocks import Classifier
from covidnet.models.covidnet3d import Genotype, MBConv, Operation, Space, build, conv_bn, initialise
from covidnet.models.depthwise import depthwise_conv3d
from covidnet.models.synchronised import batch_norm


class SharedBlock(nn.Module):
    """Candidates as crops of one large bottleneck."""

    def __init__(self, width: int, operations: Sequence[Operation]) -> None:
        super().__init__()
        largest = Operation(max(o.kernel for o in operations), max(o.expansion for o in operations))
        self.weights = MBConv(width, largest)
        self.candidates = nn.ModuleDict({o.name: Crop(self.weights, width, o) for o in operations if o.kernel})

    def forward(self, x: Tensor, operation: Operation, gate: Tensor | None) -> Tensor:
        """The block's output ``(B, C, D, H, W)``; ``gate`` scales the residual branch and carries its gradient."""
        if not operation.kernel:
            return x
        y: Tensor = self.candidates[operation.name](x)
        return x + y if gate is None else gated(x, y, gate)

    def extract(self, operation: Operation) -> MBConv:
        """A free-standing copy of one candidate."""
        candidate = self.candidates[operation.name]
        assert isinstance(candidate, Crop)
        return candidate.extract()


class Crop(nn.Module):
    """One candidate of a `SharedBlock`: the residual branch by the centre of the kernel and the first channels."""

    def __init__(self, weights: MBConv, width: int, operation: Operation) -> None:
        super().__init__()
        self.weights, self.width, self.operation = weights, width, operation
        full = weights.depthwise.kernel_size[0]
        margin = (full - operation.kernel) // 2
        self.hidden, self.centre = width * operation.expansion, slice(margin, full - margin)

    def forward(self, x: Tensor) -> Tensor:
        """The branch's output, of the shape of ``x`` ``(B, C, D, H, W)``."""
        w, hidden, crop = self.weights, self.hidden, self.centre
        y = nn.functional.conv3d(x, w.expand.weight[:hidden])  # (B, e*C, D, H, W)
        y = nn.functional.relu6(_normalise(y, w.bn1, hidden), inplace=True)
        y = depthwise_conv3d(y, w.depthwise.weight[:hidden, :, crop, crop, crop])
        y = nn.functional.relu6(_normalise(y, w.bn2, hidden), inplace=True)
        y = nn.functional.conv3d(y, w.project.weight[:, :hidden])  # (B, C, D, H, W)
        return _normalise(y, w.bn3, self.width)

    def extract(self) -> MBConv:
        """A free-standing copy."""
        block, w, hidden, crop = MBConv(self.width, self.operation), self.weights, self.hidden, self.centre
        with torch.no_grad():
            block.expand.weight.copy_(w.expand.weight[:hidden])
            block.depthwise.weight.copy_(w.depthwise.weight[:hidden, :, crop, crop, crop])
            block.project.weight.copy_(w.project.weight[:, :hidden])
            for mine, shared in ((block.bn1, w.bn1), (block.bn2, w.bn2), (block.bn3, w.bn3)):
                mine.weight.copy_(shared.weight[: mine.num_features])
                mine.bias.copy_(shared.bias[: mine.num_features])
        return block


class SeparateBlock(nn.Module):
    """Candidates with weights of their own."""

    def __init__(self, width: int, operations: Sequence[Operation]) -> None:
        super().__init__()
        self.candidates = nn.ModuleDict({o.name: MBConv(width, o) for o in operations if o.kernel})

    def forward(self, x: Tensor, operation: Operation, gate: Tensor | None) -> Tensor:
        """The block's output ``(B, C, D, H, W)``; ``gate`` scales the residual branch and carries its gradient."""
        if not operation.kernel:
            return x
        y: Tensor = self.candidates[operation.name](x)
        return y if gate is None else gated(x, y - x, gate)

    def extract(self, operation: Operation) -> MBConv:
        """A free-standing copy of one candidate."""
        source = self.candidates[operation.name]
        assert isinstance(source, MBConv)
        block = MBConv(source.bn3.num_features, operation)
        block.load_state_dict(source.state_dict())
        return block


class Supernet(nn.Module):
    """All architectures of a space.

    Args:
        space: the search space.
        channels: input channels.
        classes: number of classes.
        share_weights: `SharedBlock` instead of `SeparateBlock`.
    """

    def __init__(self, space: Space, channels: int, classes: int, share_weights: bool = True) -> None:
        super().__init__()
        self.space, self.channels = space, channels
        block_type = SharedBlock if share_weights else SeparateBlock
        self.stem = conv_bn(channels, space.stem, 3, space.stem_stride)
        self.calibrations = nn.ModuleList()
        self.blocks = nn.ModuleList()
        width_in = space.stem
        for width, stride, count in zip(space.widths, space.strides, space.blocks, strict=True):
            self.calibrations.append(conv_bn(width_in, width, 1, stride))
            self.blocks.extend(block_type(width, space.operations) for _ in range(count))
            width_in = width
        self.last = conv_bn(width_in, space.last, 1)
        self.head = nn.Linear(space.last, classes)
        initialise(self)
        for module in self.modules():
            if isinstance(module, MBConv):
                # every candidate starts as identity: with residuals of random size a sampled path is noise to the next,
                # and the supernet stays at chance
                nn.init.zeros_(module.bn3.weight)

    def forward(self, volume: Tensor, path: Sequence[int], gates: Tensor | None = None) -> Tensor:
        """Logits ``(B, K)`` of one path.

        Args:
            volume: float ``(B, C, D, H, W)``.
            path: index into ``space.operations`` per block.
            gates: ``(blocks,)`` straight-through weights of value 1 that carry the architecture gradient.
        """
        x = self.stem(volume)
        position = 0
        for calibration, count in zip(self.calibrations, self.space.blocks, strict=True):
            x = calibration(x)
            for _ in range(count):
                gate = None if gates is None else gates[position]
                x = self.blocks[position](x, self.space.operations[path[position]], gate)
                position += 1
        pooled = self.last(x).mean(dim=(2, 3, 4))  # (B, F)
        logits: Tensor = self.head(pooled)
        return logits

    def extract(self, genotype: Genotype) -> Classifier:
        """A free-standing network of that genotype with this supernet's weights.

        Its normalisation statistics are those of no architecture: re-estimate them before judging it.
        """
        network = build(genotype)
        modules = network.features.children()
        operations = iter(genotype.operations)
        blocks = iter(self.blocks)
        next(modules).load_state_dict(self.stem.state_dict())
        for calibration, count in zip(self.calibrations, self.space.blocks, strict=True):
            next(modules).load_state_dict(calibration.state_dict())
            for _ in range(count):
                operation, block = next(operations), next(blocks)
                if operation.kernel:
                    next(modules).load_state_dict(block.extract(operation).state_dict())  # type: ignore[operator]
        next(modules).load_state_dict(self.last.state_dict())
        network.head.load_state_dict(self.head.state_dict())
        return network


def gated(x: Tensor, residual: Tensor, gate: Tensor) -> Tensor:
    """``x + gate * residual`` for a straight-through gate, whose value is always 1: it costs its gradient alone.

    Args:
        x: ``(B, C, D, H, W)``.
        residual: of the same shape.
        gate: ``()``, of value 1.
    """
    total: Tensor = _Gated.apply(x, residual, gate)  # type: ignore[no-untyped-call]
    return total


class _Gated(torch.autograd.Function):
    """See `gated`. Multiplying by 1 would pass over the largest maps twice more, and keep another of them."""

    @staticmethod
    def forward(x: Tensor, residual: Tensor, gate: Tensor) -> Tensor:
        return x + residual

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.precision = inputs[2].dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (residual,) = ctx.saved_tensors
        return grad, grad, (grad * residual).sum(dtype=ctx.precision)


def _normalise(x: Tensor, norm: nn.BatchNorm3d, channels: int) -> Tensor:
    """Normalise with batch statistics and the first ``channels`` affine weights; no running statistics are kept."""
    return batch_norm(x, norm.weight[:channels], norm.bias[:channels], norm.eps)
