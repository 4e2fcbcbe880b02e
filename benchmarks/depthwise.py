"""Depthwise convolution, forward and backward: `depthwise_conv3d` against PyTorch's own autograd.

    python -m benchmarks.depthwise            # at the search's size, 16,64,64
    python -m benchmarks.depthwise 32,128,128

One row per layer and kernel of the paper's S space, expansion 4, batch 8. The times are ours, the ratios say how many
times longer plain `conv3d` takes on contiguous tensors and on `channels_last_3d` ones; "frozen" is the architecture
step, which needs no weight gradient (against `channels_last_3d` with the weight frozen as well).
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from statistics import geometric_mean, median

import torch
import torch.nn.functional as F
from torch import Tensor

from covidnet.models.covidnet3d import SPACES
from covidnet.models.depthwise import depthwise_conv3d

Convolution = Callable[[Tensor, Tensor], Tensor]
BATCH, EXPANSION, KERNELS = 8, 4, (3, 5, 7)
COLUMNS = f"{'layer':>5} {'channels':>8} {'grid':>9} {'k':>2} | {'ms':>8} {'contiguous':>11} {'ch. last':>9}"
COLUMNS += f" | {'frozen ms':>9} {'ch. last':>9}"


def main() -> None:
    """Print the table."""
    size = tuple(int(side) for side in (sys.argv[1] if len(sys.argv) > 1 else "16,64,64").split(","))
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, input {size}, batch {BATCH}\n\n{COLUMNS}")
    ratios: list[tuple[float, float, float]] = []
    for layer, channels, grid in layers(size):
        for kernel in KERNELS:
            ours, contiguous, last, frozen, frozen_last = times_ms(channels, grid, kernel)
            ratios.append((contiguous / ours, last / ours, frozen_last / frozen))
            name, (a, b, c) = "x".join(map(str, grid)), ratios[-1]
            print(f"{layer:>5} {channels:>8} {name:>9} {kernel:>2} | {ours:8.2f} {a:10.1f}x {b:8.1f}x", end="")
            print(f" | {frozen:9.2f} {c:8.1f}x", flush=True)
    a, b, c = (geometric_mean(column) for column in zip(*ratios, strict=True))
    print(f"{'geometric mean':>27} | {'':8} {a:10.1f}x {b:8.1f}x | {'':9} {c:8.1f}x")


def layers(size: tuple[int, ...]) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Number, depthwise channels and grid ``(D, H, W)`` of each layer of the S space."""
    space = SPACES["S"]
    stride = space.stem_stride
    for layer, (width, step) in enumerate(zip(space.widths, space.strides, strict=True), start=1):
        stride *= step
        yield layer, width * EXPANSION, tuple(math.ceil(side / stride) for side in size)


def times_ms(channels: int, grid: tuple[int, ...], kernel: int) -> tuple[float, float, float, float, float]:
    """Ours, plain contiguous, plain channels last; ours and plain channels last with the weight frozen."""
    x, grad = torch.randn(BATCH, channels, *grid), torch.randn(BATCH, channels, *grid)
    x_last, grad_last = (t.contiguous(memory_format=torch.channels_last_3d) for t in (x, grad))
    weight = torch.randn(channels, 1, kernel, kernel, kernel)
    return (
        step_ms(depthwise_conv3d, x_last, weight, grad_last),
        step_ms(plain_conv3d, x, weight, grad),
        step_ms(plain_conv3d, x_last, weight, grad_last),
        step_ms(depthwise_conv3d, x_last, weight, grad_last, frozen=True),
        step_ms(plain_conv3d, x_last, weight, grad_last, frozen=True),
    )


def plain_conv3d(x: Tensor, weight: Tensor) -> Tensor:
    """PyTorch's own convolution and backward."""
    return F.conv3d(x, weight, padding=weight.shape[-1] // 2, groups=x.shape[1])


def step_ms(convolution: Convolution, x: Tensor, weight: Tensor, grad: Tensor, frozen: bool = False) -> float:
    """Median of one forward and backward, over half a second or three repetitions, whichever is longer."""
    x, weight = x.requires_grad_(), weight.requires_grad_(not frozen)
    needed = [x] if frozen else [x, weight]
    seconds: list[float] = []
    torch.autograd.grad(convolution(x, weight), needed, grad)  # the first run allocates
    while len(seconds) < 3 or sum(seconds) < 0.5:
        start = time.perf_counter()
        torch.autograd.grad(convolution(x, weight), needed, grad)
        seconds.append(time.perf_counter() - start)
    return median(seconds) * 1e3


if __name__ == "__main__":
    main()
