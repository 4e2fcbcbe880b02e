"""The KServe predictor and TorchServe on one bundle: latency of one caller, throughput of sixteen.

    python -m benchmarks.torchserve results/export/bundle          # two minutes; needs Java 17
    python -m benchmarks.torchserve results/export/bundle 2        # seconds per figure, to try it

Both get the same bytes: one prepared volume as a binary tensor of the Open Inference Protocol over HTTP. The servers run one
after the other. The table also goes to benchmarks/results/torchserve.json.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from covidnet.export import torchserve
from covidnet.export.bundle import Bundle

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "torchserve.json"
CALLERS = 16
START_S = 120


@dataclass(frozen=True, slots=True)
class Target:
    """Where a server listens, and what it wants to see."""

    port: int
    headers: dict[str, str]


def main() -> None:
    """Print the table and write it."""
    bundle = Bundle.load(Path(sys.argv[1]))
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 20.0
    body, headers = request(bundle)
    rows = []
    print(f"{'server':>18} | {'p50 ms':>8} | {'p99 ms':>8} | {CALLERS} callers, scans/s")
    for name, start in (("KServe predictor", kserve_predictor), ("TorchServe", torch_serve)):
        with tempfile.TemporaryDirectory(dir="/tmp") as work, start(bundle, Path(work)) as target:
            sent = {**headers, **target.headers}
            run(target.port, body, sent, 1, min(seconds, 3.0))  # warms up
            alone = run(target.port, body, sent, 1, seconds)
            together = run(target.port, body, sent, CALLERS, seconds)
        p50, p99 = np.percentile(alone, [50, 99]) * 1e3
        rows.append({"server": name, "p50_ms": p50, "p99_ms": p99, "scans_per_s": len(together) / seconds})
        print(f"{name:>18} | {p50:8.2f} | {p99:8.2f} | {rows[-1]['scans_per_s']:.1f}", flush=True)
    first, second = rows
    print(f"{'ratio':>18} | {second['p50_ms'] / first['p50_ms']:7.2f}x | {second['p99_ms'] / first['p99_ms']:7.2f}x | "
          f"{second['scans_per_s'] / first['scans_per_s']:.2f}x")  # fmt: skip
    RESULTS.parent.mkdir(exist_ok=True)
    found = {**machine.facts(), "bundle": bundle.preprocess["size"], "seconds": seconds, "rows": rows}
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")


def request(bundle: Bundle) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a V2 request with one volume as binary data."""
    size = bundle.preprocess["size"]
    volume = np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes()
    tensor = {
        "name": "volume",
        "datatype": "UINT8",
        "shape": [1, *size],
        "parameters": {"binary_data_size": len(volume)},
    }
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": "probabilities"}]}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return head + volume, headers


def run(port: int, body: bytes, headers: dict[str, str], callers: int, seconds: float) -> list[float]:
    """Seconds of every request that callers, one request after the other each, get answered in that time.

    Raises:
        RuntimeError: an answer other than 200.
    """
    times: list[float] = []
    failed: list[int] = []

    def call() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end and not failed:
            connection.request("POST", "/v2/models/covidnet/infer", body, headers)
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                failed.append(response.status)
            times.append(time.perf_counter() - began)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise RuntimeError(f"expected answers with status 200, found {failed[0]}")
    return times


@contextlib.contextmanager
def kserve_predictor(bundle: Bundle, work: Path) -> Iterator[Target]:
    """`python -m serving`."""
    port, grpc_port = free_ports(2)
    command = [sys.executable, "-m", "serving", "--bundle", bundle.path, "--http-port", port, "--grpc-port", grpc_port]
    with started([str(part) for part in command], ROOT, work / "log", {}):
        target = Target(port, {})
        wait(target, "/v2/health/ready", lambda: True)
        yield target


@contextlib.contextmanager
def torch_serve(bundle: Bundle, work: Path) -> Iterator[Target]:
    """TorchServe, configured as `covidnet export --torchserve` writes it, on free ports."""
    folder = work / "exported"
    torchserve.write(bundle.path, folder, ROOT / "serving")
    names = ("INFERENCE_ADDRESS", "MANAGEMENT_ADDRESS", "METRICS_ADDRESS")
    numbers = ("GRPC_INFERENCE_PORT", "GRPC_MANAGEMENT_PORT", "INITIAL_WORKER_PORT")
    ports = free_ports(6)
    variables = {f"TS_{name}": f"http://127.0.0.1:{port}" for name, port in zip(names, ports, strict=False)}
    variables |= {f"TS_{name}": str(port) for name, port in zip(numbers, ports[3:], strict=True)}
    variables |= {name: str(work) for name in ("LOG_LOCATION", "METRICS_LOCATION", "TMPDIR", "TEMP")}
    config = ["--ts-config", folder / "config" / "config.properties", "--model-store", folder / "model-store"]
    command = [Path(sys.executable).with_name("torchserve"), "--start", "--foreground", "--ncs", *config]
    with started([str(part) for part in command], work, work / "log", variables):
        keys = work / "key_file.json"
        wait(Target(ports[2], {}), "/metrics", keys.exists)
        target = Target(ports[0], {"Authorization": f"Bearer {json.loads(keys.read_text())['inference']['key']}"})
        wait(target, "/ping", lambda: True)
        yield target


@contextlib.contextmanager
def started(command: list[str], cwd: Path, log: Path, variables: dict[str, str]) -> Iterator[None]:
    """A process with all that it starts."""
    with log.open("wb") as stream:
        environment: Any = {**os.environ, **variables}
        process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def wait(target: Target, path: str, also: Callable[[], bool]) -> None:
    """Until it answers 200.

    Raises:
        TimeoutError: it doesn't.
    """
    for _ in range(10 * START_S):
        connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=10)
        with contextlib.suppress(OSError):
            connection.request("GET", path, headers=target.headers)
            if connection.getresponse().status == 200 and also():
                return
        time.sleep(0.1)
    raise TimeoutError(f"expected the server on port {target.port} to be ready within {START_S} s")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


if __name__ == "__main__":
    main()
