"""ONNX Runtime on an NVIDIA GPU, by CUDA or by TensorRT.

A small network's kernels end sooner than the next one is launched, so CUDA plays a whole run back as one graph: every size
of batch has its own, with its own input and outputs in the GPU's memory. Batches are filled up to a power of two, for few
sizes to be prepared.
"""

import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from covidnet.errors import CovidnetError, UsageError
from covidnet.inference.engine import INSTALL, Outputs, Precision, cache_folder, check
from covidnet.inference.runtimes import Size, first_line, full_name, read, size_of
from covidnet.inference.variants import half

MOST_SCANS = 16  # per run
MOST_VOXELS = 2**23  # per run: activations of some GiB, of a batch that fills a large GPU
Providers = list[tuple[str, dict[str, str]]]

_log = logging.getLogger(__name__)


class OnnxRuntimeGpuEngine:
    """A network on the first GPU; threads take turns.

    Args:
        model: ONNX file.
        precision: ``float32`` or ``float16``.
        engine: ``onnxruntime`` (CUDA) or ``tensorrt``.

    Raises:
        CovidnetError: ONNX Runtime refuses the graph.
        UsageError: no GPU, or an ONNX Runtime without the provider.
    """

    def __init__(self, model: Path, precision: Precision, engine: str) -> None:
        import onnxruntime

        _require(onnxruntime, engine)
        graph = read(model)
        self.name = full_name(engine, "gpu", precision)
        self.size = size_of(graph)
        self.batch = largest_batch(self.size)
        self.lanes = 1
        self._turn = threading.Lock()
        if engine == "onnxruntime" and precision == "float16":  # TensorRT lowers the precision by itself
            graph = half(graph)
        first, *others = providers(engine, precision, self.size)
        try:
            self._bound = _opened(onnxruntime, graph, [first, *others])
        except UsageError:
            raise
        except CovidnetError as error:
            if first[1].get("enable_cuda_graph") != "1":
                raise
            _log.info("%s runs without a CUDA graph: %s", self.name, error)
            self._bound = _opened(onnxruntime, graph, [(first[0], first[1] | {"enable_cuda_graph": "0"})])

    def run(self, batch: np.ndarray, alone: bool = True) -> Outputs:
        check(batch, self.size)
        with self._turn:
            parts = [self._bound.run(batch[start : start + self.batch]) for start in range(0, len(batch), self.batch)]
        return Outputs(*(np.concatenate(outputs) for outputs in zip(*parts, strict=True)))


class Bound:
    """A session whose input and outputs stay where they are in the device's memory, for every size of batch.

    Args:
        session: of an exported graph.
        memory: ``cuda`` or ``cpu``.
    """

    def __init__(self, session: Any, memory: str) -> None:
        self._session, self._memory = session, memory
        self._sizes: dict[int, tuple[Any, Any, Any]] = {}  # scans to input, binding and options of a run

    def run(self, batch: np.ndarray) -> list[np.ndarray]:
        """Outputs of ``uint8 (B, 1, D, H, W)``, in the order of `OUTPUTS`."""
        filled = 1 << (len(batch) - 1).bit_length()
        if filled not in self._sizes:
            self._sizes[filled] = self._prepared(filled, batch.shape[1:])
        volume, binding, options = self._sizes[filled]
        missing = np.zeros((filled - len(batch), *batch.shape[1:]), np.uint8)
        volume.update_inplace(np.concatenate([batch, missing]) if len(missing) else np.ascontiguousarray(batch))
        self._session.run_with_iobinding(binding, options)
        return [output[: len(batch)] for output in binding.copy_outputs_to_cpu()]

    def _prepared(self, scans: int, shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
        import onnxruntime

        def allocate(*shape: int, kind: type[np.generic]) -> Any:
            return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind, self._memory, 0)

        volume = allocate(scans, *shape, kind=np.uint8)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("volume", volume)
        for output in self._session.get_outputs():
            binding.bind_ortvalue_output(output.name, allocate(scans, *output.shape[1:], kind=np.float32))
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(scans))
        return volume, binding, options


def largest_batch(size: Size) -> int:
    """Scans per run that fill a GPU: a power of two."""
    fitting = max(1, min(MOST_SCANS, MOST_VOXELS // int(np.prod(size))))
    return 1 << (fitting.bit_length() - 1)


def providers(engine: str, precision: Precision, size: Size) -> Providers:
    """ONNX Runtime's provider settings, the wanted one first.

    Args:
        engine: ``onnxruntime`` (CUDA) or ``tensorrt`` (and CUDA for what TensorRT doesn't take).
        precision: ``float32`` or ``float16``.
        size: ``(D, H, W)`` of the input.
    """
    cuda = {
        # Tries every cuDNN algorithm once per shape; the default, HEURISTIC, misses the fast depthwise ones.
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "cudnn_conv_use_max_workspace": "1",
        "use_tf32": "0",  # TF32 keeps 10 bits of mantissa: too few for parity
    }
    if engine != "tensorrt":
        return [("CUDAExecutionProvider", cuda | {"enable_cuda_graph": "1"})]

    def shape(batch: int) -> str:
        return f"volume:{'x'.join(map(str, (batch, 1, *size)))}"

    tensorrt = {
        "trt_fp16_enable": "1" if precision == "float16" else "0",
        "trt_profile_min_shapes": shape(1),
        "trt_profile_opt_shapes": shape(1),
        "trt_profile_max_shapes": shape(largest_batch(size)),
    }
    if folder := cache_folder("tensorrt"):  # building an engine takes minutes, loading a built one seconds
        tensorrt |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(folder),
        }
    return [("TensorrtExecutionProvider", tensorrt), ("CUDAExecutionProvider", cuda)]


def _opened(onnxruntime: Any, graph: onnx.ModelProto, wanted: Providers) -> Bound:
    """A session that has run once, which is when a CUDA graph is found impossible.

    Raises:
        CovidnetError: ONNX Runtime refuses the graph, or can't run it.
        UsageError: it doesn't find the GPU.
    """
    provider = wanted[0][0]
    try:
        session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=[*wanted, "CPUExecutionProvider"])
        bound = Bound(session, "cuda")
        if session.get_providers()[0] == provider:
            bound.run(np.zeros((1, 1, *size_of(graph)), np.uint8))
    except Exception as error:  # ONNX Runtime's errors share no base class but this one
        raise CovidnetError(f"ONNX Runtime can't run the network with {provider}: {first_line(error)}") from None
    if session.get_providers()[0] != provider:
        raise _no_gpu(f"ONNX Runtime couldn't start {provider} (is there a GPU, are its libraries installed?)")
    return bound


def _require(onnxruntime: Any, engine: str) -> None:
    provider = "TensorrtExecutionProvider" if engine == "tensorrt" else "CUDAExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise _no_gpu(f"this ONNX Runtime is built without {provider}")
    if not Path("/dev/nvidiactl").exists() and not Path("/dev/dxg").exists():
        raise _no_gpu("this machine has no NVIDIA GPU, or the container wasn't given one")
    onnxruntime.preload_dlls()  # CUDA and cuDNN from the nvidia-* wheels, where they aren't installed system-wide


def _no_gpu(found: str) -> UsageError:
    return UsageError(
        f"device gpu: {found}; use device cpu, or install NVIDIA's driver and `{INSTALL['onnxruntime']}[cuda,cudnn]`"
    )
