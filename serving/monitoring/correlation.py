"""One random id per request: in the answer's header `x-request-id`, in every log line and span, and in feedback.

A caller's own id is never taken over: it may name a patient.
"""

import secrets
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

from grpc.aio import ServicerContext
from grpc_interceptor.server import AsyncServerInterceptor
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-request-id"


class Correlation:
    """The request that is being answered; its scans are numbered.

    The id of its only scan is the request's; of several, the second has the ending ``.1``, the third ``.2``.
    """

    def __init__(self) -> None:
        self.request_id = secrets.token_hex(16)
        self._scans = 0

    def next_scan(self) -> str:
        """Id of another scan of the request."""
        number, self._scans = self._scans, self._scans + 1
        return f"{self.request_id}.{number}" if number else self.request_id


CURRENT: ContextVar[Correlation | None] = ContextVar("correlation", default=None)


class HttpCorrelation:
    """Gives each HTTP request its id, and tells the caller."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        correlation = Correlation()
        header = (HEADER.encode(), correlation.request_id.encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], header]
            await send(message)

        token = CURRENT.set(correlation)
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            CURRENT.reset(token)


class _Metadatum(NamedTuple):
    """A pair whose parts have the names by which KServe reads them."""

    key: str
    value: str


class GrpcCorrelation(AsyncServerInterceptor):
    """Gives each call its id, and tells the caller in the trailing metadata, refusals included.

    Initial metadata would cost a message of its own, and end a client's own retry policy at the first refusal.
    """

    async def intercept(
        self, method: Callable[..., Any], request_or_iterator: Any, context: ServicerContext, method_name: str
    ) -> Any:
        """Answer one call."""
        correlation = Correlation()
        CURRENT.set(correlation)  # a call has a task, so a context, of its own
        context.set_trailing_metadata((_Metadatum(HEADER, correlation.request_id),))
        return await method(request_or_iterator, context)
