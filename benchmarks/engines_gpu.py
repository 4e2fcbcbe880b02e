"""ONNX Runtime with CUDA beside torch on one NVIDIA GPU, on one exported network, and how exact each of them is.

    python -m benchmarks.engines_gpu                                  # S and L at three sizes, batches of 1 and 16
    python -m benchmarks.engines_gpu --networks S --minutes 3         # with less time
    python -m benchmarks.engines_gpu --no-compile                     # torch.compile takes half a minute per cell

Networks of the paper's two spaces with 5x5x5 kernels and expansion 4 throughout. Times run from voxels in the CPU's memory
to answers and maps there; the contestants take turns. Torch runs in the faster of its two memory layouts, without TF32,
eager, replayed as a CUDA graph, and compiled; with bf16 its weights are bfloat16 too. Of ONNX Runtime there is the obvious
way beside `covidnet.inference.gpu`, and that engine on the graph of shifted 2D convolutions, which pays on a CPU. Nothing is
needed but torch, onnx, onnxscript and onnxruntime-gpu; a contestant that can't run is named with its reason.
"""

import argparse
import copy
import importlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from benchmarks.engines import OPERATION, SIZES, parse
from benchmarks.machine import facts
from covidnet.errors import CovidnetError
from covidnet.export.onnx import export
from covidnet.inference import gpu, selection
from covidnet.inference.engine import Precision, open_model
from covidnet.inference.variants import planar_depthwise
from covidnet.models.blocks import Classifier, ScaleInput
from covidnet.models.covidnet3d import SPACES, Genotype, build
from covidnet.models.saved import Size

OURS = ("ONNX Runtime", "ONNX Runtime, float16", "TensorRT", "TensorRT, float16")
TORCH = (
    "torch eager",
    "torch eager, bf16",
    "torch graph",
    "torch graph, bf16",
    "torch compiled",
    "torch compiled, bf16",
)
OTHERS = ("ONNX Runtime, obvious", "ONNX Runtime, launched", "ONNX Runtime, planes", "ONNX Runtime, planes, float16")
REFERENCE = TORCH[0]
WARM_UP, ROUNDS = 3, 10
LARGEST_ERROR = 0.1  # of the largest logit; what is wrong is not timed
LAYOUTS = (torch.contiguous_format, torch.channels_last_3d)
RESULTS = Path(__file__).parent / "results" / "engines_gpu.json"
Run = Callable[[np.ndarray], Sequence[np.ndarray]]


