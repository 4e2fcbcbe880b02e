"""What every HTTP request passes first and every answer last: identity, origin, errors, security headers."""

import asyncio
import logging
import traceback
from contextlib import ExitStack
from http import HTTPStatus

import orjson
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from kserve.errors import ModelNotFound
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.access import OPEN_ROUTES, Access
from serving.errors import RETRY_AFTER_S, Busy, CrossOrigin, Draining, Refused, Unauthenticated
from serving.predictor import NAME

SEND_S = 60  # for each piece of an answer; a client that reads no faster is cut off, for the answer takes memory
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
PAGE = ("/", "/static/")  # holds nothing but what everyone can read in the repository

_log = logging.getLogger(__name__)


class Guard:
    """Lets in who may ask, adds `HEADERS` to every answer, and turns what nobody foresaw into a plain 500.

    Starlette's own handler would raise the exception again, and its text would end up in the server's log. What a
    request holds (``scope["covidnet.held"]``) is given back once its answer is sent, not when it is made.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                present = {name for name, _ in message["headers"]}
                extra = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in present]
                message["headers"] = [*message["headers"], *extra]
            async with asyncio.timeout(SEND_S):
                await send(message)

        with ExitStack() as held:
            scope["covidnet.held"] = held
            try:
                scope["covidnet.client"] = self._client(scope)
                await self._app(scope, receive, send_guarded)
            except Refused as error:
                await answer_error(Request(scope), error)(scope, receive, send_guarded)
            except Exception as error:
                log_unexpected(error)
                if not started:
                    await _error(500, "internal error")(scope, receive, send_guarded)

    def _client(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        # browsers send a page's requests to other sites too, and say so; nobody else names an origin
        if origin is not None and origin.partition("://")[2] != headers.get("host"):
            raise CrossOrigin("requests from pages of other sites are not answered")
        path = scope["path"]
        if path in OPEN_ROUTES or path == PAGE[0] or path.startswith(PAGE[1]):
            return None
        return self._access.client(headers.get("authorization"), (scope.get("client") or ("",))[0])


def answer_error(request: Request, error: Exception) -> Response:
    """Errors in the protocols' form, ``{"error": ...}``, with nothing of the request in them."""
    if isinstance(error, Refused):
        headers = {"retry-after": str(RETRY_AFTER_S)} if isinstance(error, Busy | Draining) else {}
        if isinstance(error, Draining):  # the next request on this connection might come when it is being closed
            headers["connection"] = "close"
        if isinstance(error, Unauthenticated):
            headers = {"www-authenticate": "Bearer"}
        return _error(error.http_status, str(error), headers)
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


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps({"error": message}), status, headers, "application/json")
