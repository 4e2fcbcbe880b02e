"""Layers that see the whole batch when several processes hold a share of it each (data-parallel training).

In one process they are PyTorch's own. Synchronised statistics are needed here: a share may be a handful of scans, and a
network trained in two processes must be the one that a single process would have trained.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn


def shared() -> bool:
    """Whether a batch is shared by several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise ``(B, C, D, H, W)`` with the statistics of the whole batch; keeps no running statistics."""
    if not shared():
        return nn.functional.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    mean, variance, _ = _statistics(x)
    return _normalise(x, mean, variance, weight, bias, eps)


class BatchNorm3d(nn.BatchNorm3d):
    """Batch normalisation over the scans of all processes, on any device (`torch.nn.SyncBatchNorm` needs a GPU)."""

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and shared()):
            return super().forward(input)
        mean, variance, count = _statistics(input)
        with torch.no_grad():
            momentum = self.momentum or 0.1
            assert self.running_mean is not None
            assert self.running_var is not None
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        return _normalise(input, mean, variance, self.weight, self.bias, self.eps)


class Dropout(nn.Dropout):
    """Dropout whose mask is this process's share of the mask that one process would draw."""

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and self.p and shared()):
            return super().forward(input)
        share = len(input)
        mask = input.new_empty((share * dist.get_world_size(), *input.shape[1:]), dtype=torch.bool)
        mask.bernoulli_(1 - self.p)
        first = dist.get_rank() * share
        return input * mask[first : first + share] / (1 - self.p)


def synchronise(model: nn.Module) -> None:
    """Make a network's normalisation layers synchronised; names and shapes of its weights stay."""
    for module in model.modules():
        if type(module) is nn.BatchNorm3d:
            module.__class__ = BatchNorm3d


class _SumOverProcesses(torch.autograd.Function):
    """Every process gets the sum, so every process's gradient of it counts: the backward pass sums as well."""

    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean ``(C,)``, biased variance ``(C,)`` and number of values per channel, over all processes."""
    count = x.numel() // x.shape[1] * dist.get_world_size()
    values = x.float()
    mean = _SumOverProcesses.apply(values.sum(dim=(0, 2, 3, 4))) / count  # type: ignore[no-untyped-call]
    # from the deviations: the mean of squares less the squared mean cancels in float32
    deviation = values - mean[:, None, None, None]
    squares = (deviation * deviation).sum(dim=(0, 2, 3, 4))
    variance = _SumOverProcesses.apply(squares) / count  # type: ignore[no-untyped-call]
    return mean, variance, count


def _normalise(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    scale = weight * torch.rsqrt(variance + eps)  # (C,)
    offset = bias - mean * scale
    return (x * scale[:, None, None, None] + offset[:, None, None, None]).to(x.dtype)
