"""OpenTelemetry spans: one per request, and one below it per phase; nothing happens where no SDK is installed or set up.

Set up as OpenTelemetry's own variables say: OTEL_EXPORTER_OTLP_ENDPOINT switches it on, OTEL_SERVICE_NAME names the
service. Spans carry the request's id, route and outcome, and nothing that a caller sent.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serving.monitoring.correlation import CURRENT

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_tracer: Any = None


def configure() -> None:
    """Send spans to the collector that the variables name, if they name one.

    Raises:
        UsageError: they do, and the SDK isn't installed.
    """
    if not os.environ.get(ENDPOINT):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError:
        from covidnet.errors import UsageError

        raise UsageError(f"{ENDPOINT} is set; traces need `pip install 'covidnet3d[monitoring]'`") from None
    os.environ.setdefault("OTEL_SERVICE_NAME", "covidnet")
    provider = TracerProvider(resource=Resource.create())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    use(provider)


def use(provider: Any) -> None:
    """Make spans with a provider of OpenTelemetry's."""
    global _tracer
    _tracer = provider.get_tracer("covidnet.serving")


@contextmanager
def request(route: str, protocol: str) -> Iterator[dict[str, str]]:
    """A span over a request; the dictionary's entries become attributes at its end."""
    attributes: dict[str, str] = {}
    if _tracer is None:
        yield attributes
        return
    correlation = CURRENT.get()
    known = {"covidnet.route": route, "covidnet.protocol": protocol}
    if correlation is not None:
        known["covidnet.request_id"] = correlation.request_id
    quiet = {"record_exception": False, "set_status_on_exception": False}  # an exception's text may quote the request
    with _tracer.start_as_current_span(route, attributes=known, **quiet) as span:
        try:
            yield attributes
        finally:
            span.set_attributes(attributes)


def phase(name: str, seconds: float) -> None:
    """A span that has just ended, within the current request's."""
    if _tracer is not None:
        end_ns = time.time_ns()
        _tracer.start_span(name, start_time=end_ns - round(seconds * 1e9)).end(end_ns)
