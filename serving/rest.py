"""The HTTP side: V1 and V2 over KServe's data plane, with bounded bodies and answers to bad input that say why.

Health and metadata are KServe's handlers. Inference has its own, because KServe's echo the request (its body in a 422,
its headers in `:explain`); KServe's repository routes, through which anyone could unload the model, aren't there.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from kserve.constants.constants import INFERENCE_CONTENT_LENGTH_HEADER
from kserve.errors import ModelNotFound, ModelNotReady, ServerNotReady
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.infer_type import InferResponse
from kserve.protocol.rest.v1_endpoints import V1Endpoints
from kserve.protocol.rest.v2_endpoints import V2Endpoints
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serving import metrics
from serving.access import Access
from serving.errors import Draining, Invalid, NoSuchModel, Refused, TooLarge, TooSlow
from serving.gate import Gate
from serving.guard import Guard, answer_error
from serving.monitoring import gpu
from serving.monitoring.correlation import HttpCorrelation
from serving.predictor import NAME
from serving.protocol import V1Body, V2Body

MAX_BODY_BYTES = 32 * 2**20  # of JSON and binary tensors; larger scans go by gRPC or upload
DEADLINE_S = 80  # of a request, its upload included; a caller may ask for less, and draining takes no longer
DISCARD_S = 5  # for the body of a request that is refused because the server stops
DEADLINE_HEADER = "x-request-timeout-ms"


def application(dataplane: DataPlane, gate: Gate, access: Access) -> FastAPI:
    """The ASGI application: health, metadata, inference in both protocols, and metrics."""
    app = FastAPI(title="covidnet", docs_url=None, redoc_url=None, openapi_url=None)
    _add_health(app, dataplane)
    _add_inference(app, dataplane, gate)
    app.add_api_route("/metrics", _metrics, methods=["GET"], include_in_schema=False)
    for error in (Refused, ModelNotFound, ModelNotReady, ServerNotReady, RequestValidationError, HTTPException):
        app.add_exception_handler(error, answer_error)
    app.add_middleware(Guard, access=access)
    app.add_middleware(HttpCorrelation)
    return app


@asynccontextmanager
async def admitted(request: Request, route: str, gate: Gate, max_bytes: int) -> AsyncIterator[None]:
    """Count a request, hold a place for it until its answer is sent, and end its work at the deadline.

    Raises:
        Busy, Draining: see `Gate`.
        TooLarge: its stated length is above ``max_bytes``.
        TooSlow: the deadline passed.
        Invalid: its own deadline is no number.
    """
    with metrics.request(route):
        try:
            place = gate.admit(_announced(request, max_bytes), request.scope["covidnet.client"])
            request.scope["covidnet.held"].enter_context(place)
        except Draining:
            await _discard(request)
            raise
        deadline_s = _deadline_s(request)
        try:
            async with asyncio.timeout(deadline_s):
                yield
        except TimeoutError:
            raise TooSlow(f"not answered within {deadline_s:g} s, the time of the upload included") from None


async def receive_body(request: Request, max_bytes: int, write: Callable[[bytes], object]) -> None:
    """Hand the body on piece by piece.

    Raises:
        TooLarge: more than ``max_bytes``.
        Invalid: the client went away.
    """
    received = 0
    try:
        async for chunk in request.stream():
            received += len(chunk)
            if received > max_bytes:
                raise TooLarge(_limit(max_bytes))
            write(chunk)
    except ClientDisconnect:
        raise Invalid("the client went away before its body was complete") from None


async def _discard(request: Request) -> None:
    """Read a body, for a while: a connection that is closed with half of it unread loses the refusal as well."""
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(DISCARD_S):
            async for _ in request.stream():
                pass


def _announced(request: Request, max_bytes: int) -> int:
    """Bytes to reserve for a body: its stated length, or the limit where it states none.

    Raises:
        TooLarge: the stated length is above the limit.
    """
    length = request.headers.get("content-length", "" if request.headers.get("transfer-encoding") else "0")
    size = int(length) if length.isdecimal() else max_bytes
    if size > max_bytes:
        raise TooLarge(_limit(max_bytes))
    return size


def _deadline_s(request: Request) -> float:
    text = request.headers.get(DEADLINE_HEADER)
    if text is None:
        return DEADLINE_S
    if not text.isascii() or not text.isdecimal() or not 0 < len(text) < 10:
        raise Invalid(f"{DEADLINE_HEADER}: expected whole milliseconds")
    return min(int(text) / 1000, DEADLINE_S)


def _add_health(app: FastAPI, dataplane: DataPlane) -> None:
    v1, v2 = V1Endpoints(dataplane), V2Endpoints(dataplane)
    for path, endpoint in {
        "/v1/models": v1.models,
        "/v1/models/{model_name}": v1.model_ready,
        "/v2": v2.metadata,
        "/v2/health/live": v2.live,
        "/v2/health/ready": v2.ready,
        "/v2/models": v2.models,
        "/v2/models/{model_name}": v2.model_metadata,
        "/v2/models/{model_name}/ready": v2.model_ready,
    }.items():
        app.add_api_route(path, endpoint, methods=["GET"])


def _add_inference(app: FastAPI, dataplane: DataPlane, gate: Gate) -> None:
    async def predict(model_name: str, request: Request) -> Response:
        async with admitted(request, "v1_predict", gate, MAX_BODY_BYTES):
            payload = V1Body(await _tensor_body(request, model_name))
            return _json((await dataplane.infer(model_name, payload))[0])

    async def explain(model_name: str, request: Request) -> Response:
        async with admitted(request, "v1_explain", gate, MAX_BODY_BYTES):
            payload = V1Body(await _tensor_body(request, model_name))
            return _json((await dataplane.explain(model_name, payload))[0])

    async def infer(model_name: str, request: Request) -> Response:
        async with admitted(request, "v2_infer", gate, MAX_BODY_BYTES):
            body = await _tensor_body(request, model_name)
            payload = V2Body(body, request.headers.get(INFERENCE_CONTENT_LENGTH_HEADER))
            response: InferResponse = (await dataplane.infer(model_name, payload))[0]
            content, json_bytes = response.to_rest()
            if json_bytes is None:
                return _json(content)
            headers = {INFERENCE_CONTENT_LENGTH_HEADER: str(json_bytes)}
            return Response(content, headers=headers, media_type="application/octet-stream")

    for path, endpoint in {
        "/v1/models/{model_name}:predict": predict,
        "/v1/models/{model_name}:explain": explain,
        "/v2/models/{model_name}/infer": infer,
    }.items():
        app.add_api_route(path, endpoint, methods=["POST"], response_model=None)


async def _tensor_body(request: Request, model_name: str) -> bytes:
    if model_name != NAME:
        raise NoSuchModel(f"no such model here; this server has the model {NAME}")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Invalid("expected a body without Content-Encoding")
    parts: list[bytes] = []
    await receive_body(request, MAX_BODY_BYTES, parts.append)
    return b"".join(parts)


def _json(content: object) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")


def _metrics() -> Response:
    gpu.refresh()
    return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


def _limit(max_bytes: int) -> str:
    return f"expected a body of at most {max_bytes // 2**20} MiB; send larger scans to /v1/scans, or by gRPC"
