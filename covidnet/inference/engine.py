"""Run a bundle's network: OpenVINO on CPU, ONNX Runtime on CPU or a CUDA GPU. Nothing here imports torch.

OpenVINO comes first on CPU: it has a fast depthwise 3D convolution, ONNX Runtime's CPU provider has none
(``python -m benchmarks.engines`` shows the difference). A GPU is used when asked for: one scan takes milliseconds on a
CPU, less than a CUDA context takes to start.
"""

import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from covidnet.errors import CovidnetError, UsageError
from covidnet.export.bundle import Bundle

Device = Literal["auto", "cpu", "gpu"]
Name = Literal["auto", "openvino", "onnxruntime"]
OUTPUTS = ("logits", "probabilities", "cam")
INSTALL = {"openvino": "pip install openvino", "onnxruntime": "pip install onnxruntime-gpu"}
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
    """A loaded network. `run` may be called from several threads at once."""

    name: str
    size: tuple[int, int, int]

    def run(self, batch: np.ndarray) -> Outputs:
        """Outputs of ``uint8 (B, 1, D, H, W)``.

        Raises:
            UsageError: another shape or type.
        """
        ...


class OpenVinoEngine:
    """OpenVINO on CPU, in float32 also where the CPU has bfloat16, so that every machine gives the same answer."""

    def __init__(self, model: Path, threads: int = 0) -> None:
        import openvino

        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        try:
            self._compiled = openvino.Core().compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise CovidnetError(f"OpenVINO can't load {model}: {_first_line(error)}") from None
        self._requests = threading.local()
        self.name = "openvino (cpu)"
        shape = self._compiled.input("volume").get_partial_shape()
        self.size = _size(tuple(shape[axis].get_length() for axis in (2, 3, 4)))

    def run(self, batch: np.ndarray) -> Outputs:
        _check(batch, self.size)
        if not hasattr(self._requests, "own"):  # an infer request serves one thread at a time
            self._requests.own = self._compiled.create_infer_request()
        results = self._requests.own.infer({"volume": batch})
        return Outputs(*(results[self._compiled.output(name)] for name in OUTPUTS))


class OnnxRuntimeEngine:
    """ONNX Runtime on CPU or on a CUDA GPU."""

    def __init__(self, model: Path, device: Literal["cpu", "gpu"] = "cpu", threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        providers: list[Any] = ["CPUExecutionProvider"]
        if device == "gpu":
            _require_cuda(onnxruntime)
            # TF32 keeps 10 bits of mantissa: too few for parity.
            providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": 0}))
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=providers)
        except Exception as error:  # ONNX Runtime's errors share no base class but this one
            raise CovidnetError(f"ONNX Runtime can't load {model}: {_first_line(error)}") from None
        if device == "gpu" and self._session.get_providers()[0] != "CUDAExecutionProvider":
            raise _no_gpu("ONNX Runtime couldn't start CUDA (is there a GPU, are CUDA and cuDNN installed?)")
        self.name = f"onnxruntime ({device})"
        self.size = _size(tuple(self._session.get_inputs()[0].shape[2:]))

    def run(self, batch: np.ndarray) -> Outputs:
        _check(batch, self.size)
        return Outputs(*self._session.run(OUTPUTS, {"volume": batch}))


def load(bundle: Bundle, device: Device = "auto", engine: Name = "auto", threads: int = 0) -> Engine:
    """The engine for a bundle on this machine.

    Args:
        bundle: a verified bundle.
        device: ``auto`` is ``cpu``; ``gpu`` is CUDA.
        engine: ``auto`` is OpenVINO where it is installed and the device is a CPU, else ONNX Runtime.
        threads: CPU threads; 0 takes what this process may use.

    Raises:
        UsageError: the engine isn't installed, the GPU isn't there, or the two don't go together.
        CovidnetError: the engine refuses the model.
    """
    loaded = open_model(bundle.model, device, engine, threads)
    _log.info("bundle %s runs on %s", bundle.version, loaded.name)
    return loaded


def open_model(model: Path, device: Device = "auto", engine: Name = "auto", threads: int = 0) -> Engine:
    """As `load`, for the ONNX file of a bundle that is being made."""
    chosen = _choose(device, engine)
    threads = threads or _quota()
    if chosen == "openvino":
        return OpenVinoEngine(model, threads)
    return OnnxRuntimeEngine(model, "gpu" if device == "gpu" else "cpu", threads)


def installed() -> list[Name]:
    """Engines that can run here, fastest on CPU first."""
    names: Sequence[Name] = ("openvino", "onnxruntime")
    return [name for name in names if find_spec(name) is not None]


def _choose(device: Device, engine: Name) -> Name:
    if device not in ("auto", "cpu", "gpu"):
        raise UsageError(f"device {device!r}: expected auto, cpu or gpu")
    if engine not in ("auto", *INSTALL):
        raise UsageError(f"engine {engine!r}: expected auto, {' or '.join(INSTALL)}")
    if device == "gpu" and engine == "openvino":
        raise UsageError("engine openvino runs on CPU here; for a GPU choose engine onnxruntime or auto")
    names = [name for name in installed() if not (device == "gpu" and name == "openvino")]
    if engine == "auto" and names:
        return names[0]
    if engine not in names:
        wanted = "onnxruntime" if device == "gpu" else "openvino"
        wanted = wanted if engine == "auto" else engine
        raise UsageError(f"engine {wanted} is not installed; {INSTALL[wanted]}")
    return engine


def _require_cuda(onnxruntime: Any) -> None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise _no_gpu("this ONNX Runtime is built without CUDA")
    if not Path("/dev/nvidiactl").exists() and not Path("/dev/dxg").exists():
        raise _no_gpu("this machine has no NVIDIA GPU, or the container wasn't given one")
    onnxruntime.preload_dlls()  # CUDA and cuDNN from the nvidia-* wheels, where they aren't installed system-wide


def _no_gpu(found: str) -> UsageError:
    return UsageError(
        f"device gpu: {found}; use device cpu, or install NVIDIA's driver and `{INSTALL['onnxruntime']}[cuda,cudnn]`"
    )


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


def _check(batch: np.ndarray, size: tuple[int, int, int]) -> None:
    expected = f"uint8 (B, 1, {', '.join(map(str, size))})"
    if not isinstance(batch, np.ndarray):
        raise UsageError(f"expected a NumPy array {expected}, found {type(batch).__name__}")
    if batch.dtype != np.uint8 or batch.ndim != 5 or batch.shape[0] < 1 or batch.shape[1:] != (1, *size):
        raise UsageError(f"expected {expected}, found {batch.dtype} {batch.shape}")


def _size(shape: tuple[int, ...]) -> tuple[int, int, int]:
    depth, height, width = shape
    return depth, height, width


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
