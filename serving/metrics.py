"""What Prometheus sees on `/metrics`. Every label takes its values from a fixed set, so the series stay few.

Several processes on one port share these where the variable PROMETHEUS_MULTIPROC_DIR names an empty folder. For that
reason facts about the model are gauges of value 1, which that mode can add up, and not of the client's type `Info`.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from serving.errors import Refused
from serving.monitoring import traces

PHASES = ("queue", "decode", "preprocess", "inference", "explain")
ROUTES = {
    "http": ("v1_predict", "v1_explain", "v2_infer", "scans", "phantoms", "feedback"),
    "grpc": ("v2_infer",),
}
_ANSWERED = ("ok", "late", "failed")  # outcomes that say how fast the server is; a refusal is always fast
# 1 ms (a small network) to 30 s (a large DICOM series on a busy machine)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)

REQUESTS = Counter("covidnet_requests", "Requests by route, protocol and outcome", ["route", "protocol", "outcome"])
REQUEST_SECONDS = Histogram(
    "covidnet_request_seconds",
    "Time to the answer of requests that were not refused",
    ["route", "protocol"],
    buckets=_SECONDS,
)
REJECTED = Counter("covidnet_rejected_requests", "Requests that were refused, by reason", ["reason"])
IN_FLIGHT = Gauge("covidnet_requests_in_flight", "Requests waiting or worked on", multiprocess_mode="livesum")
QUEUE = Gauge("covidnet_queue_scans", "Scans that wait for the network or are in it", multiprocess_mode="livesum")
QUEUE_LIMIT = Gauge("covidnet_requests_limit", "Requests that are let in at once", multiprocess_mode="livesum")
BATCH = Histogram("covidnet_batch_scans", "Scans per run of the network", buckets=(1, 2, 4, 8, 16, 32, 64))
PHASE_SECONDS = Histogram("covidnet_phase_seconds", "Time spent in a phase of a request", ["phase"], buckets=_SECONDS)
BUNDLE = Gauge(
    "covidnet_bundle_info",
    "The model that is served",
    ["version", "model", "engine", "classes"],
    multiprocess_mode="livemax",
)

GPU_MEMORY_USED = Gauge(
    "covidnet_gpu_memory_used_bytes",
    "Memory in use on a GPU, by whomever; absent without a GPU",
    ["gpu"],
    multiprocess_mode="livemostrecent",
)
GPU_MEMORY = Gauge("covidnet_gpu_memory_bytes", "Memory of a GPU", ["gpu"], multiprocess_mode="livemostrecent")
GPU_UTILISATION = Gauge(
    "covidnet_gpu_utilization_ratio",
    "Share of the last moments in which a GPU was at work, by whomever",
    ["gpu"],
    multiprocess_mode="livemostrecent",
)

PREDICTIONS = Counter("covidnet_predictions", "Scans by predicted class", ["label"])
CONFIDENCE = Histogram("covidnet_confidence_ratio", "Probability of the predicted class", buckets=_SHARES)
ENTROPY = Histogram(
    "covidnet_entropy_ratio", "Entropy of the probabilities, 1 where all classes are alike", buckets=_SHARES
)
OOD_SCORE = Histogram(
    "covidnet_out_of_distribution_score",
    "Logarithm of the distance from the training data, in thresholds; a scan above 0 is flagged",
    buckets=(-1, -0.6, -0.4, -0.2, -0.1, 0, 0.1, 0.2, 0.4, 0.6, 1, 1.5, 2, 3),
)
OUT_OF_DISTRIBUTION = Counter("covidnet_out_of_distribution", "Scans unlike the training data")
NO_LUNGS = Counter("covidnet_no_lungs_found", "Scans in which no two lungs were found")

SLICES = Histogram("covidnet_input_slices", "Slices of a scan", buckets=(16, 32, 64, 128, 256, 512, 1024))
SPACING = Histogram(
    "covidnet_input_spacing_meters",
    "Distance of voxel centres, by axis",
    ["axis"],
    buckets=(3e-4, 5e-4, 7e-4, 1e-3, 1.5e-3, 2e-3, 3e-3, 5e-3, 8e-3, 1.2e-2),
)
HOUNSFIELD = Histogram(
    "covidnet_input_hounsfield",
    "Hounsfield units of the analysed box of a scan, by statistic",
    ["statistic"],
    buckets=(-1000, -950, -900, -800, -700, -600, -500, -400, -300, -200, -100, 0, 100, 200, 400),
)
LUNG_VOLUME = Histogram("covidnet_input_lung_liters", "Volume of the lungs", buckets=(0.5, 1, 2, 3, 4, 5, 6, 8, 10))
LUNG_SHARE = Histogram("covidnet_input_lung_ratio", "Volume of the lungs within the body's", buckets=_SHARES)

DRIFT = Gauge(
    "covidnet_drift_ratio",
    "Distance of the last scans to the training data, over its limit: above 1 is drift",
    ["feature"],
    multiprocess_mode="livemax",
)
DRIFT_SCANS = Gauge("covidnet_drift_window_scans", "Scans that drift is judged by", multiprocess_mode="livemin")
DRIFT_ALARMS = Counter("covidnet_drift_alarms", "Times that a feature's drift went above its limit", ["feature"])
TENTHS = Counter(
    "covidnet_feature_tenth_scans",
    "Scans by the tenth of the training data that a feature falls in, alike for all tenths without drift",
    ["feature", "tenth"],
)
EXPECTED = Gauge(
    "covidnet_expected_predictions_ratio",
    "Share of a predicted class among the validation scans",
    ["label"],
    multiprocess_mode="livemax",
)

FEEDBACK = Counter(
    "covidnet_feedback", "Scans of which the truth was told, by truth and prediction", ["label", "predicted"]
)
SENSITIVITY = Gauge(
    "covidnet_live_sensitivity_ratio",
    "Share of a class's scans that were recognised, of the last scans with feedback; 95 % bounds",
    ["label", "bound"],
    multiprocess_mode="livemostrecent",
)
SPECIFICITY = Gauge(
    "covidnet_live_specificity_ratio",
    "Share of the other classes' scans that were not taken for it, of the last scans with feedback; 95 % bounds",
    ["label", "bound"],
    multiprocess_mode="livemostrecent",
)
CALIBRATION = Gauge(
    "covidnet_live_calibration_gap_ratio",
    "Mean confidence minus accuracy, of the last scans with feedback; 95 % bounds",
    ["bound"],
    multiprocess_mode="livemostrecent",
)
JUDGED = Gauge("covidnet_live_scans", "Scans with feedback that these are from", multiprocess_mode="livemostrecent")
STORE_ERRORS = Counter("covidnet_store_errors", "Failed reads and writes of the store of predictions and feedback")
STORE_LOST = Counter("covidnet_store_lost_predictions", "Predictions given up as the store didn't take them")

for _phase in PHASES:  # all are there from the start: a rate needs a first sample
    PHASE_SECONDS.labels(_phase)
for _protocol, _routes in ROUTES.items():
    for _route in _routes:
        REQUEST_SECONDS.labels(_route, _protocol)
        for _outcome in ("ok", "failed", "busy"):  # those that alerts look for, no traffic at all among them
            REQUESTS.labels(_route, _protocol, _outcome)


@contextmanager
def request(route: str, protocol: str = "http") -> Iterator[None]:
    """Count one request with its outcome: ``ok``, the kind of a refusal, or ``failed``.

    Args:
        route: one of `ROUTES`.
        protocol: http or grpc.
    """
    start = time.perf_counter()
    outcome = "failed"
    IN_FLIGHT.inc()
    try:
        with traces.request(route, protocol) as attributes:
            try:
                yield
                outcome = "ok"
            except Refused as error:
                outcome = error.outcome
                REJECTED.labels(reason(type(error))).inc()
                raise
            finally:
                attributes["covidnet.outcome"] = outcome
    finally:
        IN_FLIGHT.dec()
        REQUESTS.labels(route, protocol, outcome).inc()
        if outcome in _ANSWERED:
            REQUEST_SECONDS.labels(route, protocol).observe(time.perf_counter() - start)


def phase(name: str, seconds: float) -> None:
    """Time that one of `PHASES` took."""
    PHASE_SECONDS.labels(name).observe(seconds)
    traces.phase(name, seconds)


def reason(refusal: type[Refused]) -> str:
    """Label of a refusal: its class's name in small letters, so the values are as many as the classes."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", refusal.__name__).lower()


def exposition() -> bytes:
    """All metrics of this process, or of all that share the port, as text."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def _count_from_zero(refusal: type[Refused]) -> None:
    for kind in refusal.__subclasses__():
        REJECTED.labels(reason(kind))
        _count_from_zero(kind)


_count_from_zero(Refused)