def main() -> None:
    """Print a row per network, size and batch, and keep it beside this file as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="S,L")
    parser.add_argument("--sizes", default=",".join(SIZES), help="DxHxW, comma-separated")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--seconds", type=float, default=4.0, help="of measuring, per row")
    parser.add_argument(
        "--minutes", type=float, default=15.0, help="no row begins later; no compiling after two thirds"
    )
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(
            "benchmarks.engines_gpu: torch finds no NVIDIA GPU here; python -m benchmarks.engines is the CPU's"
        )
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = True, False
    found: dict[str, Any] = {**facts(), "device": torch.cuda.get_device_name(), "rows": []}
    found["machine"]["gpu"] = found["device"]
    print(f"{found['device']}, {OPERATION} throughout, ms per scan of a batch", flush=True)
    begun = time.monotonic()
    for variant, size, batch in cases(options):
        minutes = (time.monotonic() - begun) / 60
        if minutes > options.minutes:
            print(f"{minutes:.1f} minutes are over: the rest is left out")
            break
        compiled = not options.no_compile and minutes < options.minutes * 2 / 3
        row = measure(variant, size, batch, options.seconds, compiled=compiled)
        found["rows"].append(row)
        report(row)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=2) + "\n")


def cases(options: argparse.Namespace) -> list[tuple[str, Size, int]]:
    """Small ones first, so that a row lost to time is a slow one."""
    sizes, batches = (
        [parse(text) for text in options.sizes.split(",")],
        [int(text) for text in options.batches.split(",")],
    )
    return [(variant, size, batch) for size in sizes for variant in options.networks.split(",") for batch in batches]


def measure(variant: str, size: Size, batch: int, seconds: float, *, compiled: bool) -> dict[str, Any]:
    """Milliseconds per scan by contestant, each on the same weights, and the error of its logits beside float32's."""
    blocks = tuple((OPERATION,) * blocks for blocks in SPACES[variant].blocks)
    torch.manual_seed(0)
    model = build(Genotype(variant, ("NCP", "CP", "Normal"), 1, size, blocks)).eval()
    scans = np.random.default_rng(0).integers(0, 256, (batch, 1, *size), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path, planes = Path(folder) / "model.onnx", Path(folder) / "planes.onnx"
        export(model, path, size=size, channels=1, temperature=1.0, metadata={})
        planes.write_bytes(planar_depthwise(onnx.load(path)).SerializeToString())
        makers: dict[str, Callable[[], Run]] = {
            REFERENCE: partial(in_torch, model, scans),
            "torch eager, bf16": partial(in_torch, model, scans, bf16=True),
            "torch graph": partial(in_torch, model, scans, graph=True),
            "torch graph, bf16": partial(in_torch, model, scans, graph=True, bf16=True),
            "ONNX Runtime": partial(ours, path),
            "ONNX Runtime, float16": partial(ours, path, "float16"),
            "TensorRT": partial(ours, path, "float32", "tensorrt"),
            "TensorRT, float16": partial(ours, path, "float16", "tensorrt"),
            "ONNX Runtime, obvious": partial(obvious, path),
            "ONNX Runtime, launched": partial(launched, path, size),
            "ONNX Runtime, planes": partial(ours, planes),
            "ONNX Runtime, planes, float16": partial(ours, planes, "float16"),
        }
        if compiled:
            makers["torch compiled"] = partial(in_torch, model, scans, compiled=True)
            makers["torch compiled, bf16"] = partial(in_torch, model, scans, compiled=True, bf16=True)
        runs, left_out, prepare_s = ready(makers, scans)
        times = selection.take_turns(
            {name: partial(run, scans) for name, run in runs.items()}, warm_up=WARM_UP, rounds=ROUNDS, seconds=seconds
        )
        logits = {name: np.asarray(run(scans)[0], np.float64) for name, run in runs.items()}
    scale = np.abs(logits[REFERENCE]).max()
    errors = {name: float(np.abs(own - logits[REFERENCE]).max() / scale) for name, own in logits.items()}
    for name, error in errors.items():
        if not error <= LARGEST_ERROR:
            left_out[name] = f"wrong: logits differ by {error:.1g} of the largest"
            del times[name]
    row: dict[str, Any] = {"network": variant, "size": "x".join(map(str, size)), "batch": batch}
    row["ms"] = {name: round(float(np.median(values)) / batch, 4) for name, values in times.items()}
    row["error"] = {name: float(f"{errors[name]:.2g}") for name in times}
    row |= {"prepare_s": prepare_s, "not_measured": left_out, "runs": min(map(len, times.values()))}
    mine, best = (
        min((row["ms"][name] for name in names if name in row["ms"]), default=None) for names in (OURS, TORCH)
    )
    row["ours_to_torch"] = round(mine / best, 3) if mine and best else None
    return row


def ready(
    makers: dict[str, Callable[[], Run]], scans: np.ndarray
) -> tuple[dict[str, Run], dict[str, str], dict[str, float]]:
    """Contestants that have run once, why others can't, and seconds of preparing; torch eager must run."""
    runs, left_out, prepare_s = {}, {}, {}
    for name, make in makers.items():
        started = time.perf_counter()
        try:
            run = make()
            run(scans)
        except Exception as error:  # of compilers and engines, which raise what they like
            if name == REFERENCE:
                raise
            shown = str(error) if isinstance(error, CovidnetError) else f"{type(error).__name__}: {error}"
            left_out[name] = shown.splitlines()[0].partition("; ")[0][:160]
        else:
            runs[name] = run
            prepare_s[name] = round(time.perf_counter() - started, 1)
    return runs, left_out, prepare_s


def report(row: dict[str, Any]) -> None:
    """Print one row, its contestants below each other."""
    print(f"\n{row['network']} {row['size']}, batch {row['batch']}: ours / best of torch {row['ours_to_torch']}")
    for name in (*OURS, *OTHERS, *TORCH):
        if name in row["ms"]:
            beside = f"error {row['error'][name]:.0e}   ready in {row['prepare_s'][name]} s"
            print(f"  {name:<30} {row['ms'][name]:9.4f} ms   {beside}")
        elif name in row["not_measured"]:
            print(f"  {name:<30} not measured: {row['not_measured'][name]}", flush=True)


def ours(path: Path, precision: Precision = "float32", engine: str = "onnxruntime") -> Run:
    """What `--device gpu` runs."""
    if engine == "tensorrt":
        importlib.import_module("tensorrt")
    network = open_model(path, "gpu", engine, precision=precision)  # type: ignore[arg-type]
    return lambda batch: _listed(network.run(batch))


def obvious(path: Path) -> Run:
    """The session of a tutorial: arrays in, arrays out, defaults."""
    session = _cuda(path, {})
    return lambda batch: session.run(["logits", "cam"], {"volume": batch})  # type: ignore[no-any-return]


def launched(path: Path, size: Size) -> Run:
    """Our settings and bound memory, every kernel launched by itself."""
    ((_, settings),) = gpu.providers("onnxruntime", "float32", size)
    return gpu.Bound(_cuda(path, settings | {"enable_cuda_graph": "0"}), "cuda").run


def _cuda(path: Path, settings: dict[str, str]) -> Any:
    import onnxruntime

    provider = "CUDAExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise CovidnetError("onnxruntime-gpu is not installed")
    session = onnxruntime.InferenceSession(path, providers=[(provider, settings)])
    if session.get_providers()[0] != provider:
        raise CovidnetError("onnxruntime-gpu doesn't fit this machine's CUDA")
    return session


def in_torch(
    model: Classifier, scans: np.ndarray, *, bf16: bool = False, graph: bool = False, compiled: bool = False
) -> Run:
    """The network in torch, in the memory layout that suits this GPU."""
    kind = torch.bfloat16 if bf16 else torch.float32
    layouts = {layout: _eager(model, kind, layout) for layout in LAYOUTS}
    times = selection.take_turns(
        {str(layout): partial(_answer, forward, scans) for layout, forward in layouts.items()}, warm_up=2, rounds=5
    )
    layout = min(LAYOUTS, key=lambda layout: float(np.median(times[str(layout)])))
    forward = layouts[layout]
    if compiled:
        torch._dynamo.reset()  # else another network of this size makes it compile for any size
        forward = torch.compile(forward, dynamic=False, mode="reduce-overhead")  # with CUDA graphs
    if graph:
        return _replayed(forward, scans)
    return partial(_answer, forward)


def _eager(model: Classifier, kind: torch.dtype, layout: torch.memory_format) -> Callable[[torch.Tensor], Any]:
    own = copy.deepcopy(model).to("cuda", kind, memory_format=layout)  # type: ignore[call-overload]
    scale = ScaleInput(1)

    def forward(volume: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, cam = own.explain(scale(volume).to(kind).contiguous(memory_format=layout))
        return logits.float(), cam.float()

    return forward


def _answer(forward: Callable[[torch.Tensor], Any], batch: np.ndarray) -> list[np.ndarray]:
    with torch.inference_mode():
        return [output.cpu().numpy() for output in forward(torch.from_numpy(batch).cuda())]


def _replayed(forward: Callable[[torch.Tensor], Any], scans: np.ndarray) -> Run:
    """The launches of one run, recorded once and played back."""
    with torch.inference_mode():
        volume = torch.from_numpy(scans).cuda()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                forward(volume)
        torch.cuda.current_stream().wait_stream(aside)
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            outputs = forward(volume)

    def run(batch: np.ndarray, weights: object = forward) -> list[np.ndarray]:  # which the graph doesn't keep alive
        with torch.inference_mode():
            volume.copy_(torch.from_numpy(batch))
            recorded.replay()
            return [output.cpu().numpy() for output in outputs]

    return run


def _listed(outputs: Any) -> list[np.ndarray]:
    return [outputs.logits, outputs.cam]


if __name__ == "__main__":
    main()
