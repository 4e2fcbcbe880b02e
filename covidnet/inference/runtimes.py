"""The engines behind `covidnet.inference.engine`: each loads the graph that suits it and keeps one small interface."""

import threading
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from covidnet.errors import CovidnetError, UsageError
from covidnet.inference.engine import INSTALL, OUTPUTS, Outputs, Precision, cache_folder, check
from covidnet.inference.variants import half, planar_depthwise

Size = tuple[int, int, int]
GPU_BATCH = 8  # the most scans per run on a GPU; TensorRT builds its engine for 1 to this many


class OpenVinoEngine:
    """OpenVINO on CPU; float32 means float32 also where the CPU has bfloat16, so that every machine gives the same answer.

    A graph of fixed shape runs up to a third faster than one of dynamic batch, and its first run doesn't plan anything:
    single scans have a graph of their own, and other batch sizes share a dynamic one, compiled when the first comes.
    """

    batch = 1

    def __init__(self, model: Path, threads: int = 0, precision: Precision = "float32") -> None:
        import openvino

        self._core = openvino.Core()
        if precision == "bfloat16" and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise UsageError("precision bfloat16: this CPU computes no bfloat16; use float32 or int8")
        hint = "bf16" if precision == "bfloat16" else "f32"
        self._settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": threads,
        }
        self._path = model
        self._dynamic: Any = None
        self._compiling = threading.Lock()
        self._requests = threading.local()
        try:
            read = self._core.read_model(model)
            shape = read.input("volume").get_partial_shape()
            self.size = _size(tuple(shape[axis].get_length() for axis in (2, 3, 4)))
            read.reshape([1, 1, *self.size])
            self._single = self._core.compile_model(read, "CPU", self._settings)
        except RuntimeError as error:
            raise CovidnetError(f"OpenVINO can't load {model}: {_first_line(error)}") from None
        self.name = _name("openvino", "cpu", precision)

    def run(self, batch: np.ndarray) -> Outputs:
        check(batch, self.size)
        kind = "single" if len(batch) == 1 else "dynamic"
        if not hasattr(self._requests, kind):  # an infer request serves one thread at a time
            compiled = self._single if kind == "single" else self._any_batch()
            setattr(self._requests, kind, (compiled, compiled.create_infer_request()))
        compiled, request = getattr(self._requests, kind)
        results = request.infer({"volume": batch})
        return Outputs(*(results[compiled.output(name)] for name in OUTPUTS))

    def _any_batch(self) -> Any:
        with self._compiling:
            if self._dynamic is None:
                self._dynamic = self._core.compile_model(self._path, "CPU", self._settings)
            return self._dynamic


class OnnxRuntimeEngine:
    """ONNX Runtime on CPU, or on a GPU by CUDA or TensorRT."""

    def __init__(
        self,
        model: Path,
        device: Literal["cpu", "gpu"] = "cpu",
        threads: int = 0,
        precision: Precision = "float32",
        engine: str = "onnxruntime",
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        graph = _read(model)
        size = _size(tuple(dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim[2:]))
        providers: list[Any] = ["CPUExecutionProvider"]
        if device == "gpu":
            _require_gpu(onnxruntime, engine)
            providers = [*gpu_providers(engine, precision, size), *providers]
        try:
            suited = _suited(graph, device, engine, precision)
            self._session = onnxruntime.InferenceSession(suited.SerializeToString(), options, providers=providers)
        except Exception as error:  # ONNX Runtime's errors share no base class but this one
            raise CovidnetError(f"ONNX Runtime can't load {model}: {_first_line(error)}") from None
        if device == "gpu" and self._session.get_providers()[0] != providers[0][0]:
            raise _no_gpu(
                f"ONNX Runtime couldn't start {providers[0][0]} (is there a GPU, are its libraries installed?)"
            )
        self._ort = onnxruntime
        self._memory = "cuda" if device == "gpu" else "cpu"
        self.name = _name(engine, device, precision)
        self.size = size
        self.batch = GPU_BATCH if device == "gpu" else 1

    def run(self, batch: np.ndarray) -> Outputs:
        check(batch, self.size)
        parts = [self._bound(batch[start : start + GPU_BATCH]) for start in range(0, len(batch), GPU_BATCH)]
        if len(parts) == 1:
            return Outputs(*parts[0])
        return Outputs(*(np.concatenate(outputs) for outputs in zip(*parts, strict=True)))

    def _bound(self, batch: np.ndarray) -> list[np.ndarray]:
        """One run with its input and outputs in the device's memory: a single copy each way."""
        binding = self._session.io_binding()
        value = self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(batch), self._memory, 0)
        binding.bind_ortvalue_input("volume", value)
        for name in OUTPUTS:
            binding.bind_output(name, self._memory)
        self._session.run_with_iobinding(binding)
        outputs: list[np.ndarray] = binding.copy_outputs_to_cpu()
        return outputs


def gpu_providers(engine: str, precision: Precision, size: Size) -> list[tuple[str, dict[str, str]]]:
    """ONNX Runtime's provider settings for a GPU, the wanted one first.

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
        return [("CUDAExecutionProvider", cuda)]

    def shape(batch: int) -> str:
        return f"volume:{'x'.join(map(str, (batch, 1, *size)))}"

    tensorrt = {
        "trt_fp16_enable": "1" if precision == "float16" else "0",
        "trt_profile_min_shapes": shape(1),
        "trt_profile_opt_shapes": shape(1),
        "trt_profile_max_shapes": shape(GPU_BATCH),
    }
    if folder := cache_folder("tensorrt"):  # building an engine takes minutes, loading a built one seconds
        tensorrt |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(folder),
        }
    return [("TensorrtExecutionProvider", tensorrt), ("CUDAExecutionProvider", cuda)]


def warm_up(engine: Any, batches: tuple[int, ...] = (1,)) -> None:
    """Run a network once per batch size, so that no caller waits for allocations, algorithm search or engine building."""
    for batch in batches:
        engine.run(np.zeros((batch, 1, *engine.size), np.uint8))


def _suited(graph: onnx.ModelProto, device: str, engine: str, precision: Precision) -> onnx.ModelProto:
    """The graph that this provider is fastest on."""
    if device == "cpu" and precision == "float32":
        return planar_depthwise(graph)
    if engine == "onnxruntime" and precision == "float16":  # TensorRT lowers the precision by itself
        return half(graph)
    return graph


def _read(model: Path) -> onnx.ModelProto:
    try:
        return onnx.load(model, load_external_data=False)
    except DecodeError:
        raise CovidnetError(f"ONNX Runtime can't load {model}: it is not an ONNX file") from None


def _require_gpu(onnxruntime: Any, engine: str) -> None:
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


def _name(engine: str, device: str, precision: Precision) -> str:
    return f"{engine} ({device})" if precision == "float32" else f"{engine} ({device}, {precision})"


def _size(shape: tuple[int, ...]) -> Size:
    depth, height, width = shape
    return depth, height, width


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
