"""http.md and openapi.json: the routes of the server as it registers them."""

import asyncio
import json
from typing import Any, NamedTuple, cast

from fastapi.routing import APIRoute
from kserve.model_repository import ModelRepository
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from docs.generate.markdown import NOTE, explained, table
from serving import errors, rest, routes, rpc
from serving.access import OPEN_METHODS, OPEN_ROUTES, Access
from serving.gate import Gate
from serving.monitoring import routes as monitoring
from serving.openapi import document

_JSON, _BYTES, _TEXT, _HTML = "application/json", "application/octet-stream", "text/plain", "text/html"


class _About(NamedTuple):
    """What a route does, the media types of its answer, and how much it takes."""

    what: str
    answers: tuple[str, ...] = (_JSON,)
    max_bytes: int = 0


_ROUTES = {
    "/": _About("The page", (_HTML,)),
    "/openapi.json": _About("These routes in OpenAPI 3.1, but for those that people look at"),
    "/static/{name}": _About("What the page needs", ("text/css", "text/javascript")),
    "/v1/scans": _About(
        "Classify a file: NIfTI, or a zip of one DICOM series. `Accept` chooses the answer; `?overlay=true` adds a picture",
        (_JSON, routes.PNG, routes.NIFTI, routes.FORM),
        routes.MAX_UPLOAD_BYTES,
    ),
    "/v1/phantoms/{label}": _About(
        "Classify a synthetic scan of a class", (_JSON, routes.PNG, routes.NIFTI, routes.FORM)
    ),
    "/v1/feedback": _About("Tell the truth about an answered scan", max_bytes=monitoring.MAX_FEEDBACK_BYTES),
    "/status": _About("How server and model fare, for people", (_HTML,)),
    "/metrics": _About("Metrics for Prometheus", (_TEXT,)),
    "/v1/models": _About("Names of the models"),
    "/v1/models/{model_name}": _About("Whether the model is ready"),
    "/v1/models/{model_name}:predict": _About("KServe V1: `instances` to `predictions`", max_bytes=rest.MAX_BODY_BYTES),
    "/v1/models/{model_name}:explain": _About("The same with class activation maps", max_bytes=rest.MAX_BODY_BYTES),
    "/v2": _About("Name, version and extensions of the server"),
    "/v2/health/live": _About("Whether the process answers"),
    "/v2/health/ready": _About("Whether it takes work; 503 while it is stopping"),
    "/v2/models": _About("Names of the models"),
    "/v2/models/{model_name}": _About("Inputs and outputs with types and shapes"),
    "/v2/models/{model_name}/ready": _About("Whether the model is ready"),
    "/v2/models/{model_name}/infer": _About(
        "Open Inference Protocol, JSON or binary tensors", (_JSON, _BYTES), rest.MAX_BODY_BYTES
    ),
}
_CALLS = {
    "ServerLive": "whether the process answers",
    "ServerReady": "whether it takes work",
    "ModelReady": "whether the model is ready",
    "ServerMetadata": "name, version and extensions of the server",
    "ModelMetadata": "inputs and outputs with types and shapes",
    "ModelInfer": f"inference; messages of at most {rpc.MAX_MESSAGE_BYTES // 2**20} MiB",
    "RepositoryModelLoad": "refused: a caller can't change what is served",
    "RepositoryModelUnload": "refused",
}


def page() -> str:
    """The whole page."""
    found = _routes()
    explained(found, {path: about.what for path, about in _ROUTES.items()})
    calls = explained((m.name for m in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods), _CALLS)
    return "\n".join(
        [
            "# HTTP and gRPC\n",
            NOTE,
            "The model's name is `covidnet`. [Serving](../serving.md) has examples of every kind, tensors and "
            "their shapes, and "
            "limits. [openapi.json](openapi.json) is what the server says at `/openapi.json`, for tools (OpenAPI 3.1).\n",
            table(("route", "what", "answers", "body of at most"), [_row(path, found[path]) for path in found]),
            f"Open without a token where the server asks for one: "
            f"{', '.join(f'`{r}`' for r in sorted(OPEN_ROUTES))} and the page. "
            f"A request ends after {rest.DEADLINE_S} s, or after the milliseconds of the header "
            f"`{rest.DEADLINE_HEADER}`. Every "
            "answer has a header `x-request-id`.\n",
            "## gRPC\n",
            "`inference.GRPCInferenceService` (Open Inference Protocol, port 8081), the token as metadata "
            "`authorization`; open "
            f"without one: {', '.join(f'`{m}`' for m in sorted(OPEN_METHODS))}.\n",
            table(("call", "what"), calls),
            "## Refusals\n",
            '`{"error": "..."}`, or a gRPC status with such a message; nothing of the request is quoted.\n',
            table(("HTTP", "gRPC", "when"), _refusals()),
        ]
    )


def openapi() -> str:
    """What the server says at `/openapi.json`, for a bundle of the paper's size and classes."""
    return json.dumps(document((32, 128, 128), ("NCP", "CP", "Normal")), indent=1) + "\n"


def _routes() -> dict[str, str]:
    """Path to method, of the application that the server runs."""

    async def build() -> dict[str, str]:  # the status page starts a task
        gate = Gate(1, 1, 1)
        app = rest.application(DataPlane(ModelRepository()), gate, Access({}))
        routes.add_routes(app, cast(Any, None), gate)
        monitoring.add_routes(app, cast(Any, None))
        app.state.sampling.cancel()
        return {route.path: min(route.methods) for route in app.routes if isinstance(route, APIRoute)}

    return asyncio.run(build())


def _row(path: str, method: str) -> tuple[str, str, str, str]:
    about = _ROUTES[path]
    size = about.max_bytes
    limit = "" if not size else f"{size // 2**20} MiB" if size >= 2**20 else f"{size // 2**10} KiB"
    return f"`{method} {path}`", about.what, ", ".join(about.answers), limit


def _refusals() -> list[tuple[str, str, str]]:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.Refused)]
    stated = [kind for kind in kinds if "http_status" in vars(kind)]
    rows = sorted(
        (kind.http_status, kind.grpc_status.name, (kind.__doc__ or "").strip().split("\n")[0]) for kind in stated
    )
    return [(str(status), name, why) for status, name, why in rows]
