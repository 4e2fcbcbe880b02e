"""``POST /v1/feedback`` takes the truth about an answered scan; ``GET /status`` shows how the server and its model fare."""

import asyncio

import orjson
from fastapi import FastAPI, Request, Response

from serving import metrics
from serving.errors import Invalid, TooLarge
from serving.monitoring import status
from serving.monitoring.observer import Observer

MAX_FEEDBACK_BYTES = 1024
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; frame-ancestors 'none'"
MAX_ID_LETTERS = 64


def add_routes(app: FastAPI, observer: Observer) -> None:
    """Add both routes."""

    async def feedback(request: Request) -> Response:
        """``{"request_id": ..., "label": ...}``; the id is the header `x-request-id` of the answer.

        201 once it is on disk, 200 where the same was told before, 404 for an id that is not kept, 409 where another
        label was told before, 503 where it can't be written.
        """
        with metrics.request("feedback"):
            request_id, label = await _truth(request)
            new = await observer.feedback(request_id, label)
        content = {"request_id": request_id, "label": label}
        return Response(orjson.dumps(content), 201 if new else 200, media_type="application/json")

    history = status.History()

    async def sample() -> None:
        while True:
            history.sample()
            await asyncio.sleep(status.SAMPLE_S)

    sampling = asyncio.ensure_future(sample())

    async def page() -> Response:
        content = status.render(observer, history)
        return Response(content, headers={"content-security-policy": POLICY}, media_type="text/html; charset=utf-8")

    app.state.sampling = sampling  # the loop keeps no task alive that nobody holds
    app.add_api_route("/status", page, methods=["GET"], response_model=None)
    app.add_api_route("/v1/feedback", feedback, methods=["POST"], response_model=None)


async def _truth(request: Request) -> tuple[str, str]:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FEEDBACK_BYTES:
            raise TooLarge(f"expected a body of at most {MAX_FEEDBACK_BYTES} bytes")
    try:
        tree = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Invalid("the body is not JSON") from None
    if not isinstance(tree, dict) or set(tree) != {"request_id", "label"}:
        raise Invalid('expected {"request_id": ..., "label": ...} and nothing else')
    request_id, label = tree["request_id"], tree["label"]
    if not isinstance(request_id, str) or not isinstance(label, str) or len(request_id) > MAX_ID_LETTERS:
        raise Invalid(f"request_id and label: expected texts, the id of at most {MAX_ID_LETTERS} letters")
    return request_id, label
