"""Rolling restarts under load: two replicas, one of them stopped with SIGTERM and started again, the other, and so on.

    python -m benchmarks.restarts                      # 100 restarts, about 12 minutes on two cores
    python -m benchmarks.restarts --restarts 4         # to try it

Callers over gRPC (round robin and retries are gRPC's own), REST with binary tensors, and uploads, which take longest, ask
both replicas in turn over connections that they keep, as through a Kubernetes service. A replica that is stopping may
refuse: a closed port, status 503 with `Retry-After`, or UNAVAILABLE; the caller then asks the other. Lost is a request that
was taken and not answered, that is, a connection that ends before the whole answer, and whatever gets another error.
Exit code 1 if any was lost, or a replica didn't end by itself with status 0. Figures: benchmarks/results/restarts.json.
"""

import contextlib
import http.client
import itertools
import json
import select
import signal
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.load import METHOD, message
from benchmarks.servers import HOST, ROOT, STOP_S, Target, endpoint, served, untrained
from benchmarks.torchserve import request
from covidnet.export.bundle import Bundle
from covidnet.inference import bench
from serving.monitoring.local import free_ports

RESULTS = ROOT / "benchmarks" / "results" / "restarts.json"
SIZE = (16, 64, 64)  # (D, H, W): a small network, for many requests at once
CALLERS = {"grpc": 3, "rest": 3, "upload": 2}
TRIES_S = 60
BETWEEN_S = 0.5  # both replicas serve for so long between two restarts
POLICY = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    # gRPC's own answer to a call that came between the last look and the closing: nobody has seen it
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ],
    }
)


class Service:
    """What callers know, and what happened to their requests.

    Args:
        ports: HTTP and gRPC of each replica.
    """

    def __init__(self, ports: Sequence[tuple[int, int]]) -> None:
        self.ports = ports
        self.answered: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.slowest_s = 0.0
        self.over = threading.Event()

    def call(self, kind: str, ask: Callable[[], str]) -> None:
        """One request after the other; ``ask`` gives an empty text, or why its request was lost."""
        while not self.over.is_set():
            began = time.perf_counter()
            fault = ask()
            self.slowest_s = max(self.slowest_s, time.perf_counter() - began)
            if fault:
                self.lost[f"{kind}: {fault}"] += 1
            else:
                self.answered[kind] += 1

    def over_http(self, path: str, body: bytes, headers: dict[str, str]) -> Callable[[], str]:
        """A caller with a connection to each replica."""
        connections = [http.client.HTTPConnection(HOST, port, timeout=90) for port, _ in self.ports]
        turns = itertools.cycle(connections)

        def ask() -> str:
            end = time.perf_counter() + TRIES_S
            for connection in turns:
                if time.perf_counter() > end:
                    break
                try:
                    if connection.sock is not None and select.select([connection.sock], [], [], 0)[0]:
                        connection.close()  # the server has closed it meanwhile; clients look before they send
                    if new := connection.sock is None:
                        connection.connect()
                except OSError:
                    self.refused["port closed"] += 1
                    time.sleep(0.01)
                    continue
                try:
                    with contextlib.suppress(BrokenPipeError):  # a refusal may come before the body is sent
                        connection.request("POST", path, body, headers)
                    response = connection.getresponse()
                    response.read()
                except (OSError, http.client.HTTPException) as error:
                    connection.close()
                    return f"{type(error).__name__} on {'a new' if new else 'an open'} connection"
                if response.status == 200:
                    return ""
                if response.status != 503 or "retry-after" not in response.headers:
                    return f"status {response.status}"
                self.refused["503"] += 1
            return f"not answered within {TRIES_S} s"

        return ask

    def over_grpc(self, content: bytes) -> Callable[[], str]:
        """A caller whose channel knows both replicas."""
        addresses = ",".join(f"{HOST}:{port}" for _, port in self.ports)
        options = [("grpc.service_config", POLICY), ("grpc.use_local_subchannel_pool", 1),
                   ("grpc.max_reconnect_backoff_ms", 200), ("grpc.initial_reconnect_backoff_ms", 100)]  # fmt: skip
        method = grpc.insecure_channel(f"ipv4:{addresses}", options).unary_unary(METHOD)

        def ask() -> str:
            try:
                method(content, timeout=TRIES_S, wait_for_ready=True)
            except grpc.RpcError as error:
                return f"{error.code().name} ({error.details()})"
            return ""

        return ask


