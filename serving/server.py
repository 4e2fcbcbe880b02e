"""Start, be ready, drain, stop."""

import asyncio
import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from kserve import ModelRepository
from kserve.protocol.dataplane import DataPlane

from covidnet.errors import UsageError
from covidnet.export.bundle import Bundle
from covidnet.inference import engine
from serving import metrics, rest, routes, rpc
from serving.gate import Gate
from serving.monitoring import logs
from serving.monitoring import routes as monitoring_routes
from serving.predictor import Predictor

MAX_REQUESTS = 32
MAX_BYTES = 2**30
GRACE_S = 90  # a large series takes seconds; Kubernetes' terminationGracePeriodSeconds has to be above it

_log = logging.getLogger(__name__)


async def run(bundle_dir: Path, host: str, http_port: int, grpc_port: int) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what is in flight, for `GRACE_S` at most.

    Ports open when the model is loaded and warm, so a probe that connects finds it ready.

    Raises:
        CovidnetError: the bundle is damaged, or the engine refuses it.
        UsageError: a port is taken, or no engine is installed.
    """
    logs.configure()
    logging.getLogger("kserve").propagate = False  # a line per call, with the caller's text in errors
    stop = _on_signal()
    bundle = Bundle.load(bundle_dir)
    predictor = Predictor(bundle, engine.load(bundle))
    predictor.load()
    repository = ModelRepository()
    repository.update(predictor)
    gate = Gate(MAX_REQUESTS, MAX_BYTES)
    metrics.QUEUE_LIMIT.set(MAX_REQUESTS)
    dataplane = _DataPlane(repository, gate)
    app = rest.application(dataplane, gate)
    routes.add_routes(app, predictor, gate)
    monitoring_routes.add_routes(app, predictor.observer)

    listener = _listen(host, http_port)
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=5)
    http = _HttpServer(config)
    grpc = rpc.server(dataplane, gate, host, grpc_port)
    await grpc.start()
    serving = asyncio.create_task(http.serve([listener]))
    _log.info("bundle %s: http://%s:%d and gRPC on port %d", bundle.version, host, http_port, grpc_port)

    await stop.wait()
    gate.close()
    _log.info("stopping: no new requests, finishing those in flight")
    try:
        await asyncio.wait_for(gate.empty(), GRACE_S)
    except TimeoutError:
        _log.warning("requests were still in flight after %d s and are cut off", GRACE_S)
    http.should_exit = True
    await asyncio.gather(grpc.stop(grace=5), serving)
    predictor.observer.close()


class _DataPlane(DataPlane):
    """Not ready while draining; KServe's is always ready."""

    def __init__(self, repository: ModelRepository, gate: Gate) -> None:
        super().__init__(repository)
        self._gate = gate

    async def ready(self) -> bool:
        return not self._gate.closed

    async def model_ready(self, model_name: str, disable_predictor_health_check: bool = False) -> bool:
        ready: bool = await super().model_ready(model_name, disable_predictor_health_check)
        return ready and not self._gate.closed


class _HttpServer(uvicorn.Server):
    """Leaves signals to `run`, which drains first."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _on_signal() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _listen(host: str, port: int) -> socket.socket:
    # the protocol is named, for asyncio turns Nagle's delay off (40 ms an answer) where it is, and not by default
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise UsageError(f"can't listen on {host} port {port} for HTTP: {error.strerror}; give --http-port") from None
    return listener
