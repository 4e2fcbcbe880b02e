"""The engines behind `covidnet.inference.engine`: each loads the graph that suits it and keeps one small interface."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from covidnet.errors import CovidnetError, UsageError
from covidnet.inference.engine import OUTPUTS, Outputs, Precision, check
from covidnet.inference.variants import planar_depthwise

MAX_LANES = 8  # each needs the memory of its own feature maps

# A process's first run of OpenVINO has to be alone: two at once were seen to wait for ever, one for Python's lock and one
# for what the other sets up.
_FIRST_RUN, _RAN = threading.Lock(), threading.Event()

Size = tuple[int, int, int]


class OpenVinoEngine:
    """OpenVINO on CPU; float32 means float32 also where the CPU has bfloat16, so that every machine gives the same answer.

    A scan that is alone is computed by all cores together. Several go side by side, a core each, so that none waits for the
    others at the end of a layer: under load that is a fifth more scans. That graph is compiled when it is first needed.
    """

    def __init__(self, model: Path, threads: int = 0, precision: Precision = "float32") -> None:
        import openvino

        self._core = openvino.Core()
        if precision == "bfloat16" and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise UsageError("precision bfloat16: this CPU computes no bfloat16; use float32 or int8")
        self._settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # a pinned thread waits for its core, which a decoder may have, beside a free one
        }
        self.lanes = self.batch = min(threads or len(os.sched_getaffinity(0)), MAX_LANES)
        try:
            self._network = self._core.read_model(model)
            shape = self._network.input("volume").get_partial_shape()
            self.size: Size = tuple(shape[axis].get_length() for axis in (2, 3, 4))
            self._network.reshape([1, 1, *self.size])  # runs up to a third faster than one of dynamic batch
            self._together = self._compiled({"PERFORMANCE_HINT": "LATENCY"})
        except RuntimeError as error:
            raise CovidnetError(f"OpenVINO can't load {model}: {first_line(error)}") from None
        self.name = full_name("openvino", "cpu", precision)
        self._apart: Any = None
        self._compiling = threading.Lock()
        self._of_thread = threading.local()  # infer requests, which serve one thread at a time
        # not OpenVINO's own queue: a network that is freed while its last callback waits for Python hangs
        self._lanes = ThreadPoolExecutor(self.lanes, thread_name_prefix="lane")

    def run(self, batch: np.ndarray, alone: bool = True) -> Outputs:
        check(batch, self.size)
        if len(batch) > 1:
            parts = self._lanes.map(lambda index: self.run(batch[index : index + 1], alone=False), range(len(batch)))
            rows = ((part.logits, part.probabilities, part.cam) for part in parts)
            return Outputs(*map(np.concatenate, zip(*rows, strict=True)))
        if _RAN.is_set():
            return self._run_one(batch, alone)
        with _FIRST_RUN:
            outputs = self._run_one(batch, alone)
        _RAN.set()
        return outputs

    def _run_one(self, scan: np.ndarray, alone: bool) -> Outputs:
        kind = "together" if alone else "apart"
        if not hasattr(self._of_thread, kind):
            network = self._together if alone else self._side_by_side()
            setattr(self._of_thread, kind, network.create_infer_request())
        results = getattr(self._of_thread, kind).infer({"volume": scan})
        return Outputs(*(results[name] for name in OUTPUTS))

    def _side_by_side(self) -> Any:
        with self._compiling:
            if self._apart is None:
                self._apart = self._compiled({"NUM_STREAMS": self.lanes})
            return self._apart

    def _compiled(self, settings: dict[str, Any]) -> Any:
        return self._core.compile_model(self._network, "CPU", {**self._settings, **settings})


class OnnxRuntimeEngine:
    """ONNX Runtime on CPU; `covidnet.inference.gpu` has it on a GPU."""

    batch = lanes = 1

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

    def run(self, batch: np.ndarray, alone: bool = True) -> Outputs:
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
