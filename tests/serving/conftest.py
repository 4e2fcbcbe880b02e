"""A real bundle of a tiny network, and the real server on it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import nibabel
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from toy_volumes import SIZE, volumes

from covidnet.data.scan import Scan
from covidnet.data.sources import phantom
from covidnet.evaluation.calibration import energy
from covidnet.evaluation.novelty import FEATURES, Detector
from covidnet.export import reference
from covidnet.export.bundle import REFERENCE, Calibration
from covidnet.export.reference import Reference
from covidnet.inference import engine
from serving.monitoring.local import free_ports

LABELS = ("NCP", "CP", "Normal")


@dataclass(frozen=True)
class Server:
    """A running server."""

    process: subprocess.Popen[bytes]
    http: str
    grpc: str
    log: Path

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def begin(self, path: str, content_length: int) -> socket.socket:
        """A connection on which a request has begun and no body was sent."""
        host, port = self.http.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)), timeout=60)
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {content_length}\r\n\r\n"
        connection.sendall(head.encode())
        return connection

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples that have these labels."""
        families = text_string_to_metric_families(httpx.get(f"{self.http}/metrics").text)
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def wait_until(self, true: Callable[[], bool]) -> None:
        for _ in range(200):
            if true():
                return
            time.sleep(0.05)
        pytest.fail(f"it didn't become true within 10 s:\n{self.log.read_text()}")


def _reference(model: Path, ordinary: np.ndarray) -> Reference:
    outputs = engine.open_model(model).run(ordinary[:, None])
    rows = [
        {**reference.describe(volume), **reference.of_prediction(float(p.max()), float(score))}
        for volume, p, score in zip(ordinary, outputs.probabilities, energy(outputs.logits, 1.5), strict=True)
    ]
    counts = np.bincount(outputs.logits.argmax(1), minlength=len(LABELS))
    return Reference(
        {name: reference.profile([row[name] for row in rows]) for name in rows[0]},
        dict(zip(LABELS, counts.tolist(), strict=True)),
    )


@pytest.fixture(scope="session")
def bundle_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle as `covidnet export` writes it, of a network with two convolutions."""
    import torch
    from torch import nn

    from covidnet.export.pack import pack
    from covidnet.models.blocks import Classifier

    torch.manual_seed(0)
    features = nn.Sequential(
        nn.Conv3d(1, 8, 3, stride=2), nn.ReLU6(), nn.Conv3d(8, 16, 3, stride=(2, 4, 4)), nn.ReLU6()
    )
    model = Classifier(features, nn.Linear(16, len(LABELS))).eval()
    with torch.no_grad():
        model.head.weight *= 20  # so that different scans get different answers
    return pack(
        model,
        tmp_path_factory.mktemp("bundle") / "bundle",
        size=SIZE,
        labels=LABELS,
        genotype={"name": "tiny", "classes": list(LABELS), "channels": 1, "size": list(SIZE)},
        calibration=Calibration(1.5, Detector(np.zeros(FEATURES), np.eye(FEATURES), 1e-6, 0.05)),  # flags all
        card="# Tiny\n",
        extras=lambda model: {REFERENCE: _reference(model, volumes(240, seed=0)).to_json()},
    ).path


@pytest.fixture(scope="session")
def start(
    bundle_dir: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Server]]:
    """Starts servers, each with a state of its own unless told, and ends those that a test left running."""
    started: list[Server] = []

    def start_one(*options: str, state: Path | None = None) -> Server:
        http_port, grpc_port = free_ports(2)
        log = tmp_path_factory.mktemp("server") / "log.txt"
        arguments = ["--http-port", str(http_port), "--grpc-port", str(grpc_port), *options]
        if "--bundle" not in options:
            arguments += ["--bundle", str(bundle_dir)]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "serving", *arguments],
                cwd=repository,
                env={**os.environ, "OMP_NUM_THREADS": "1", "COVIDNET_STATE": str(state or log.parent / "state")},
                stdout=stream,
                stderr=stream,
            )
        scheme = "https" if "--tls-cert" in options else "http"
        server = Server(process, f"{scheme}://127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}", log)
        started.append(server)
        _wait_until_ready(server)
        return server

    yield start_one
    running = [server.process for server in started if server.process.poll() is None]
    for process in running:
        process.terminate()
    for process in running:
        process.wait(30)


@pytest.fixture(scope="session")
def server(start: Callable[..., Server]) -> Server:
    """The server that the tests share."""
    return start()


@pytest.fixture(scope="session")
def scan() -> Scan:
    """A synthetic chest CT."""
    return phantom.generate("NCP", seed=1, index=1, detail=(24, 64, 64)).scan


@pytest.fixture(scope="session")
def nifti(scan: Scan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same scan as a file: NIfTI's axes point right, anterior and superior, the project's the other way."""
    z, y, x = scan.spacing_mm
    image = nibabel.Nifti1Image(scan.voxels.transpose(2, 1, 0).astype(np.int16), np.diag([-x, -y, -z, 1.0]))
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    nibabel.save(image, path)
    return path


def _wait_until_ready(server: Server) -> None:
    for _ in range(600):
        if server.process.poll() is not None:
            pytest.fail(f"the server ended with {server.process.returncode}:\n{server.log.read_text()}")
        try:
            if httpx.get(f"{server.http}/v2/health/ready", verify=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    pytest.fail(f"the server isn't ready after a minute:\n{server.log.read_text()}")
