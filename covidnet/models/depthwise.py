"""Depthwise 3D convolution that trains fast: on CPU from PyTorch's own forward, on a GPU by kernels of our own.

On CPU the forward of a depthwise 3D convolution has a vectorised kernel and its backward has none, so autograd spends
20-60 times the forward there. Both gradients are forward convolutions in disguise, though:

* input gradient: the output gradient convolved with the flipped kernel;
* weight gradient: ``dW[c, t] = sum over b, p of x[b, c, p + t - k//2] * dy[b, c, p]``, a depthwise convolution of the
  input whose kernel is the *whole output gradient* and whose output is the k^3 taps.

A tap farther from the kernel's centre than the grid is long meets padding only, so kernels are cropped to the taps that
can touch data: on a 1x4x4 grid a 7x7x7 kernel is a 1x7x7 one. ``python -m benchmarks.depthwise`` shows what it gains.
The kernels for a GPU are those of `covidnet.models.depthwise_gpu`.
"""

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Taps = tuple[int, int, int]

# Elements of a kernel (4 MiB of float32); one that is larger falls out of the CPU's caches, up to 3 times slower.
LARGEST_KERNEL = 2**20


def depthwise_conv3d(x: Tensor, weight: Tensor) -> Tensor:
    """Depthwise convolution of stride 1 and same padding.

    Training on CPU or a GPU takes the fast kernels and yields ``channels_last_3d`` whatever comes in. Inference, export and
    other devices see one plain `conv3d`, so that exported graphs stay clean; autocast on CPU sees it, too.

    Args:
        x: ``(B, C, D, H, W)``.
        weight: ``(C, 1, k, k, k)``, k odd.

    Returns:
        ``(B, C, D, H, W)``.

    Raises:
        ValueError: the kernel isn't an odd cube.
    """
    kernel = weight.shape[-1]
    if kernel % 2 == 0 or weight.shape[2:] != (kernel,) * 3:
        raise ValueError(f"expected a kernel (C, 1, k, k, k) with k odd, found {tuple(weight.shape)}")
    if not _trains_fast(x):
        return F.conv3d(x, weight, padding=kernel // 2, groups=x.shape[1])
    dtype = torch.get_autocast_dtype("cuda") if x.is_cuda and torch.is_autocast_enabled("cuda") else x.dtype
    x = x.to(dtype, memory_format=torch.channels_last_3d)
    y: Tensor = _DepthwiseConv3d.apply(x, weight)  # type: ignore[no-untyped-call]
    return y


def _trains_fast(x: Tensor) -> bool:
    """Is this training, with kernels for it?"""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if x.is_cuda:
        return has_triton() and x.shape[1] % 2 == 0
    return x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


@cache
def has_triton() -> bool:
    """Is there the compiler of GPU kernels? PyTorch brings it along on Linux."""
    return find_spec("triton") is not None


class _DepthwiseConv3d(torch.autograd.Function):
    """`depthwise_conv3d` of a ``channels_last_3d`` input."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return _convolve(x, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        x, weight = inputs
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last_3d)  # (B, C, D, H, W)
        x_grad = _convolve(grad, weight.flip(2, 3, 4)) if ctx.needs_input_grad[0] else None
        weight_grad = _weight_gradient(x, grad, weight.shape[-1]) if ctx.needs_input_grad[1] else None
        return x_grad, weight_grad


def _reach(kernel: int, grid: torch.Size) -> Taps:
    """Distance per axis of the kernel's farthest tap that can touch data."""
    depth, height, width = (min(kernel // 2, size - 1) for size in grid)
    return depth, height, width


def _convolve(x: Tensor, weight: Tensor) -> Tensor:
    centre, reach = weight.shape[-1] // 2, _reach(weight.shape[-1], x.shape[2:])
    z, y, x_axis = (slice(centre - r, centre + r + 1) for r in reach)
    weight = weight[:, :, z, y, x_axis]
    if x.is_cuda:
        from covidnet.models import depthwise_gpu  # needs Triton

        return depthwise_gpu.convolve(x, weight)
    return F.conv3d(x, weight, padding=reach, groups=x.shape[1])


def _weight_gradient(x: Tensor, grad: Tensor, kernel: int) -> Tensor:
    """Gradient ``(C, 1, k, k, k)`` of the kernel from input and output gradient, both ``(B, C, D, H, W)``.

    Its convolutions take as their kernel the largest part of the output gradient that the caches hold: the batch (where
    depth is 1), one scan, or one plane.
    """
    reach = _reach(kernel, x.shape[2:])
    margin = [kernel // 2 - r for r in reversed(reach) for _ in range(2)]  # taps that met padding only
    if x.is_cuda:
        from covidnet.models import depthwise_gpu  # needs Triton

        depth, height, width = (2 * r + 1 for r in reach)
        return F.pad(depthwise_gpu.correlate(x, grad, (depth, height, width)), margin)
    if x.shape[2] == 1 and grad.numel() <= LARGEST_KERNEL:
        taps = _correlate(_batch_to_depth(x), _batch_to_depth(grad), (0, *reach[1:]))
    elif grad[0].numel() <= LARGEST_KERNEL:
        taps = _correlate_scans(x, grad, reach)
    else:
        taps = _correlate_planes(x, grad, reach)
    return F.pad(taps.transpose(0, 1), margin)


def _correlate(x: Tensor, grad: Tensor, padding: Taps) -> Tensor:
    """Taps ``(1, C, ...)``: the input ``(1, C, d, H, W)`` convolved with the output gradient ``(1, C, d', H, W)``."""
    return F.conv3d(x, grad.transpose(0, 1), padding=padding, groups=x.shape[1])


def _batch_to_depth(x: Tensor) -> Tensor:
    """``(B, C, 1, H, W)`` to ``(1, C, B, H, W)``, without a copy: summing over depth then sums over the batch."""
    _, channels, _, height, width = x.shape
    return x.movedim(1, -1).reshape(1, -1, height, width, channels).movedim(-1, 1)


def _correlate_scans(x: Tensor, grad: Tensor, reach: Taps) -> Tensor:
    """One convolution per scan of the batch."""
    taps = _correlate(x[:1], grad[:1], reach)
    for b in range(1, len(x)):
        taps += _correlate(x[b : b + 1], grad[b : b + 1], reach)
    return taps


def _correlate_planes(x: Tensor, grad: Tensor, reach: Taps) -> Tensor:
    """One convolution per scan and plane of the output gradient, with the input planes within reach of it."""
    depth = x.shape[2]
    taps = x.new_zeros(1, x.shape[1], *(2 * r + 1 for r in reach))
    for b in range(len(x)):
        for d in range(depth):
            first, last = max(d - reach[0], 0), min(d + reach[0] + 1, depth)
            part = _correlate(x[b : b + 1, :, first:last], grad[b : b + 1, :, d : d + 1], (0, *reach[1:]))
            taps[:, :, first - d + reach[0] : last - d + reach[0]] += part
    return taps
