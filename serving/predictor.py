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

from covidnet.data.preprocess import Spec
from covidnet.data.scan import Scan
from covidnet.export.bundle import Bundle
from covidnet.inference.engine import Engine
from covidnet.inference.predict import OUT_OF_DISTRIBUTION, interpret
from serving import answers, decode, heat, metrics, protocol
from serving.answers import Answer
from serving.batcher import Batcher, Row
from serving.decode import Decoded, Decoding
from serving.errors import TooSlow, laying_down
from serving.monitoring.observer import Observer
from serving.protocol import Request, Source, V1Body, V2Body

NAME = "covidnet"
MAX_WAIT_S, MAX_BATCH_S = 0.002, 0.25
TOGETHER = 8  # scans of one request that wait for the network at a time

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
        self._batcher = Batcher(engine, max_wait_s=MAX_WAIT_S, max_batch_s=MAX_BATCH_S)
        self._parser = ThreadPoolExecutor(1, thread_name_prefix="parse")
        self._decoders = ThreadPoolExecutor(decode.PROCESSES, thread_name_prefix="decode")
        self._painter = ThreadPoolExecutor(1, thread_name_prefix="paint")
        self.observer = Observer(bundle, engine.name)

    def load(self) -> bool:
        """Prepare the network for every size of batch, and the decoders, so that the first caller waits for neither."""
        self._batcher.warm(self.spec.size)
        decode.warm()
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
        """The tensors of an answer; `cam` and `cam_scan` come on request only."""
        classes = len(self.bundle.labels)
        return [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, classes]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "energy", "datatype": "FP32", "shape": [-1]},
            {"name": "novelty", "datatype": "FP32", "shape": [-1]},
            {"name": "flags", "datatype": "BYTES", "shape": [-1]},
            {"name": "cam", "datatype": "FP32", "shape": [-1, classes, -1, -1, -1]},
            {"name": "cam_scan", "datatype": "UINT8", "shape": [-1, -1, -1, -1]},
        ]

    async def preprocess(
        self, payload: V1Body | V2Body | InferRequest, headers: dict[str, str] | None = None
    ) -> Request:
        """Validate a request; JSON, which takes many times its size while it is parsed, one at a time.

        Raises:
            Invalid: saying what was expected and found.
        """
        if isinstance(payload, InferRequest) and protocol.is_brief(payload):
            return protocol.parse(payload, self.spec.size)
        return await _in(self._parser, partial(protocol.parse, payload, self.spec.size))

    async def predict(
        self, payload: Request, headers: dict[str, str] | None = None, response_headers: dict[str, str] | None = None
    ) -> dict[str, Any] | InferResponse:
        """The answer in the protocol of the request.

        Raises:
            Unreadable: a file is no usable chest CT.
            TooSlow: the request's own timeout passed.
        """
        if not payload.outputs:
            found = await self._in_time(payload, frozenset())
            return answers.answer_v1(found, self.bundle.version, explain=False)
        found = await self._in_time(payload, payload.maps)
        return answers.answer_v2(found, payload, NAME, self.bundle.version)

    async def explain(self, payload: Request, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """As `predict` for V1, with the class activation maps."""
        found = await self._in_time(payload, payload.maps)
        return await _in(self._painter, partial(answers.answer_v1, found, self.bundle.version, explain=True))

    async def classify(self, sources: Sequence[Source | Path], maps: frozenset[str] = frozenset()) -> list[Answer]:
        """Answers in the order of the sources.

        Args:
            sources: scans.
            maps: with ``cam_scan`` or ``cam_nifti`` each answer has its `ScanMap`.

        Raises:
            Unreadable: a file is no usable chest CT.
            Invalid: a map at the scan's resolution would be too large.
        """
        decoded = [await self._decode(source, draw=False) for source in sources]
        if not maps & heat.ON_SCAN:
            return await self._run(decoded)
        heat.check_size(decoded)
        pairs = zip(decoded, await self._run(decoded), strict=True)
        return [await self._paint(partial(heat.mapped, *pair, maps)) for pair in pairs]

    async def classify_drawn(self, source: Path | Scan) -> tuple[Answer, Decoded]:
        """The answer for one scan, and the scan with its picture.

        Raises:
            Unreadable: it is no usable chest CT.
        """
        decoded = await self._decode(source, draw=True)
        return (await self._run([decoded]))[0], decoded

    async def png(self, decoded: Decoded, answer: Answer) -> bytes:
        """Slices with the predicted class's map."""
        title = f"Predicted {answer.label} ({answer.probabilities[answer.label]:.2f})"
        if OUT_OF_DISTRIBUTION in answer.flags:
            title += ", unlike the training data"
        picture, window_hu = _picture(decoded), self.spec.window_hu
        return await self._paint(partial(heat.png, picture, answer.predicted_cam, title, answer.label, window_hu))

    async def viewer(self, decoded: Decoded, answer: Answer) -> tuple[bytes, bytes]:
        """The scan and the predicted class's map as two NIfTI files on one grid, no finer than a screen."""
        return await self._paint(partial(heat.viewer, _picture(decoded), answer.predicted_cam))

    async def _in_time(self, request: Request, maps: frozenset[str]) -> list[Answer]:
        try:
            async with asyncio.timeout(request.timeout_s):
                return await self.classify(request.sources, maps)
        except TimeoutError:
            raise TooSlow("not answered within the request's timeout") from None

    async def _decode(self, source: Source | Path, *, draw: bool) -> Decoded:
        if isinstance(source, np.ndarray):
            return decode.ready(source)
        if isinstance(source, Scan):
            decoded = await _in(self._decoders, partial(decode.prepared, source, self.spec, draw=draw))
        elif isinstance(source, Path):
            decoded = await self._decode_file(source, draw=draw)
        else:
            # on disk for as long as it is read
            with laying_down(), tempfile.TemporaryDirectory(prefix="covidnet-") as folder:
                path = Path(folder, f"scan{decode.suffix(source[: decode.HEAD_BYTES])}")
                await asyncio.to_thread(path.write_bytes, source)
                decoded = await self._decode_file(path, draw=draw)
        metrics.phase("decode", decoded.decode_s)
        metrics.phase("preprocess", decoded.preprocess_s)
        return decoded

    async def _decode_file(self, path: Path, *, draw: bool) -> Decoded:
        decoding = Decoding(path, self.spec, draw=draw)
        try:
            return await _in(self._decoders, decoding.run)
        except asyncio.CancelledError:  # the deadline passed or the client went: nobody wants the result
            decoding.stop()
            raise

    async def _run(self, scans: Sequence[Decoded]) -> list[Answer]:
        """A few at a time, so that one large request doesn't hold up the others for long."""
        found: list[Answer] = []
        for start in range(0, len(scans), TOGETHER):
            chunk = scans[start : start + TOGETHER]
            rows = await asyncio.gather(*(self._batcher.submit(scan.prepared.volume) for scan in chunk))
            found += [self._answer(scan, row) for scan, row in zip(chunk, rows, strict=True)]
        for answer, scan in zip(found, scans, strict=True):
            self.observer.answered(answer, scan.prepared)
        return found

    def _answer(self, scan: Decoded, row: Row) -> Answer:
        says = interpret(row.logits, row.probabilities, scan.prepared, self.bundle)
        times = {"decode": scan.decode_s, "preprocess": scan.preprocess_s, "queue": row.queue_s}
        return Answer(
            label=says["label"],
            probabilities=says["probabilities"],
            energy=says["energy"],
            novelty=says["novelty"],
            flags=tuple(says["flags"]),
            cam=row.cam,
            seconds={**times, "inference": row.inference_s},
        )

    async def _paint(self, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        painted = await _in(self._painter, work)
        metrics.phase("explain", time.perf_counter() - start)
        return painted


def _picture(decoded: Decoded) -> decode.Picture:
    if decoded.picture is None:
        raise ValueError("expected a scan that was decoded with its picture")
    return decoded.picture


async def _in(pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work)
