"""Inference engines on CPU on one exported network, one scan at a time, and the distance to the arithmetic floor.

    python -m benchmarks.engines                                  # S and L at three sizes, all cores: about 25 minutes
    python -m benchmarks.engines --sizes 16x64x64 --no-compile    # 2 minutes
    python -m benchmarks.engines --threads 1                      # on a busy machine, where threads wait for each other

`benchmarks.engines_gpu` is its counterpart on an NVIDIA GPU.

Networks of the paper's two spaces with 5x5x5 kernels and expansion 4 throughout. The engines take turns, so that a busy
moment of the machine hits all of them alike, each after a rest in which the threads of the one before stop spinning. Torch
runs in `channels_last_3d`, its fastest layout, eager and compiled. The first column is what `covidnet predict` takes; the
last is a scan's share of the time where each core runs one, as many scans and the endpoint under load do. The floor is the
network's arithmetic at the speed of a large matrix product.
"""

import argparse
import copy
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import facts
from covidnet.export.onnx import export
from covidnet.inference import selection
from covidnet.inference.engine import open_model
from covidnet.models.blocks import Classifier, ScaleInput
from covidnet.models.cost import count
from covidnet.models.covidnet3d import SPACES, Genotype, build
from covidnet.models.saved import Size

SIZES = ("16x64x64", "32x128x128", "40x256x256")
OPERATION = "5x5_MBConv4"
COLUMNS = ("OpenVINO", "ONNX Runtime", "ONNX Runtime, planes", "torch eager", "torch compiled")
SIDE_BY_SIDE = "OpenVINO, a scan per core"
WARM_UP, ROUNDS = 2, 7  # compiling doesn't count; at least
Run = Callable[[np.ndarray], object]


