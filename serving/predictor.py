"""The KServe model. Decoding has its own processes and the network its thread, so that the event loop stays free."""

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from kserve import InferRequest, InferResponse, Model

from covidnet.data.preprocess import Prepared, Spec, box_to_scan
from covidnet.data.scan import Scan
from covidnet.evaluation import cam
from covidnet.export.bundle import Bundle
from covidnet.inference.engine import Engine, Outputs
from covidnet.inference.predict import OUT_OF_DISTRIBUTION, interpret
from serving import decode, metrics, protocol
from serving.decode import Decoded
from serving.monitoring.observer import Observer
from serving.protocol import Answer, Request, Source, V1Body, V2Body

NAME = "covidnet"
DECODERS = 2  # at once; each may hold a whole scan
BATCH = 8  # volumes per run of the network, so that one large request doesn't hold up the others for long

T = TypeVar("T")


class Predictor(Model):
    """Serves one bundle under the name `covidnet`.

    Args:
        bundle: verified.
        engine: the bundle's network, loaded.
    """

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        super().__init__(NAME)
        self.bundle = bundle
        self.spec = Spec.from_dict(bundle.preprocess)
        self._engine = engine
        self._parser = ThreadPoolExecutor(1, thread_name_prefix="parse")
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        self._network = ThreadPoolExecutor(1, thread_name_prefix="network")
        self.observer = Observer(bundle, engine.name)

    def load(self) -> bool:
        """Run the network once, so that the first caller doesn't wait for its allocations; then be ready."""
        self._engine.run(np.zeros((1, 1, *self.spec.size), np.uint8))
        self.ready = True
        return True

    def get_input_types(self) -> list[dict[str, Any]]:
        """The tensors of a request, of which each gives `volume`, or `scan_hu` and `spacing_mm`, or `file`."""
        return [
            {"name": "volume", "datatype": "UINT8", "shape": [-1, *self.spec.size]},
            {"name": "scan_hu", "datatype": "INT16", "shape": [-1, -1, -1]},
            {"name": "spacing_mm", "datatype": "FP32", "shape": [3]},
            {"name": "file", "datatype": "BYTES", "shape": [1]},
        ]

    def get_output_types(self) -> list[dict[str, Any]]:
        """The tensors of an answer; `cam` comes on request only."""
        classes = len(self.bundle.labels)
        return [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, classes]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "energy", "datatype": "FP32", "shape": [-1]},
            {"name": "novelty", "datatype": "FP32", "shape": [-1]},
            {"name": "flags", "datatype": "BYTES", "shape": [-1]},
            {"name": "cam", "datatype": "FP32", "shape": [-1, classes, -1, -1, -1]},
        ]

    async def preprocess(
        self, payload: V1Body | V2Body | InferRequest, headers: dict[str, str] | None = None
    ) -> Request:
        """Validate a request, one at a time: JSON takes many times its size while it is parsed.

        Raises:
            Invalid: saying what was expected and found.
        """
        return await _in(self._parser, partial(protocol.parse, payload, self.spec.size))

    async def predict(
        self, payload: Request, headers: dict[str, str] | None = None, response_headers: dict[str, str] | None = None
    ) -> dict[str, Any] | InferResponse:
        """The answer in the protocol of the request.

        Raises:
            Unreadable: a file is no usable chest CT.
        """
        answers = await self.classify(payload.sources)
        if payload.outputs:
            return protocol.answer_v2(answers, payload, NAME, self.bundle.version)
        return protocol.answer_v1(answers, self.bundle.version, cam=False)

    async def explain(self, payload: Request, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """As `predict` for V1, with the class activation maps.

        Raises:
            Unreadable: a file is no usable chest CT.
        """
        return protocol.answer_v1(await self.classify(payload.sources), self.bundle.version, cam=True)

    async def classify(self, sources: Sequence[Source | Path]) -> list[Answer]:
        """Answers in the order of the sources.

        Raises:
            Unreadable: a file is no usable chest CT.
        """
        decoded = [await self._decode(source, draw=False) for source in sources]
        return await self._run(decoded)

    async def classify_drawn(self, source: Path | Scan) -> tuple[Answer, bytes]:
        """The answer for one scan, and a PNG of its slices with the map of the predicted class.

        Raises:
            Unreadable: it is no usable chest CT.
        """
        decoded = await self._decode(source, draw=True)
        answer = (await self._run([decoded]))[0]
        drawing = time.perf_counter()
        picture = await asyncio.to_thread(_draw, decoded, answer)
        metrics.phase("explain", time.perf_counter() - drawing)
        return answer, picture

    async def _decode(self, source: Source | Path, *, draw: bool) -> Decoded:
        if isinstance(source, np.ndarray):
            depth, height, width = source.shape
            return Decoded(Prepared(source, ((0, depth), (0, height), (0, width)), {}, ()), None, 0.0, 0.0)
        if isinstance(source, Scan):
            work = partial(decode.prepared, source, self.spec, draw=draw)
        elif isinstance(source, bytes):
            work = partial(_read_bytes, source, self.spec)
        else:
            work = partial(decode.read, source, self.spec, draw=draw)
        decoded = await _in(self._decoders, work)
        metrics.phase("decode", decoded.decode_s)
        metrics.phase("preprocess", decoded.preprocess_s)
        return decoded

    async def _run(self, scans: Sequence[Decoded]) -> list[Answer]:
        answers = []
        for start in range(0, len(scans), BATCH):
            chunk = scans[start : start + BATCH]
            batch = np.stack([scan.prepared.volume for scan in chunk])[:, None]  # (B, 1, D, H, W)
            queued = time.perf_counter()
            with metrics.QUEUE.track_inprogress():
                outputs, inference_s = await _in(self._network, partial(_timed, self._engine.run, batch))
            metrics.phase("queue", time.perf_counter() - queued - inference_s)
            metrics.phase("inference", inference_s)
            metrics.BATCH.observe(len(chunk))
            answers += [self._answer(scan, outputs, row, inference_s) for row, scan in enumerate(chunk)]
        for answer, scan in zip(answers, scans, strict=True):
            self.observer.answered(answer, scan.prepared)
        return answers

    def _answer(self, scan: Decoded, outputs: Outputs, row: int, inference_s: float) -> Answer:
        found = interpret(outputs.logits[row], outputs.probabilities[row], scan.prepared, self.bundle)
        return Answer(
            label=found["label"],
            probabilities=found["probabilities"],
            energy=found["energy"],
            novelty=found["novelty"],
            flags=tuple(found["flags"]),
            cam=outputs.cam[row],
            seconds={"decode": scan.decode_s, "preprocess": scan.preprocess_s, "inference": inference_s},
        )


def _read_bytes(content: bytes, spec: Spec) -> Decoded:
    """Decode a file that came inside a request; it lies on disk for as long as it is read."""
    suffix = decode.suffix(content[: decode.HEAD_BYTES])
    with tempfile.TemporaryDirectory(prefix="covidnet-") as folder:
        path = Path(folder, f"scan{suffix}")
        path.write_bytes(content)
        return decode.read(path, spec, draw=False)


def _draw(decoded: Decoded, answer: Answer) -> bytes:
    picture = decoded.picture
    if picture is None:
        raise ValueError("expected a scan that was decoded with its picture")
    row = list(answer.probabilities).index(answer.label)
    heat = box_to_scan(answer.cam[row], picture.box, picture.grey.shape)  # (D, H, W)
    title = f"Predicted {answer.label} ({answer.probabilities[answer.label]:.2f})"
    if OUT_OF_DISTRIBUTION in answer.flags:
        title += ", unlike the training data"
    return cam.png(cam.montage(picture.grey, heat, title, label=answer.label))


def _timed(run: Callable[[np.ndarray], Outputs], batch: np.ndarray) -> tuple[Outputs, float]:
    start = time.perf_counter()
    return run(batch), time.perf_counter() - start


async def _in(pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work)
