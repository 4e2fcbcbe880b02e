"""Run a bundle's network: OpenVINO on CPU, ONNX Runtime on CPU, CUDA or TensorRT. Nothing here imports torch.

    network = engine.load(Bundle.load(Path("results/export/bundle")))
    network.run(volumes).probabilities                     # uint8 (B, 1, D, H, W) to float32 (B, K)

OpenVINO comes first on CPU: it has a fast depthwise 3D convolution, ONNX Runtime's CPU provider has none
(``python -m benchmarks.engines`` shows the difference). What was measured on this machine comes before that rule; see
`covidnet.inference.selection`. A GPU is used when asked for: one scan takes milliseconds on a CPU, less than a CUDA
context takes to start.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from covidnet.errors import UsageError
from covidnet.export.bundle import INT8, Bundle

Device = Literal["auto", "cpu", "gpu"]
Name = Literal["auto", "openvino", "onnxruntime", "tensorrt"]
Precision = Literal["float32", "bfloat16", "float16", "int8"]
OUTPUTS = ("logits", "probabilities", "cam")
INSTALL = {
    "openvino": "pip install openvino",
    "onnxruntime": "pip install onnxruntime-gpu",
    "tensorrt": "pip install onnxruntime-gpu tensorrt",
}
PRECISIONS: dict[str, tuple[Precision, ...]] = {  # by engine and device
    "openvino (cpu)": ("float32", "bfloat16", "int8"),
    "onnxruntime (cpu)": ("float32", "int8"),
    "onnxruntime (gpu)": ("float32", "float16"),
    "tensorrt (gpu)": ("float32", "float16"),
}
CGROUP_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a network says of a batch, float32.

    Args:
        logits: ``(B, K)``.
        probabilities: ``(B, K)``, calibrated.
        cam: ``(B, K, d, h, w)``; the mean of a map plus the class's bias is its logit.
    """

    logits: np.ndarray
    probabilities: np.ndarray
    cam: np.ndarray


class Engine(Protocol):
    """A loaded network. `run` may be called from several threads at once.

    Args:
        name: engine, device and, where it isn't float32, precision: ``openvino (cpu)``, ``openvino (cpu, int8)``.
        size: ``(D, H, W)`` of the input.
        batch: scans at a time that give the most scans per second.
        lanes: runs at a time over which these may be spread, in place of one: as many as cores on a CPU, 1 on a GPU.
    """

    name: str
    size: tuple[int, int, int]
    batch: int
    lanes: int

    def run(self, batch: np.ndarray, alone: bool = True) -> Outputs:
        """Outputs of ``uint8 (B, 1, D, H, W)``.

        Args:
            batch: scans.
            alone: no other run is under way, so that all cores may work on this one.

        Raises:
            UsageError: another shape or type.
        """
        ...


def load(
    bundle: Bundle,
    device: Device = "auto",
    engine: Name = "auto",
    threads: int = 0,
    precision: Precision = "float32",
    *,
    measure: bool = False,
) -> Engine:
    """The engine for a bundle on this machine.

    Args:
        bundle: a verified bundle.
        device: ``auto`` is ``cpu``; ``gpu`` is CUDA.
        engine: ``auto`` is the fastest by the measurement recorded for this bundle and machine; where there is none,
            OpenVINO if it is installed and the device is a CPU, else ONNX Runtime.
        threads: CPU threads; 0 takes what this process may use.
        precision: one that the bundle's export accepted.
        measure: time the engines now where no measurement is recorded, which takes a second or two.

    Raises:
        UsageError: the engine isn't installed, the GPU isn't there, the precision wasn't accepted, or they don't go
            together.
        CovidnetError: the engine refuses the model.
    """
    return prepare(bundle, device, engine, threads, precision, measure=measure)()


def prepare(
    bundle: Bundle,
    device: Device = "auto",
    engine: Name = "auto",
    threads: int = 0,
    precision: Precision = "float32",
    *,
    measure: bool = False,
) -> Callable[[], Engine]:
    """`load` in two steps: the engine is chosen and imported now, the network opened by the call of what is returned."""
    from covidnet.inference import selection

    _require_accepted(bundle, precision)
    model = bundle.path / INT8 if precision == "int8" else bundle.model
    threads = threads or _quota()
    reason = "asked for" if engine != "auto" else "the first of those installed"
    if engine == "auto":
        names = candidates(device, precision)
        times_ms = selection.recorded(bundle, device, precision, threads)
        if times_ms is None and measure and len(names) > 1:
            times_ms = selection.measure(bundle, model, device, precision, threads, names)
        ranked = sorted((name for name in names if name in (times_ms or {})), key=(times_ms or {}).__getitem__)
        if ranked:
            engine = ranked[0]
            reason = "measured here: " + ", ".join(f"{name} {(times_ms or {})[name]:.1f} ms" for name in ranked)
    chosen = _choose(device, engine, precision)
    import_module("openvino" if chosen == "openvino" else "onnxruntime")

    def opened() -> Engine:
        loaded = open_model(model, device, chosen, threads, precision)
        _log.info("bundle %s runs on %s (%s)", bundle.version, loaded.name, reason)
        return loaded

    return opened


