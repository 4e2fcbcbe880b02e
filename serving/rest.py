"""The HTTP side: V1 and V2 over KServe's data plane, with bounded bodies and answers to bad input that say why.

Health and metadata are KServe's handlers. Inference has its own, because KServe's echo the request (its body in a 422,
its headers in `:explain`); KServe's repository routes, through which anyone could unload the model, aren't there.
"""

import asyncio
import logging
import traceback
from collections.abc import Callable
from http import HTTPStatus

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
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import metrics
from serving.errors import RETRY_AFTER_S, Busy, Draining, Invalid, NoSuchModel, Refused, TooLarge, TooSlow
from serving.gate import Gate
from serving.monitoring.correlation import HttpCorrelation
from serving.predictor import NAME
from serving.protocol import V1Body, V2Body

MAX_BODY_BYTES = 32 * 2**20  # of JSON and binary tensors; larger scans go by gRPC or upload
BODY_DEADLINE_S = 120
HEADERS = {
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

_log = logging.getLogger(__name__)


def application(dataplane: DataPlane, gate: Gate) -> FastAPI:
    """The ASGI application: health, metadata, inference in both protocols, and metrics."""
    app = FastAPI(title="covidnet", docs_url=None, redoc_url=None, openapi_url=None)
    _add_health(app, dataplane)
    _add_inference(app, dataplane, gate)
    app.add_api_route("/metrics", _metrics, methods=["GET"], include_in_schema=False)
    for error in (Refused, ModelNotFound, ModelNotReady, ServerNotReady, RequestValidationError, HTTPException):
        app.add_exception_handler(error, answer_error)
    app.add_middleware(_Outermost)
    app.add_middleware(HttpCorrelation)
    return app


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body.

    Raises:
        TooLarge: more than ``max_bytes``.
        TooSlow: it didn't arrive within `BODY_DEADLINE_S`.
        Invalid: the client went away.
    """
    parts: list[bytes] = []
    await receive_body(request, max_bytes, parts.append)
    return b"".join(parts)


async def receive_body(request: Request, max_bytes: int, write: Callable[[bytes], object]) -> None:
    """Hand the body on piece by piece; errors as in `read_body`."""
    received = 0
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            async for chunk in request.stream():
                received += len(chunk)
                if received > max_bytes:
                    raise TooLarge(_limit(max_bytes))
                write(chunk)
    except TimeoutError:
        raise TooSlow(f"the body didn't arrive within {BODY_DEADLINE_S} s") from None
    except ClientDisconnect:
        raise Invalid("the client went away before its body was complete") from None


def announced(request: Request, max_bytes: int) -> int:
    """Bytes to reserve for a body: its stated length, or the limit where it states none.

    Raises:
        TooLarge: the stated length is above the limit.
    """
    length = request.headers.get("content-length", "")
    size = int(length) if length.isdecimal() else max_bytes
    if size > max_bytes:
        raise TooLarge(_limit(max_bytes))
    return size


def answer_error(request: Request, error: Exception) -> Response:
    """Errors in the protocols' form, ``{"error": ...}``, with nothing of the request in them."""
    if isinstance(error, Refused):
        wait = {"retry-after": str(RETRY_AFTER_S)} if isinstance(error, Busy | Draining) else {}
        return _error(error.http_status, str(error), wait)
    if isinstance(error, ModelNotFound):
        return _error(404, f"no such model here; this server has the model {NAME}")
    if isinstance(error, HTTPException):
        message = "no such route here" if error.status_code == 404 else HTTPStatus(error.status_code).phrase.lower()
        return _error(error.status_code, message, dict(error.headers or {}))
    if isinstance(error, RequestValidationError):
        return _error(400, "the request has not the expected form")
    return _error(503, "not ready: still loading, or about to stop")


def log_unexpected(error: Exception) -> None:
    """Where it happened, without the error's text, which may quote the request."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    place = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
    _log.error("unexpected %s in %s", type(error).__name__, place)


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
        with metrics.request("v1_predict"), gate.admit(announced(request, MAX_BODY_BYTES)):
            payload = V1Body(await _tensor_body(request, model_name))
            return _json((await dataplane.infer(model_name, payload))[0])

    async def explain(model_name: str, request: Request) -> Response:
        with metrics.request("v1_explain"), gate.admit(announced(request, MAX_BODY_BYTES)):
            payload = V1Body(await _tensor_body(request, model_name))
            return _json((await dataplane.explain(model_name, payload))[0])

    async def infer(model_name: str, request: Request) -> Response:
        with metrics.request("v2_infer"), gate.admit(announced(request, MAX_BODY_BYTES)):
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
    return await read_body(request, MAX_BODY_BYTES)


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps({"error": message}), status, headers, "application/json")


def _json(content: object) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")


def _metrics() -> Response:
    return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


def _limit(max_bytes: int) -> str:
    return f"expected a body of at most {max_bytes // 2**20} MiB; send larger scans to /v1/scans, or by gRPC"


class _Outermost:
    """Adds `HEADERS` to every answer, and turns what nobody foresaw into a plain 500.

    Starlette's own handler would raise the exception again, and its text would end up in the server's log.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                present = {name for name, _ in message["headers"]}
                extra = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in present]
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            log_unexpected(error)
            if not started:
                await _error(500, "internal error")(scope, receive, send_with_headers)
