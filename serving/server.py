"""Start, be ready, drain, stop."""

import asyncio
import ctypes
import logging
import signal
import socket
import ssl
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from kserve import ModelRepository
from kserve.protocol.dataplane import DataPlane

from covidnet import memory
from covidnet.errors import UsageError
from covidnet.export.bundle import Bundle
from covidnet.inference import engine
from serving import access, metrics, rest, routes, rpc, storage
from serving.access import Access, Tls
from serving.gate import Gate
from serving.monitoring import logs, traces
from serving.monitoring import routes as monitoring_routes
from serving.predictor import Predictor

MAX_REQUESTS, MAX_CLIENT_REQUESTS = 32, 24
MAX_BYTES = 2**30
# Kubernetes' terminationGracePeriodSeconds has to be above the seconds of its preStop hook and these together
GRACE_S = 90  # above `rest.DEADLINE_S`
LINGER_S = 1.0  # ports stay open so long at least: who asks meanwhile is refused, where a closed port would cut it off
FAREWELL_S = 0.3  # after that nobody new gets in, and who is on the way has so long to arrive
SILENT_S = 2.0  # and, having arrived, so long to send what the connection was made for
STOP_S = 5  # for connections that are still open then

_SO_ATTACH_FILTER = 26  # of asm-generic/socket.h
_DROP_FIRST_PACKETS = (  # of linux/filter.h; a packet is seen from its TCP header on
    (0x30, 0, 0, 13),  # load the byte of flags
    (0x54, 0, 0, 0x12),  # of them SYN and ACK
    (0x15, 0, 1, 0x02),  # is it SYN alone?
    (0x06, 0, 0, 0),  # drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # keep it
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """What to serve, where, and to whom.

    Args:
        bundle: folder that `covidnet export` wrote, or its URI.
        host: address to listen on.
        http_port: REST, upload, page, metrics.
        grpc_port: Open Inference Protocol.
        tokens: file of the clients' names and the hashes of their tokens; without it everyone may ask.
        tls: certificate for both ports.
        behind_gateway: a gateway has tokens, TLS and limits per client; the server may then listen anywhere without.
        gpu: run the network on a CUDA GPU.
        precision: one that the bundle's export accepted.
    """

    bundle: str
    host: str = "127.0.0.1"
    http_port: int = 8080
    grpc_port: int = 8081
    tokens: Path | None = None
    tls: Tls | None = None
    behind_gateway: bool = False
    gpu: bool = False
    precision: engine.Precision = "float32"


def serve(options: Options) -> None:
    """`run`, from where nothing runs yet."""
    asyncio.run(run(options))


async def run(options: Options) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what is in flight, for `GRACE_S` at most.

    Ports open when the model is loaded and warm, so a probe that connects finds it ready.

    Raises:
        CovidnetError: the bundle is damaged or can't be fetched, or the engine refuses it.
        UsageError: a port is taken, tokens or certificate can't be read, no engine is installed, or the address is
            reachable from other machines and nothing protects it.
    """
    memory.keep_freed(trim_bytes=16 * 2**20, mmap_bytes=4 * 2**20)
    logs.configure()
    traces.configure()
    for talkative in ("kserve", "python_multipart"):  # their lines quote requests
        logging.getLogger(talkative).propagate = False
    stop = _on_signal()
    access.check_exposure(
        options.host, protected=None not in (options.tokens, options.tls), behind_gateway=options.behind_gateway
    )
    tokens = {} if options.tokens is None else access.read_tokens(options.tokens)
    clients = Access(tokens, behind_gateway=options.behind_gateway)
    _check_tls(options.tls)
    with tempfile.TemporaryDirectory(prefix="covidnet-bundle-") as folder:
        bundle = Bundle.load(storage.fetch(options.bundle, Path(folder)))
        network = engine.load(bundle, "gpu" if options.gpu else "cpu", precision=options.precision)
        predictor = Predictor(bundle, network)
        predictor.load()
        await _serve(options, predictor, clients, stop)


async def _serve(options: Options, predictor: Predictor, clients: Access, stop: asyncio.Event) -> None:
    repository = ModelRepository()
    repository.update(predictor)
    gate = Gate(MAX_REQUESTS, MAX_BYTES, MAX_CLIENT_REQUESTS)
    metrics.QUEUE_LIMIT.set(MAX_REQUESTS)
    dataplane = _DataPlane(repository, gate)
    app = rest.application(dataplane, gate, clients)
    routes.add_routes(app, predictor, gate)
    monitoring_routes.add_routes(app, predictor.observer)

    tls = options.tls
    files = {} if tls is None else {"ssl_certfile": tls.certificate, "ssl_keyfile": tls.key}
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        proxy_headers=False,  # a client could name another address as its own
        timeout_graceful_shutdown=STOP_S,
        **files,  # type: ignore[arg-type]
    )
    http = _HttpServer(config)
    listener = _listen(options.host, options.http_port)
    grpc = rpc.server(dataplane, gate, clients, tls, options.host, options.grpc_port)
    await grpc.start()
    serving = asyncio.create_task(http.serve([listener]))
    url = f"{'http' if tls is None else 'https'}://{options.host}:{options.http_port}"
    _log.info("bundle %s: %s and gRPC on port %d", predictor.bundle.version, url, options.grpc_port)

    await stop.wait()
    gate.close()
    _log.info("stopping: no new requests, finishing those in flight")
    try:
        async with asyncio.timeout(GRACE_S):
            await asyncio.gather(gate.empty(), asyncio.sleep(LINGER_S))
    except TimeoutError:
        _log.warning("requests were still in flight after %d s and are cut off", GRACE_S)
    await http.farewell(listener)
    http.should_exit = True
    await asyncio.gather(grpc.stop(grace=STOP_S), serving)
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

    async def farewell(self, listener: socket.socket) -> None:
        """Close the port, and wait for connections that have not asked yet: ending them would reset what is on its way."""
        _let_nobody_in(listener)
        await asyncio.sleep(FAREWELL_S)
        await self.close_port(listener)
        with suppress(TimeoutError):
            async with asyncio.timeout(SILENT_S):
                while any(connection.cycle is None for connection in self.server_state.connections):  # type: ignore[union-attr]
                    await asyncio.sleep(0.02)

    async def close_port(self, listener: socket.socket) -> None:
        """Close the port, and serve who has connected: closing alone resets those whom the loop hasn't yet accepted."""
        queue = listener.dup()  # each server closes its own
        for server in self.servers:
            server.close()
        waiting = []
        with queue, suppress(BlockingIOError):
            while True:
                waiting.append(queue.accept()[0])
                waiting[-1].setblocking(False)
        loop = asyncio.get_running_loop()
        taken = [loop.connect_accepted_socket(self._protocol, each, ssl=self.config.ssl) for each in waiting]
        with suppress(TimeoutError):  # a silent client's handshake must not hold up the stop
            async with asyncio.timeout(FAREWELL_S):
                await asyncio.gather(*taken, return_exceptions=True)  # who has gone again is no fault

    def _protocol(self) -> asyncio.Protocol:
        """As uvicorn makes them for the connections that it accepts."""
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def _on_signal() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _let_nobody_in(listener: socket.socket) -> None:
    """Drop the first packet of every new connection, while those under way go on.

    Who is connected by the kernel in the very moment of closing is reset. Who comes now tries again in a second, as TCP
    does, and finds the port closed. Linux has such filters, newer ones for CAP_NET_ADMIN only; elsewhere the moment stays.
    """
    if sys.platform != "linux":
        return
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in _DROP_FIRST_PACKETS)
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("HP", len(_DROP_FIRST_PACKETS), ctypes.addressof(buffer))
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)


def _check_tls(tls: Tls | None) -> None:
    if tls is None:
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError):
        raise UsageError(
            f"{tls.certificate} and {tls.key}: expected a certificate chain and its unencrypted key, both in PEM form"
        ) from None


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
