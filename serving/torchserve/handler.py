"""TorchServe's custom service: the KServe predictor's protocols, preprocessing and answers, computed with torch.

It takes V1 and V2 bodies as they come. TorchServe's own KServe envelopes speak one protocol each, answer only the first
of the requests that TorchServe batched, and name V2's outputs after its inputs: leave `service_envelope` unset.
"""

import logging
import os
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from ts.metrics.dimension import Dimension

from covidnet.data.preprocess import Spec
from covidnet.data.scan import Scan
from covidnet.errors import UsageError
from covidnet.export.bundle import Bundle
from covidnet.export.torchserve import BATCH, BUNDLE, NAME, network
from covidnet.inference.predict import OUT_OF_DISTRIBUTION, interpret
from covidnet.models.blocks import ScaleInput
from serving import answers, decode, heat, protocol
from serving.answers import Answer
from serving.decode import Decoded, Decoding
from serving.errors import Refused
from serving.protocol import Request, Source, V1Body, V2Body

JSON_BYTES_HEADER = "inference-header-content-length"

_log = logging.getLogger(__name__)


class Handler:
    """One worker: loads the bundle from the archive, and answers the requests that TorchServe batches for it.

    TorchServe takes a module with exactly one class.
    """

    def initialize(self, context: Any) -> None:
        """Load the verified bundle, and run the network once, so that the first caller doesn't wait for it.

        Raises:
            CovidnetError: the bundle is damaged.
            UsageError: an envelope is configured.
        """
        if os.environ.get("TS_SERVICE_ENVELOPE", "body") not in ("", "body"):
            raise UsageError("TS_SERVICE_ENVELOPE: expected none, for this handler reads V1 and V2 itself; unset it")
        properties = context.system_properties
        gpu = properties.get("gpu_id")
        self._device = torch.device("cpu" if gpu is None or not torch.cuda.is_available() else f"cuda:{gpu}")
        self._bundle = Bundle.load(Path(properties["model_dir"], BUNDLE))
        self._spec = Spec.from_dict(self._bundle.preprocess)
        self._network = network(self._bundle).to(self._device, memory_format=torch.channels_last_3d)
        self._scale = ScaleInput(self._bundle.genotype["channels"])
        self._run(np.zeros((1, 1, *self._spec.size), np.uint8))

    def handle(self, rows: list[dict[str, Any]], context: Any) -> list[bytes]:
        """One answer per request, in their order. A request that is refused leaves the others of its batch alone.

        Args:
            rows: the ``body`` of each request, undecoded.
            context: of TorchServe: headers in, status and content type out.
        """
        read = [self._read(row, context.get_all_request_header(index)) for index, row in enumerate(rows)]
        found = self._classify([scan for one in read if isinstance(one, tuple) for scan in one[1]])
        contents = []
        for index, one in enumerate(read):
            if isinstance(one, Exception):
                contents.append(_refuse(one, context, index))
            else:
                request, scans = one
                own = list(islice(found, len(scans)))
                if request.maps & heat.ON_SCAN:
                    own = [heat.mapped(*pair, request.maps) for pair in zip(scans, own, strict=True)]
                contents.append(self._write(request, own, context, index))
        return contents

    def _read(self, row: dict[str, Any], headers: dict[str, str]) -> tuple[Request, list[Decoded]] | Exception:
        """The validated request with its scans ready for the network, or why there is none."""
        try:
            request = protocol.parse(_body(row, headers), self._spec.size)
            scans = [_decode(source, self._spec) for source in request.sources]
            if request.maps & heat.ON_SCAN:
                heat.check_size(scans)
            return request, scans
        except Refused as error:
            return error
        except Exception as error:  # its text may quote the request, and TorchServe would log it
            place = traceback.extract_tb(error.__traceback__)[-1]
            _log.error("unexpected %s in %s:%d", type(error).__name__, place.name, place.lineno)
            return error

    def _write(self, request: Request, found: list[Answer], context: Any, index: int) -> bytes:
        """The answer in the protocol of the request."""
        for answer in found:
            _count(context, index, "covidnet_predictions_total", label=answer.label)
            if OUT_OF_DISTRIBUTION in answer.flags:
                _count(context, index, "covidnet_out_of_distribution_total")
        _count(context, index, "covidnet_requests_total", outcome="ok")
        context.set_response_content_type(index, "application/json")
        if not request.outputs:
            explain = context.get_request_header(index, "explain") == "True"
            return orjson.dumps(answers.answer_v1(found, self._bundle.version, explain=explain))
        content, json_bytes = answers.answer_v2(found, request, NAME, self._bundle.version).to_rest()
        if json_bytes is None:
            return orjson.dumps(content)
        context.set_response_content_type(index, "application/octet-stream")
        context.set_response_header(index, JSON_BYTES_HEADER, str(json_bytes))
        return bytes(content)

    def _classify(self, scans: Sequence[Decoded]) -> Iterator[Answer]:
        for start in range(0, len(scans), BATCH):
            chunk = scans[start : start + BATCH]
            started = time.perf_counter()
            logits, probabilities, cam = self._run(np.stack([scan.prepared.volume for scan in chunk])[:, None])
            inference_s = time.perf_counter() - started
            for row, scan in enumerate(chunk):
                says = interpret(logits[row], probabilities[row], scan.prepared, self._bundle)
                yield Answer(
                    label=says["label"],
                    probabilities=says["probabilities"],
                    energy=says["energy"],
                    novelty=says["novelty"],
                    flags=tuple(says["flags"]),
                    cam=cam[row],
                    seconds={"decode": scan.decode_s, "preprocess": scan.preprocess_s, "inference": inference_s},
                )

    def _run(self, volume: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logits ``(B, K)``, probabilities ``(B, K)`` and maps ``(B, K, d, h, w)`` of ``uint8 (B, 1, D, H, W)``."""
        with torch.inference_mode():
            scaled = self._scale(torch.from_numpy(volume).to(self._device))  # (B, C, D, H, W)
            logits, cam = self._network.explain(scaled.contiguous(memory_format=torch.channels_last_3d))
            probabilities = torch.softmax(logits / self._bundle.calibration.temperature, dim=1)
        return logits.cpu().numpy(), probabilities.cpu().numpy(), cam.cpu().numpy()


def _body(row: dict[str, Any], headers: dict[str, str]) -> V1Body | V2Body:
    """The request as it came: V2 has ``inputs``, V1 anything else."""
    body = bytes(row.get("body") or b"")
    json_bytes = {name.lower(): value for name, value in headers.items()}.get(JSON_BYTES_HEADER)
    if json_bytes is not None:
        return V2Body(body, json_bytes)
    tree = protocol.read_json(body)
    return V2Body(body, None) if isinstance(tree, dict) and "inputs" in tree else V1Body(body)


def _decode(source: Source, spec: Spec) -> Decoded:
    if isinstance(source, np.ndarray):
        return decode.ready(source)
    if isinstance(source, Scan):
        return decode.prepared(source, spec, draw=False)
    with tempfile.TemporaryDirectory(prefix="covidnet-") as folder:
        path = Path(folder, f"scan{decode.suffix(source[: decode.HEAD_BYTES])}")
        path.write_bytes(source)
        return Decoding(path, spec, draw=False).run()


def _refuse(error: Exception, context: Any, index: int) -> bytes:
    refused = isinstance(error, Refused)
    _count(context, index, "covidnet_requests_total", outcome=error.outcome if refused else "failed")
    context.set_response_status(error.http_status if refused else 500, "", index)
    context.set_response_content_type(index, "application/json")
    return orjson.dumps({"error": str(error) if refused else "internal error"})


def _count(context: Any, index: int, name: str, **labels: str) -> None:
    """Count one, under the KServe predictor's name, so that one dashboard shows both."""
    context.metrics.add_counter(name, 1, index, [Dimension(key, value) for key, value in labels.items()])
