"""What Prometheus sees on `/metrics`. Every label takes its values from a fixed set, so the series stay few."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram, Info

from serving.errors import Refused

# 1 ms (a small network) to 30 s (a large DICOM series on a busy machine)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

REQUESTS = Counter("covidnet_requests", "Requests by route and outcome", ["route", "outcome"])
REQUEST_SECONDS = Histogram("covidnet_request_seconds", "Time from admission to answer", ["route"], buckets=_SECONDS)
PHASE_SECONDS = Histogram("covidnet_phase_seconds", "Time spent in a phase of a request", ["phase"], buckets=_SECONDS)
IN_FLIGHT = Gauge("covidnet_requests_in_flight", "Requests waiting or worked on")
PREDICTIONS = Counter("covidnet_predictions", "Scans by predicted class", ["label"])
OUT_OF_DISTRIBUTION = Counter("covidnet_out_of_distribution", "Scans unlike the training data")
BUNDLE = Info("covidnet_bundle", "The model that is served")


@contextmanager
def request(route: str) -> Iterator[None]:
    """Count one request with its outcome: ``ok``, the reason of a refusal, or ``failed``."""
    start = time.perf_counter()
    outcome = "failed"
    IN_FLIGHT.inc()
    try:
        yield
        outcome = "ok"
    except Refused as error:
        outcome = error.outcome
        raise
    finally:
        IN_FLIGHT.dec()
        REQUESTS.labels(route, outcome).inc()
        REQUEST_SECONDS.labels(route).observe(time.perf_counter() - start)