def main() -> None:
    """Restart, tell, write."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="covidnet-restarts-") as work:
        bundle = untrained(Path(work), SIZE)
        found = roll(bundle, Path(work), options.restarts)
        print(json.dumps(found, indent=2))
        options.out.parent.mkdir(exist_ok=True)
        options.out.write_text(json.dumps({**served(bundle), **found}, indent=2) + "\n")
    sys.exit(bool(found["lost"] or set(found["exit_codes"]) != {"0"}))


def roll(bundle: Bundle, work: Path, restarts: int) -> dict[str, Any]:
    """Restart so often in turns, under load."""
    ports = free_ports(4)
    service = Service([(ports[0], ports[1]), (ports[2], ports[3])])
    codes: Counter[str] = Counter()
    stops: list[float] = []
    starts: list[float] = []
    with contextlib.ExitStack() as last:
        replicas = [contextlib.ExitStack() for _ in service.ports]
        targets = [start(bundle, work, pair, stack) for pair, stack in zip(service.ports, replicas, strict=True)]
        for stack in replicas:
            last.push(stack)
        last.callback(service.over.set)
        callers = [threading.Thread(target=service.call, args=pair) for pair in asking(service, work)]
        for caller in callers:
            caller.start()
        began = time.perf_counter()
        for number in range(restarts):
            index = number % len(replicas)
            time.sleep(BETWEEN_S)
            took, code = stop(targets[index])
            codes[str(code)] += 1
            stops.append(took)
            replicas[index].close()
            since = time.perf_counter()
            targets[index] = start(bundle, work, service.ports[index], replicas[index])
            starts.append(time.perf_counter() - since)
            if number % 10 == 9:
                print(
                    f"{number + 1} restarts, {service.answered.total()} answered, {dict(service.lost) or 'none'} lost",
                    flush=True,
                )
        seconds = time.perf_counter() - began
        service.over.set()
        for caller in callers:
            caller.join()
    return {
        "restarts": restarts,
        "seconds": round(seconds),
        "callers": CALLERS,
        "answered": dict(service.answered),
        "refused_and_asked_again": dict(service.refused),
        "lost": dict(service.lost),
        "exit_codes": dict(codes),
        "stop_s": {"median": round(float(np.median(stops)), 2), "worst": round(max(stops), 2)},
        "start_s": {"median": round(float(np.median(starts)), 2), "worst": round(max(starts), 2)},
        "slowest_answer_s": round(service.slowest_s, 2),
    }


def asking(service: Service, work: Path) -> list[tuple[str, Callable[[], str]]]:
    """Kind of each caller, and what it does again and again."""
    body, headers = request(SIZE)
    scan = bench.demo_scan(work, 0).read_bytes()
    made = {
        "grpc": lambda: service.over_grpc(message(SIZE)),
        "rest": lambda: service.over_http("/v2/models/covidnet/infer", body, headers),
        "upload": lambda: service.over_http("/v1/scans", scan, {}),
    }
    return [(kind, made[kind]()) for kind, count in CALLERS.items() for _ in range(count)]


def start(bundle: Bundle, work: Path, ports: tuple[int, int], stack: contextlib.ExitStack) -> Target:
    """A replica, ready."""
    return stack.enter_context(endpoint(bundle, work, ports))


def stop(target: Target) -> tuple[float, int]:
    """Seconds until the replica has ended after SIGTERM, and its status."""
    assert target.process is not None
    began = time.perf_counter()
    target.process.send_signal(signal.SIGTERM)
    code = target.process.wait(STOP_S)
    return time.perf_counter() - began, code


if __name__ == "__main__":
    main()
