"""Inference engines on CPU: OpenVINO, ONNX Runtime and torch eager on one exported network, one scan at a time.

    python -m benchmarks.engines          # all cores
    python -m benchmarks.engines 1        # one thread: what to run on a busy machine, where threads wait for each other

The network is of the paper's S space with 5x5x5 kernels and expansion 4 throughout. Torch runs in `channels_last_3d`,
its fastest layout. The engines take turns, so that a busy moment of the machine hits all of them alike.
"""

import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch

from covidnet.export.onnx import export
from covidnet.inference.engine import open_model
from covidnet.models.blocks import Classifier, ScaleInput
from covidnet.models.covidnet3d import SPACES, Genotype, build
from covidnet.models.saved import Size

SIZES: tuple[Size, ...] = ((16, 64, 64), (32, 128, 128))
OPERATION = "5x5_MBConv4"
BUDGET_S = 6.0  # per size
Run = Callable[[np.ndarray], object]


def main() -> None:
    """Print the table."""
    cores = len(os.sched_getaffinity(0))
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else cores
    torch.set_num_threads(threads)
    packages = ", ".join(f"{name} {version(name)}" for name in ("openvino", "onnxruntime-gpu", "torch"))
    print(f"{cpu()}, {threads} of {cores} cores, load {os.getloadavg()[0]:.1f}; {packages}")
    print(f"S space, {OPERATION} throughout, one scan, float32; median ms, and how many times OpenVINO's\n")
    print(f"{'input':>12} | {'OpenVINO':>10} | {'ONNX Runtime':>20} | {'torch eager':>20} | runs")
    for size in SIZES:
        times = times_ms(size, threads)
        fastest, *others = (median(values) for values in times.values())
        cells = " | ".join(f"{other:11.1f} {other / fastest:7.1f}x" for other in others)
        name = "x".join(map(str, size))
        print(f"{name:>12} | {fastest:10.1f} | {cells} | {len(times['openvino'])}", flush=True)


def times_ms(size: Size, threads: int) -> dict[str, list[float]]:
    """Times of one scan by engine."""
    blocks = tuple((OPERATION,) * count for count in SPACES["S"].blocks)
    model = build(Genotype("S", ("NCP", "CP", "Normal"), 1, size, blocks)).eval()
    scan = np.random.default_rng(0).integers(0, 256, (1, 1, *size), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(model, path, size=size, channels=1, temperature=1.0, metadata={})
        runs: dict[str, Run] = {
            "openvino": open_model(path, "cpu", "openvino", threads).run,
            "onnxruntime": open_model(path, "cpu", "onnxruntime", threads).run,
            "torch": eager(model),
        }
        return measure(runs, scan)


def eager(model: Classifier) -> Run:
    """The network in torch, from the same uint8 scan to the same outputs."""
    scale = ScaleInput(1)
    model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def run(batch: np.ndarray) -> object:
        with torch.inference_mode():
            volume = scale(torch.from_numpy(batch)).contiguous(memory_format=torch.channels_last_3d)
            return model.explain(volume)

    return run


def measure(runs: dict[str, Run], scan: np.ndarray) -> dict[str, list[float]]:
    """Take turns until the budget is spent, at least 7 times; the first two rounds warm up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    begun = time.perf_counter()
    while time.perf_counter() - begun < BUDGET_S or len(times["torch"]) < 9:
        for name, run in runs.items():
            started = time.perf_counter()
            run(scan)
            times[name].append((time.perf_counter() - started) * 1e3)
    return {name: values[2:] for name, values in times.items()}


def cpu() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
