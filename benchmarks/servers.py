"""The endpoint, a bare KServe model and TorchServe as child processes on loopback, and a bundle where none is given."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from covidnet.export import torchserve
from covidnet.export.bundle import Bundle, Calibration
from serving.monitoring.local import free_ports

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
SIZE = (32, 128, 128)  # (D, H, W) of a prepared scan, the paper's for retraining on CC-CCII
LABELS = ("NCP", "CP", "Normal")
START_S, STOP_S = 120, 100  # the endpoint itself takes 90 s at most to stop


@dataclass(frozen=True, slots=True)
class Target:
    """Where a server listens, and what it wants to see.

    Args:
        port: HTTP.
        grpc_port: 0 where it has none.
        headers: sent with every request.
        process: of the server.
        log: what it prints.
    """

    port: int
    grpc_port: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    log: Path | None = None

    @property
    def http(self) -> str:
        """``http://host:port``."""
        return f"http://{HOST}:{self.port}"

    @property
    def grpc(self) -> str:
        """``host:port``."""
        return f"{HOST}:{self.grpc_port}"


def add_bundle_option(parser: ArgumentParser) -> None:
    """``--bundle``, for `opened`."""
    help_ = "folder written by `covidnet export`; default: an untrained network of the paper's S space at 32x128x128"
    parser.add_argument("--bundle", type=Path, help=help_)


@contextlib.contextmanager
def opened(path: Path | None) -> Iterator[Bundle]:
    """The given bundle, or one of an untrained network that is as large as the paper's."""
    if path is not None:
        yield Bundle.load(path)
        return
    with tempfile.TemporaryDirectory(prefix="covidnet-bundle-") as folder:
        yield untrained(Path(folder))


def untrained(folder: Path, size: tuple[int, int, int] = SIZE) -> Bundle:
    """A bundle of the paper's S space with the middle operation in every block: as fast as a trained one."""
    import torch

    from covidnet.evaluation.novelty import FEATURES, Detector
    from covidnet.export.pack import pack
    from covidnet.models.catalogue import REFERENCE
    from covidnet.models.covidnet3d import SPACES, Genotype, build

    torch.manual_seed(0)
    blocks = tuple((REFERENCE,) * count for count in SPACES["S"].blocks)
    genotype = Genotype("S", LABELS, 1, size, blocks)
    return pack(
        build(genotype).eval(),
        folder / "bundle",
        size=size,
        labels=LABELS,
        genotype=genotype.to_dict(),
        calibration=Calibration(1.0, Detector(np.zeros(FEATURES), np.eye(FEATURES), 1e9, 0.05)),
        card="# Untrained, for benchmarks\n",
    )


@contextlib.contextmanager
def endpoint(bundle: Bundle, work: Path, ports: Sequence[int] = ()) -> Iterator[Target]:
    """`python -m serving`, ready.

    Args:
        bundle: to serve.
        work: folder for its log and its store of predictions.
        ports: HTTP and gRPC; free ones where none are given.
    """
    port, grpc_port = ports or free_ports(2)
    options = ["--bundle", bundle.path, "--http-port", port, "--grpc-port", grpc_port]
    command = [str(part) for part in (sys.executable, "-m", "serving", *options)]
    log = work / f"log-{port}.txt"
    with started(command, ROOT, log, {"COVIDNET_STATE": str(work / f"state-{port}")}) as process:
        target = Target(port, grpc_port, {}, process, log)
        wait(target, "/v2/health/ready")
        yield target


@contextlib.contextmanager
def bare_kserve(bundle: Bundle, work: Path) -> Iterator[Target]:
    """`benchmarks.bare_kserve` on the bundle's network, on free ports."""
    ports = free_ports(2)
    command = [sys.executable, "-m", "benchmarks.bare_kserve", *map(str, (bundle.model, *ports))]
    with started(command, ROOT, work / "log", {}) as process:
        target = Target(*ports, {}, process, work / "log")
        wait(target, "/v2/health/ready")
        yield target


@contextlib.contextmanager
def torch_serve(bundle: Bundle, work: Path) -> Iterator[Target]:
    """TorchServe, configured as `covidnet export --torchserve` writes it, on free ports."""
    folder = work / "exported"
    torchserve.write(bundle.path, folder, ROOT / "serving")
    names = ("INFERENCE_ADDRESS", "MANAGEMENT_ADDRESS", "METRICS_ADDRESS")
    numbers = ("GRPC_INFERENCE_PORT", "GRPC_MANAGEMENT_PORT", "INITIAL_WORKER_PORT")
    ports = free_ports(6)
    variables = {f"TS_{name}": f"http://{HOST}:{port}" for name, port in zip(names, ports, strict=False)}
    variables |= {f"TS_{name}": str(port) for name, port in zip(numbers, ports[3:], strict=True)}
    variables |= {name: str(work) for name in ("LOG_LOCATION", "METRICS_LOCATION", "TMPDIR", "TEMP")}
    config = ["--ts-config", folder / "config" / "config.properties", "--model-store", folder / "model-store"]
    command = [Path(sys.executable).with_name("torchserve"), "--start", "--foreground", "--ncs", *config]
    with started([str(part) for part in command], work, work / "log", variables) as process:
        keys = work / "key_file.json"
        wait(Target(ports[2]), "/metrics", keys.exists)
        headers = {"Authorization": f"Bearer {json.loads(keys.read_text())['inference']['key']}"}
        target = Target(ports[0], ports[3], headers, process, work / "log")
        wait(target, "/ping")
        yield target


@contextlib.contextmanager
def started(command: list[str], cwd: Path, log: Path, variables: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process with all that it starts; ended, if it hasn't ended by itself, with SIGTERM."""
    with log.open("ab") as stream:
        environment: Any = {**os.environ, **variables}
        process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(STOP_S)


def wait(target: Target, path: str, also: Callable[[], bool] = lambda: True) -> None:
    """Until it answers 200.

    Raises:
        TimeoutError: it doesn't.
        RuntimeError: it has ended.
    """
    for _ in range(10 * START_S):
        if target.process is not None and target.process.poll() is not None:
            raise RuntimeError(f"expected a running server, it has ended with status {target.process.returncode}")
        connection = http.client.HTTPConnection(HOST, target.port, timeout=10)
        with contextlib.suppress(OSError), contextlib.closing(connection):
            connection.request("GET", path, headers=target.headers)
            if connection.getresponse().status == 200 and also():
                return
        time.sleep(0.1)
    raise TimeoutError(f"expected the server on port {target.port} to be ready within {START_S} s")


def served(bundle: Bundle) -> dict[str, Any]:
    """What was measured, and on what."""
    name = bundle.genotype.get("space", bundle.genotype.get("name"))
    return {**machine.facts(), "bundle": {"network": name, "size": bundle.preprocess["size"]}}