def open_model(
    model: Path, device: Device = "auto", engine: Name = "auto", threads: int = 0, precision: Precision = "float32"
) -> Engine:
    """As `load`, for the ONNX file of a bundle that is being made."""
    from covidnet.inference import runtimes

    chosen = _choose(device, engine, precision)
    threads = threads or _quota()
    if chosen == "openvino":
        return runtimes.OpenVinoEngine(model, threads, precision)
    if device == "gpu":
        from covidnet.inference import gpu

        return gpu.OnnxRuntimeGpuEngine(model, precision, chosen)
    return runtimes.OnnxRuntimeEngine(model, threads, precision)


def installed() -> list[Name]:
    """Engines that can run on a CPU here, the usually faster one first."""
    names: Sequence[Name] = ("openvino", "onnxruntime")
    return [name for name in names if find_spec(name) is not None]


def candidates(device: Device, precision: Precision) -> list[Name]:
    """Engines that `auto` chooses from."""
    if device != "gpu":
        return [name for name in installed() if precision in PRECISIONS[f"{name} (cpu)"]]
    names: list[Name] = ["onnxruntime"] if "onnxruntime" in installed() else []
    if names and find_spec("tensorrt") is not None:
        names.insert(0, "tensorrt")
    return [name for name in names if precision in PRECISIONS[f"{name} (gpu)"]]


def check(batch: np.ndarray, size: tuple[int, int, int]) -> None:
    """Raise a `UsageError` unless a batch is ``uint8 (B, 1, *size)``."""
    expected = f"uint8 (B, 1, {', '.join(map(str, size))})"
    if not isinstance(batch, np.ndarray):
        raise UsageError(f"expected a NumPy array {expected}, found {type(batch).__name__}")
    if batch.dtype != np.uint8 or batch.ndim != 5 or batch.shape[0] < 1 or batch.shape[1:] != (1, *size):
        raise UsageError(f"expected {expected}, found {batch.dtype} {batch.shape}")


def cache_folder(name: str) -> Path | None:
    """A folder for what is measured or built once per machine; None where nothing can be written (read-only images)."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "covidnet3d" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def cache_file(name: str, facts: Sequence[object]) -> Path | None:
    """Where JSON that holds for these facts alone is kept in `cache_folder`; other facts have another file."""
    folder = cache_folder(name)
    return folder and folder / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.json"


def _require_accepted(bundle: Bundle, precision: Precision) -> None:
    if precision not in ("float32", "bfloat16", "float16", "int8"):
        raise UsageError(f"precision {precision!r}: expected float32, bfloat16, float16 or int8")
    if precision == "float32":
        return
    verdict = bundle.precisions.get(precision)
    if verdict is None:
        raise UsageError(
            f"precision {precision}: this bundle was exported without it; run "
            f"`covidnet export -S 'export.precisions=[{precision}]'`, which tries it on validation scans"
        )
    if not verdict["accepted"]:
        raise UsageError(f"precision {precision}: refused when the bundle was exported: {verdict['reason']}")


def _choose(device: Device, engine: Name, precision: Precision) -> Name:
    if device not in ("auto", "cpu", "gpu"):
        raise UsageError(f"device {device!r}: expected auto, cpu or gpu")
    if engine not in ("auto", *INSTALL):
        raise UsageError(f"engine {engine!r}: expected auto, {', '.join(list(INSTALL)[:-1])} or {[*INSTALL][-1]}")
    kind = "gpu" if device == "gpu" else "cpu"
    if kind == "gpu" and engine == "openvino":
        raise UsageError("engine openvino runs on CPU here; for a GPU choose engine onnxruntime or auto")
    if kind == "cpu" and engine == "tensorrt":
        raise UsageError("engine tensorrt needs device gpu; for a CPU choose engine auto")
    if engine != "auto" and precision not in PRECISIONS[f"{engine} ({kind})"]:
        able = ", ".join(PRECISIONS[f"{engine} ({kind})"])
        raise UsageError(f"engine {engine} has no precision {precision} on {kind}; it has {able}")
    names = candidates(device, precision)
    if engine == "auto" and names:
        return names[0]
    wanted = ("onnxruntime" if kind == "gpu" else "openvino") if engine == "auto" else engine
    if engine == "auto" and precision not in PRECISIONS[f"{wanted} ({kind})"]:
        raise UsageError(f"precision {precision}: no engine has it on {kind}")
    if wanted not in names:
        raise UsageError(f"engine {wanted} is not installed; {INSTALL[wanted]}")
    return engine


def _quota(limit: Path = CGROUP_CPU_LIMIT) -> int:
    """CPU limit of this container in whole cores; 0 where there is none, which engines read as all cores.

    Engines count the host's cores; threads beyond a cgroup's quota are throttled and cost latency.
    """
    try:
        quota, period = limit.read_text().split()
    except (OSError, ValueError):
        return 0
    cores = len(os.sched_getaffinity(0))
    return 0 if quota == "max" else max(1, min(cores, int(quota) // int(period)))
