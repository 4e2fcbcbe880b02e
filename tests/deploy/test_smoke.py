import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from http.server import ThreadingHTTPServer

import httpx
import numpy as np
import pytest
from json_server import JsonHandler, answering
from toy_bundle import SIZE, TEMPERATURE, detector, write

from covidnet.config import Deploy
from covidnet.deploy.endpoint import Endpoint, EndpointError
from covidnet.deploy.smoke import smoke_test, watch
from covidnet.export.bundle import Calibration
from covidnet.inference.engine import load

SETTINGS = Deploy(watch_s=0.2, pause_s=0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """One that knows dark volumes, as those below, and finds uniform noise foreign."""
    return write(tmp_path_factory.mktemp("toy"), Calibration(TEMPERATURE, detector(300.0)))


@pytest.fixture(scope="module")
def volumes():
    return np.random.default_rng(0).integers(0, 40, (4, *SIZE), dtype=np.uint8)


@pytest.fixture(scope="module")
def server(bundle, repository, tmp_path_factory):
    """The address of the real server on the bundle."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        http, grpc = one.getsockname()[1], other.getsockname()[1]
    command = [sys.executable, "-m", "serving", "--bundle", bundle.path, "--http-port", str(http)]
    log = tmp_path_factory.mktemp("log") / "server.txt"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, "--grpc-port", str(grpc)], cwd=repository, stdout=stream, stderr=stream,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    url = f"http://127.0.0.1:{http}"
    try:
        for _ in range(600):
            if process.poll() is not None or Endpoint(url, timeout_s=1).ready():
                break
            time.sleep(0.1)
        assert process.poll() is None, log.read_text()
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def test_the_exported_bundle_on_the_real_server_passes(server, bundle, volumes):
    findings = smoke_test(Endpoint(server), bundle.path, volumes, SETTINGS)
    assert findings.passed, findings.markdown("", "")
    text = findings.markdown("good", "bad")
    assert text.startswith("good")
    for part in (bundle.version, "4 prepared scans", "a NIfTI file", "wrong shape is refused (the endpoint answered 4"):
        assert part in text


def test_the_gateway_gets_the_request_with_the_services_host(server, bundle, volumes):
    assert Endpoint("http://covidnet.team.example", gateway=server).ready()
    with pytest.raises(EndpointError, match="no answer from http://covidnet"):
        Endpoint("http://covidnet.team.invalid", timeout_s=2).classify(volumes)


class Double(ThreadingHTTPServer):
    """A server of protocol V2 with the bundle's answers and faults on demand."""

    def __init__(self, bundle):
        super().__init__(("127.0.0.1", 0), Handler)
        self.engine, self.version = load(bundle), bundle.version
        self.lag_s, self.error, self.shift = 0.0, 0.0, 0.0
        self.draws = np.random.default_rng(0)


class Handler(JsonHandler):
    def do_GET(self):
        self.answer(200, {"ready": True})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        end = int(self.headers["Inference-Header-Content-Length"])
        tensor = json.loads(body[:end])["inputs"][0]
        time.sleep(self.server.lag_s)
        if self.server.draws.random() < self.server.error:
            return self.answer(503, {})
        if tensor["shape"][2:] != list(SIZE):
            return self.answer(400, {})
        batch = np.frombuffer(body[end:], np.uint8).reshape(tensor["shape"])
        found = self.server.engine.run(batch).probabilities + self.server.shift
        output = {"name": "probabilities", "shape": list(found.shape), "data": found.ravel().tolist()}
        return self.answer(200, {"model_version": self.server.version, "outputs": [output]})


@pytest.fixture
def double(bundle):
    """Starts doubles; each gives its server, and the endpoint to ask it."""

    def start():
        server = Double(bundle)
        running.enter_context(answering(server))
        return server, Endpoint(f"http://127.0.0.1:{server.server_port}", timeout_s=5)

    with ExitStack() as running:
        yield start


def test_a_runtime_without_flags_passes_on_prepared_volumes_alone(double, bundle, volumes):
    _, endpoint = double()
    findings = smoke_test(endpoint, bundle.path, volumes, SETTINGS)
    assert findings.passed
    assert "NIfTI" not in findings.markdown("", "")


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ({"shift": 0.01}, "- **not met**: 4 prepared scans: probabilities differ by 1.0e-02 at most"),
        ({"version": "another"}, "- **not met**: it serves bundle"),
        ({"error": 1.0}, "- **not met**: the endpoint answered 503 to volume"),
    ],
)
def test_another_model_or_a_failing_one_is_found_out(double, bundle, volumes, fault, line):
    server, endpoint = double()
    vars(server).update(fault)
    findings = smoke_test(endpoint, bundle.path, volumes, SETTINGS)
    assert not findings.passed
    assert line in findings.markdown("", "")


def test_two_equal_models_may_share_the_traffic(double, volumes):
    (_, canary), (_, stable) = double(), double()
    findings = watch(canary, stable, volumes, SETTINGS.model_copy(update={"max_latency_ratio": 20}))
    assert findings.passed, findings.markdown("", "")


@pytest.mark.parametrize(
    ("fault", "line"),
    [({"error": 0.5}, "canary: "), ({"lag_s": 1.0}, "95th percentile of 1")],
)
def test_a_failing_or_slow_canary_is_found_out(double, volumes, fault, line):
    (server, canary), (_, stable) = double(), double()
    vars(server).update(fault)
    findings = watch(canary, stable, volumes, SETTINGS.model_copy(update={"watch_s": 0.5}))
    assert [text for met, text in findings.checks if not met and line in text]


def test_a_service_that_fails_under_the_split_is_found_out(double, volumes):
    (_, canary), (server, stable) = double(), double()
    server.error = 1.0
    assert not watch(canary, stable, volumes, SETTINGS).passed


def test_the_first_model_of_a_service_is_watched_alone(double, volumes):
    _, canary = double()
    assert watch(canary, None, volumes, SETTINGS).passed


def test_an_answer_in_another_form_is_named(double, volumes, monkeypatch):
    _, endpoint = double()
    monkeypatch.setattr(httpx.Response, "json", lambda _: {"outputs": []})
    with pytest.raises(EndpointError, match="no probabilities in the form of protocol V2"):
        endpoint.classify(volumes)