def main() -> None:
    """Print the table, and keep it in `benchmarks/results/engines.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SIZES), help="DxHxW, comma-separated")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=20.0, help="per network and size")
    parser.add_argument(
        "--no-compile", action="store_true", help="leave torch.compile out: it takes minutes to compile"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/engines.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    columns = available(compiled=not options.no_compile)
    found: dict[str, Any] = {
        **facts(),
        "device": "cpu",
        "threads": options.threads,
        "load": round(os.getloadavg()[0], 2),
        "peak_gflops": round(peak_flops() / 1e9, 1),
        "rows": [],
    }
    print(f"{found['machine']}, {options.threads} threads, load {found['load']}")
    print(f"{OPERATION} throughout, one scan, median ms; peak {found['peak_gflops']} GFLOP/s of float32\n")
    print(f"{'':>16} | {'floor':>6} | " + " | ".join(f"{name:>22}" for name in (*columns, SIDE_BY_SIDE)))
    for size in (parse(text) for text in options.sizes.split(",")):
        for variant in SPACES:
            row = measure(variant, size, options.threads, options.seconds, columns, found["peak_gflops"])
            found["rows"].append(row)
            cells = " | ".join(f"{row['ms'].get(name, float('nan')):22.2f}" for name in columns)
            print(
                f"{variant} {row['size']:>14} | {row['floor_ms']:6.2f} | {cells} | {row['side_by_side_ms']:22.2f}",
                flush=True,
            )
    print_ratios(found["rows"], columns)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n")


def available(*, compiled: bool) -> list[str]:
    """Columns that can be measured here; says what is left out and why."""
    if compiled and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        print("without torch.compile, which needs a C++ compiler: apt-get install g++")
        compiled = False
    return [name for name in COLUMNS if compiled or "compiled" not in name]


def print_ratios(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """What is aimed at: the default within 1.1 of the best, and for S 7 times plain ONNX Runtime and twice torch eager."""
    default, *others = columns
    print(f"\n{'':>16} | {'default / best':>14} | " + " | ".join(f"{name + ' / default':>30}" for name in others))
    for row in rows:
        ms = row["ms"][default]
        row["ratios"] = {name: round(row["ms"][name] / ms, 2) for name in others if name in row["ms"]}
        row["default_to_best"] = round(ms / min(row["ms"].values()), 3)
        row["default_to_floor"] = round(ms / row["floor_ms"], 2)
        cells = " | ".join(f"{row['ratios'].get(name, float('nan')):29.1f}x" for name in others)
        print(f"{row['network']} {row['size']:>14} | {row['default_to_best']:14.2f} | {cells}")


def measure(
    variant: str, size: Size, threads: int, seconds: float, columns: Sequence[str], peak_gflops: float
) -> dict[str, Any]:
    """Median milliseconds of one scan by engine, each on the same weights."""
    blocks = tuple((OPERATION,) * blocks for blocks in SPACES[variant].blocks)
    model = build(Genotype(variant, ("NCP", "CP", "Normal"), 1, size, blocks)).eval()
    scan = np.random.default_rng(0).integers(0, 256, (1, 1, *size), dtype=np.uint8)
    macs = count(model, size, 1).macs
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(model, path, size=size, channels=1, temperature=1.0, metadata={})
        default = open_model(path, "cpu", "openvino", threads)
        makers: dict[str, Callable[[], Run]] = {
            "OpenVINO": lambda: default.run,
            "ONNX Runtime": lambda: plain(path, threads),
            "ONNX Runtime, planes": lambda: open_model(path, "cpu", "onnxruntime", threads).run,
            "torch eager": lambda: in_torch(model),
            "torch compiled": lambda: in_torch(model, compiled=True),
        }
        runs = {name: makers[name]() for name in columns}
        scans = np.repeat(scan, default.batch, axis=0)
        runs[SIDE_BY_SIDE] = lambda _: default.run(scans)
        times = take_turns(runs_here(runs, scan), scan, seconds, rest_s=selection.REST_S)
    together_ms = float(np.median(times.pop(SIDE_BY_SIDE))) / default.batch
    return {
        "network": variant,
        "size": "x".join(map(str, size)),
        "gmacs": round(macs / 1e9, 3),
        "floor_ms": round(2 * macs / peak_gflops / 1e6, 3),
        "side_by_side_ms": round(together_ms, 3),
        "ms": {name: round(float(np.median(values)), 3) for name, values in times.items()},
        "runs": min(map(len, times.values())),
    }


def runs_here(runs: dict[str, Run], scan: np.ndarray) -> dict[str, Run]:
    """Those that run at all; torch.compile refuses some networks on some machines, and that is said and left out."""
    able = {}
    for name, run in runs.items():
        try:
            run(scan)
        except Exception as error:  # of torch's compiler, which raises what it likes
            if "compiled" not in name:
                raise
            print(f"{name}: {type(error).__name__}, left out")
        else:
            able[name] = run
    return able


def plain(path: Path, threads: int) -> Run:
    """ONNX Runtime on the file as it is: the obvious choice."""
    import onnxruntime  # not for a GPU's machine, which imports this module too

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, {"volume": batch})


def in_torch(model: Classifier, *, compiled: bool = False) -> Run:
    """The network in torch, from the same uint8 scan to the same outputs."""
    scale = ScaleInput(1)
    own = copy.deepcopy(model).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    torch._dynamo.reset()  # else another network of this size makes it compile for any size
    explain = torch.compile(own.explain, dynamic=False) if compiled else own.explain

    def run(batch: np.ndarray) -> object:
        with torch.inference_mode():
            return explain(scale(torch.from_numpy(batch)).contiguous(memory_format=torch.channels_last_3d))

    return run


def take_turns(runs: dict[str, Run], scan: np.ndarray, seconds: float, rest_s: float = 0.0) -> dict[str, list[float]]:
    """Milliseconds of each run on a scan, until the time is spent."""
    ours = {name: partial(run, scan) for name, run in runs.items()}
    return selection.take_turns(ours, warm_up=WARM_UP, rounds=ROUNDS, seconds=seconds, rest_s=rest_s)


def peak_flops() -> float:
    """Floating-point operations per second of a float32 matrix product: what the machine can do."""
    side = 1536  # fits the caches
    a = torch.rand(side, side)
    best = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        torch.mm(a, a)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def parse(text: str) -> Size:
    """``DxHxW``."""
    depth, height, width = (int(side) for side in text.split("x"))
    return depth, height, width


if __name__ == "__main__":
    main()
