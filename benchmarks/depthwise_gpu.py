"""Depthwise convolution on a GPU: the kernels of `covidnet.models.depthwise_gpu` beside PyTorch's own and cuDNN's.

    python -m benchmarks.depthwise_gpu              # two minutes on an NVIDIA GPU, most of them for compiling

One row per layer and kernel of the paper's S space, expansion 4, batch 32, bfloat16, at the sizes of search and retraining.
For contiguous volumes PyTorch has kernels of its own, for channels-last ones it takes cuDNN's. Times are those of the
forward pass and of the gradients of input and kernel; the roof is one reading and one writing of the volume at the rate of
a large copy.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.depthwise import KERNELS, layers
from benchmarks.gpu import copy_rate
from benchmarks.machine import facts
from covidnet.models import depthwise

SIZES = ((16, 64, 64), (32, 128, 128))
BATCH = 32
PASSES = ("forward", "input", "weight")
WAYS = ("contiguous", "channels last", "ours")
RESULTS = Path(__file__).parent / "results" / "depthwise_gpu.json"


def main() -> None:
    """Print the table and write it beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.depthwise_gpu: torch finds no GPU")
    roof, found = copy_rate(torch.device("cuda")) / 1e9, []
    print(f"{'input':>10} {'channels':>8} {'grid':>9} k {'roof':>5} us |" + "|".join(f"{way:>23} " for way in WAYS))
    for size in SIZES:
        for row in rows(size, roof):
            found.append(row)
            cells = "|".join("".join(f"{row['us'][way][kind]:8.0f}" for kind in PASSES) for way in WAYS)
            names = "x".join(map(str, size)), "x".join(map(str, row["grid"]))
            print(
                f"{names[0]:>10} {row['channels']:>8} {names[1]:>9} {row['k']} {row['roof_us']:5.0f}    |{cells}",
                flush=True,
            )
    result = {**facts(), "device": torch.cuda.get_device_name(), "batch": BATCH, "gb_per_s": roof, **summary(found)}
    print(json.dumps(result["best_torch_to_ours"], indent=1))
    options.out.write_text(json.dumps({**result, "rows": found}, indent=1) + "\n")


def rows(size: tuple[int, int, int], gb_per_s: float) -> Iterator[dict[str, Any]]:
    """Microseconds of the three passes, each of the three ways."""
    from triton.testing import do_bench

    def us(run: Callable[[], object]) -> float:
        return round(1e3 * do_bench(run, warmup=3, rep=15, return_mode="median"), 1)

    for _, channels, grid in layers(size):
        for k in KERNELS:
            x, grad = (torch.randn(BATCH, channels, *grid, device="cuda", dtype=torch.bfloat16) for _ in range(2))
            weight = torch.randn(channels, 1, k, k, k, device="cuda")
            taken: dict[str, dict[str, float]] = {}
            for way, layout in zip(WAYS, (torch.contiguous_format, *[torch.channels_last_3d] * 2), strict=True):
                runs = passes(
                    way == "ours", x.contiguous(memory_format=layout), grad.contiguous(memory_format=layout), weight
                )
                taken[way] = {kind: us(run) for kind, run in zip(PASSES, runs, strict=True)}
            roof_us = round(2 * 2 * x.numel() / gb_per_s / 1e3, 1)
            yield {"size": size, "channels": channels, "grid": grid, "k": k, "roof_us": roof_us, "us": taken}


def passes(ours: bool, x: Tensor, grad: Tensor, weight: Tensor) -> tuple[Callable[[], object], ...]:
    """Forward pass, gradient of the input, gradient of the kernel."""
    channels, k = weight.shape[0], weight.shape[-1]
    if ours:
        return (
            lambda: depthwise._convolve(x, weight),
            lambda: depthwise._convolve(grad, weight.flip(2, 3, 4)),
            lambda: depthwise._weight_gradient(x, grad, k),
        )
    half, pad = weight.bfloat16(), [k // 2] * 3

    def backward(*wanted: bool) -> Callable[[], object]:
        return lambda: torch.ops.aten.convolution_backward(
            grad, x, half, None, [1] * 3, pad, [1] * 3, False, [0] * 3, channels, wanted
        )

    return (
        lambda: F.conv3d(x, half, padding=k // 2, groups=channels),
        backward(True, False, False),
        backward(False, True, False),
    )


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Geometric means of how many times longer the faster of PyTorch's two ways takes, by size and pass."""
    ratios: dict[str, dict[str, float]] = {}
    for size in SIZES:
        of_size = [row["us"] for row in found if tuple(row["size"]) == size]
        ratios["x".join(map(str, size))] = {
            kind: round(geometric_mean(min(us[way][kind] for way in WAYS[:2]) / us["ours"][kind] for us in of_size), 2)
            for kind in PASSES
        }
    return {"best_torch_to_ours": ratios}


if __name__ == "__main__":
    main()
