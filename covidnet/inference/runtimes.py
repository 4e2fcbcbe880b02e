"""The engines behind `covidnet.inference.engine`: each loads the graph that suits it and keeps one small interface."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from covidnet.errors import CovidnetError, UsageError
from covidnet.inference.engine import OUTPUTS, Outputs, Precision, check
from covidnet.inference.variants import planar_depthwise

Size = tuple[int, int, int]


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
            "ENABLE_CPU_PINNING": False,  # a pinned thread waits for its core, which a decoder may have, beside a free one
        }
        self._path = model
        self._dynamic: Any = None
        self._compiling = threading.Lock()
        self._requests = threading.local()
        try:
            network = self._core.read_model(model)
            shape = network.input("volume").get_partial_shape()
            self.size: Size = tuple(shape[axis].get_length() for axis in (2, 3, 4))
            network.reshape([1, 1, *self.size])
            self._single = self._core.compile_model(network, "CPU", self._settings)
        except RuntimeError as error:
            raise CovidnetError(f"OpenVINO can't load {model}: {first_line(error)}") from None
        self.name = full_name("openvino", "cpu", precision)

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
    """ONNX Runtime on CPU; `covidnet.inference.gpu` has it on a GPU."""

    batch = 1

    def __init__(self, model: Path, threads: int = 0, precision: Precision = "float32") -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        graph = read(model)
        self.size = size_of(graph)
        try:
            suited = planar_depthwise(graph) if precision == "float32" else graph
            providers = ["CPUExecutionProvider"]
            self._session = onnxruntime.InferenceSession(suited.SerializeToString(), options, providers=providers)
        except Exception as error:  # ONNX Runtime's errors share no base class but this one
            raise CovidnetError(f"ONNX Runtime can't load {model}: {first_line(error)}") from None
        self.name = full_name("onnxruntime", "cpu", precision)

    def run(self, batch: np.ndarray) -> Outputs:
        check(batch, self.size)
        return Outputs(*self._session.run(OUTPUTS, {"volume": batch}))


def read(model: Path) -> onnx.ModelProto:
    """The graph of an ONNX file.

    Raises:
        CovidnetError: it isn't one.
    """
    try:
        return onnx.load(model, load_external_data=False)
    except DecodeError:
        raise CovidnetError(f"ONNX Runtime can't load {model}: it is not an ONNX file") from None


def size_of(graph: onnx.ModelProto) -> Size:
    """``(D, H, W)`` of an exported graph's input."""
    depth, height, width = (dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim[2:])
    return depth, height, width


def full_name(engine: str, device: str, precision: Precision) -> str:
    """As `Engine.name` says."""
    return f"{engine} ({device})" if precision == "float32" else f"{engine} ({device}, {precision})"


def first_line(error: Exception) -> str:
    """Of an engine's error, which may go on for pages."""
    return next(iter(str(error).splitlines()), type(error).__name__)
