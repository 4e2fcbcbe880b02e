"""`make monitor`: the server under load, Prometheus and Alertmanager on this machine, with the rules that a cluster has.

    python -m serving.monitoring.local --bundle results/export/bundle

Needs Debian's packages prometheus and prometheus-alertmanager. Everything listens on loopback and ends with Ctrl-C.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from http.server import HTTPServer
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from covidnet.errors import CovidnetError, UsageError
from serving.monitoring import retraining
from serving.monitoring.retraining import Retraining

RULES = Path(__file__).parents[2] / "manifests" / "monitoring" / "rules.yaml"
_SECONDS = {"s": 1, "m": 60, "h": 3600}


@contextmanager
def server(
    bundle: Path, folder: Path, program: Sequence[str] = ("-m", "serving")
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """The server, ready; yields its address and its process.

    Args:
        bundle: to serve.
        folder: for its log and state.
        program: Python's arguments before the server's own.
    """
    http_port, grpc_port = free_ports(2)
    arguments = ["--bundle", str(bundle), "--http-port", str(http_port), "--grpc-port", str(grpc_port)]
    environment = {**os.environ, "COVIDNET_STATE": str(folder / "state")}
    with _running([sys.executable, *program, *arguments], folder / "server.log", environment) as process:
        url = f"http://127.0.0.1:{http_port}"
        wait_for(lambda: get(f"{url}/v2/health/ready") is not None, f"server (see {folder / 'server.log'})", process)
        yield url, process


@contextmanager
def prometheus(
    folder: Path, jobs: Mapping[str, Sequence[str]], alertmanager: str | None = None, faster: int = 1
) -> Iterator[str]:
    """Prometheus with the project's rules; yields its address.

    Args:
        folder: for its data.
        jobs: addresses of servers, by the job that they are replicas of.
        alertmanager: its address.
        faster: the rules' durations are divided by it, so that an hour passes in a test.
    """
    [port] = free_ports(1)
    rules = yaml.safe_load(RULES.read_text())["spec"]
    (folder / "rules.yaml").write_text(_faster(yaml.safe_dump(rules), faster))
    interval = "1s" if faster > 1 else "5s"
    config: dict[str, Any] = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [_address(url) for url in urls]}]}
            for job, urls in jobs.items()
        ],
    }
    if alertmanager is not None:
        config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [_address(alertmanager)]}]}]}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    data = ["--storage.tsdb.path", str(folder / "prometheus"), "--web.listen-address", f"127.0.0.1:{port}"]
    command = [_program("prometheus"), "--config.file", str(folder / "prometheus.yaml"), *data]
    with _running(command, folder / "prometheus.log") as process:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: get(f"{url}/-/ready") is not None, "Prometheus", process)
        yield url


@contextmanager
def alertmanager(folder: Path, webhook: str) -> Iterator[str]:
    """Alertmanager, which tells every alert to a webhook; yields its address."""
    [port] = free_ports(1)
    wait = {"group_wait": "1s", "group_interval": "5s", "repeat_interval": "4h", "group_by": ["alertname", "job"]}
    receivers = [{"name": "webhook", "webhook_configs": [{"url": webhook}]}]
    config = {"route": {"receiver": "webhook", **wait}, "receivers": receivers}
    (folder / "alertmanager.yaml").write_text(yaml.safe_dump(config))
    paths = ["--config.file", str(folder / "alertmanager.yaml"), "--storage.path", str(folder / "alertmanager")]
    listen = ["--web.listen-address", f"127.0.0.1:{port}", "--cluster.listen-address="]
    with _running([_program("prometheus-alertmanager"), *paths, *listen], folder / "alertmanager.log") as process:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: get(f"{url}/-/ready") is not None, "Alertmanager", process)
        yield url


@contextmanager
def webhook(folder: Path) -> Iterator[str]:
    """The receiver of alerts, which records and runs nothing; yields its address."""
    with answering(retraining.server(Retraining(None, folder / "retraining.jsonl"), 0)) as url:
        yield url


@contextmanager
def answering(listening: HTTPServer) -> Iterator[str]:
    """Serve from a thread; yields the address."""
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()


def load(url: str, pause_s: float = 1.0) -> AbstractContextManager[None]:
    """Synthetic scans of all classes, one after the other, in a thread."""
    numbers = count(1)

    def ask() -> None:
        number = next(numbers)
        label = ("NCP", "CP", "Normal")[(number - 1) % 3]
        answer = post(f"{url}/v1/phantoms/{label}", b"")
        if answer is not None and number % 2:  # a radiologist reads every other scan
            tell(url, answer, label)

    return every(pause_s, ask)


@contextmanager
def every(pause_s: float, work: Callable[[], object]) -> Iterator[None]:
    """Do something again and again in a thread, with a pause before each time."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(pause_s):
            work()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def tell(url: str, request_id: str, label: str) -> None:
    """Give feedback."""
    post(f"{url}/v1/feedback", json.dumps({"request_id": request_id, "label": label}).encode())


def get(url: str) -> bytes | None:
    """Body of an answer with status 200, else None."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            body: bytes = answer.read()
            return body
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def post(url: str, body: bytes, content_type: str = "application/json") -> str | None:
    """Request id of a successful answer, else None."""
    request = urllib.request.Request(url, body, {"content-type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(answer.headers["x-request-id"])
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def wait_for(true: Callable[[], bool], what: str, process: "subprocess.Popen[bytes] | None" = None) -> None:
    """Wait a minute at most.

    Raises:
        CovidnetError: it took longer, or the process ended.
    """
    for _ in range(600):
        if true():
            return
        if process is not None and process.poll() is not None:
            break
        time.sleep(0.1)
    raise CovidnetError(f"{what} did not get ready within a minute, or ended")


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]


@contextmanager
def _running(
    command: list[str], log: Path, environment: dict[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _faster(rules: str, factor: int) -> str:
    """Durations in brackets and after `for:`, divided, at least 1 s; rates need four scrapes, one a second."""

    def shorter(match: re.Match[str]) -> str:
        lead, count, unit = match.groups()
        least = 5 if lead == "[" else 1
        return f"{lead}{max(least, int(count) * _SECONDS[unit] // factor)}s"

    return rules if factor == 1 else re.sub(r"(\[|for: )(\d+)([smh])", shorter, rules)


def _address(url: str) -> str:
    return url.removeprefix("http://")


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise UsageError(f"{name} is not installed; apt-get install prometheus prometheus-alertmanager")
    return found


def main(bundle: Annotated[Path, typer.Option(help="Folder written by `covidnet export`.")]) -> None:
    """Serve a bundle under load, and watch it, until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else the parts would outlive this process
    try:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="covidnet-monitor-")))
            url, _ = stack.enter_context(server(bundle, folder))
            alerts = stack.enter_context(alertmanager(folder, stack.enter_context(webhook(folder))))
            metrics = stack.enter_context(prometheus(folder, {"covidnet": [url]}, alerts))
            stack.enter_context(load(url))
            print(f"status page   {url}/status\nmetrics       {url}/metrics\nPrometheus    {metrics}/alerts")
            print(f"Alertmanager  {alerts}\nlogs and data {folder}\nCtrl-C ends all of it.", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        print("stopped")


if __name__ == "__main__":
    try:
        typer.run(main)
    except CovidnetError as error:
        print(f"covidnet: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
