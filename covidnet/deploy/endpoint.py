"""A served model, asked over REST in the Open Inference Protocol (V2), which every KServe runtime speaks."""

import json
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import numpy as np

from covidnet.errors import CovidnetError

MODEL = "covidnet"


class EndpointError(CovidnetError):
    """The endpoint refused, failed or gave no answer."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What the model says of a batch.

    Args:
        probabilities: ``float32 (B, K)``.
        flags: per scan, where the runtime gives them; else empty.
        version: of the model, as the runtime tells it.
        seconds: from sending to the whole answer.
    """

    probabilities: np.ndarray
    flags: tuple[tuple[str, ...], ...]
    version: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is served.

    Args:
        url: of the service.
        gateway: address to send to in place of the URL's own host, which is then the ``Host`` header; for clusters whose
            service names don't resolve where this runs.
        timeout_s: of one request.
    """

    url: str
    gateway: str | None = None
    timeout_s: float = 60.0

    def ready(self) -> bool:
        """Whether the model takes requests."""
        try:
            return self._send("GET", f"/v2/models/{MODEL}/ready").is_success
        except EndpointError:
            return False

    def classify(self, volumes: np.ndarray) -> Answers:
        """Probabilities of prepared volumes, ``uint8 (B, D, H, W)``.

        Raises:
            EndpointError: no answer, or another one than 200.
        """
        batch = np.ascontiguousarray(volumes[:, None])  # (B, 1, D, H, W), as the ONNX file has it
        return self._infer("volume", "UINT8", batch.shape, batch.tobytes())

    def classify_file(self, content: bytes) -> Answers:
        """Probabilities of a scan file, decoded and prepared by the server; only our own predictor knows this input.

        Raises:
            EndpointError: no answer, or another one than 200.
        """
        return self._infer("file", "BYTES", (1,), len(content).to_bytes(4, "little") + content)

    def _infer(self, name: str, datatype: str, shape: tuple[int, ...], raw: bytes) -> Answers:
        tensor = {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
        head = json.dumps({"inputs": [tensor]}).encode()
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
        started = time.perf_counter()
        answer = self._send("POST", f"/v2/models/{MODEL}/infer", headers, head + raw)
        seconds = time.perf_counter() - started
        if answer.status_code != 200:
            raise EndpointError(f"the endpoint answered {answer.status_code} to {name} of shape {list(shape)}")
        try:
            tree = answer.json()
            outputs = {output["name"]: output for output in tree["outputs"]}
            found = outputs["probabilities"]
            probabilities = np.array(found["data"], np.float32).reshape(found["shape"])
            flags = tuple(tuple(json.loads(text)) for text in outputs["flags"]["data"]) if "flags" in outputs else ()
        except (ValueError, KeyError, TypeError):
            raise EndpointError("the endpoint's answer has no probabilities in the form of protocol V2") from None
        return Answers(probabilities, flags, str(tree.get("model_version", "")), seconds)

    def _send(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> httpx.Response:
        headers = {**(headers or {}), "Host": urlsplit(self.url).netloc}
        address = (self.gateway or self.url).rstrip("/") + path
        try:
            return httpx.request(method, address, headers=headers, content=body, timeout=self.timeout_s)
        except httpx.HTTPError as error:
            raise EndpointError(f"no answer from {self.gateway or self.url}: {type(error).__name__}") from None
