"""The OpenAPI document names every route, and schemathesis, which draws requests from it, finds the server true to it."""

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from kserve import ModelRepository
from kserve.protocol.dataplane import DataPlane
from toy_volumes import SIZE

from serving import openapi, rest, routes
from serving.access import Access
from serving.gate import Gate
from serving.monitoring import routes as monitoring_routes

if TYPE_CHECKING:
    from conftest import Server

schemathesis = pytest.importorskip("schemathesis", reason="pip install schemathesis")
FOR_PEOPLE = {"/", "/static/{name}", "/status", "/metrics", "/openapi.json"}
# Not whether all that the schema allows is taken (it can't say that a shape is the data's, or that text is a scan), nor
# whether all else is refused (names that are not read are no fault): `benchmarks.fuzz_endpoint` knows more of that.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "unsupported_method",
)
LABELS = ("NCP", "CP", "Normal")


async def application() -> FastAPI:
    gate = Gate(1, 1, 1)
    app = rest.application(DataPlane(ModelRepository()), gate, Access({}))
    nothing: Any = None
    routes.add_routes(app, nothing, gate)
    monitoring_routes.add_routes(app, nothing)
    return app


def test_every_route_is_in_the_document_and_nothing_else() -> None:
    app = asyncio.run(application())
    there = {(route.path, method.lower()) for route in app.routes for method in getattr(route, "methods", ())}
    paths = openapi.document(SIZE, LABELS)["paths"]
    named = {(path, method) for path, item in paths.items() for method in item if method in ("get", "post")}
    assert named == {(path, method) for path, method in there if path not in FOR_PEOPLE}


@pytest.mark.slow
def test_the_server_is_true_to_its_document(server: "Server") -> None:
    """No 5xx; statuses, content types and bodies as the document says; no method that it doesn't name."""
    schemathesis.checks.load_all_checks()
    checks = schemathesis.checks.CHECKS.get_by_names(CHECKS)
    operations = [one.ok() for one in schemathesis.openapi.from_url(f"{server.http}/openapi.json").get_all_operations()]
    assert operations
    for operation in operations:

        @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy())
        def holds(case: Any) -> None:
            case.call_and_validate(checks=checks, timeout=60)

        holds()
