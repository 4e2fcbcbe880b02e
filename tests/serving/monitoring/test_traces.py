"""Spans and logs: what they tell, and what they never do."""

import json
import logging
import sys

import pytest

from serving import metrics
from serving.errors import Unreadable
from serving.monitoring import traces
from serving.monitoring.correlation import CURRENT, Correlation
from serving.monitoring.logs import JsonFormatter


def refused() -> None:
    with metrics.request("scans"):
        metrics.phase("decode", 0.25)
        raise Unreadable("Doe^Jane")


def test_a_request_is_a_span_with_its_phases_below(monkeypatch: pytest.MonkeyPatch) -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="pip install 'covidnet3d[monitoring]'")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    monkeypatch.setattr(traces, "_tracer", None)
    exporter, provider = InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traces.use(provider)
    correlation = Correlation()
    token = CURRENT.set(correlation)
    with pytest.raises(Unreadable):
        refused()
    CURRENT.reset(token)
    phase, request = exporter.get_finished_spans()
    assert (phase.name, request.name) == ("decode", "scans")
    assert phase.parent.span_id == request.context.span_id
    assert phase.end_time - phase.start_time == pytest.approx(250_000_000)
    assert request.attributes["covidnet.request_id"] == correlation.request_id
    assert request.attributes["covidnet.outcome"] == "unreadable"
    assert "Doe" not in request.to_json()


def test_a_log_line_is_json_with_the_request_and_without_the_texts_of_exceptions() -> None:
    correlation = Correlation()
    token = CURRENT.set(correlation)
    try:
        raise ValueError("Doe^Jane")
    except ValueError:
        record = logging.LogRecord("serving", logging.ERROR, __file__, 1, "it failed: %d", (7,), sys.exc_info())
    line = JsonFormatter().format(record)
    CURRENT.reset(token)
    told = json.loads(line)
    assert told["message"] == "it failed: 7"
    assert told["level"] == "error"
    assert told["request_id"] == correlation.request_id
    assert told["exception"] == "ValueError"
    assert "Doe" not in line
