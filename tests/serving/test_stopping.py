"""A server that stops: who has come is answered, who comes later goes elsewhere."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
import uvicorn
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from serving.server import FAREWELL_S, _HttpServer, _let_nobody_in, _listen

if TYPE_CHECKING:
    from conftest import Server


def test_sigterm_finishes_what_is_in_flight_and_refuses_new_work(start: Callable[[], "Server"], nifti: Path) -> None:
    server = start()
    content = nifti.read_bytes()
    with server.begin("/v1/scans", content_length=len(content)) as connection:
        connection.sendall(content[:1000])
        server.wait_until(lambda: server.metric("covidnet_requests_in_flight") == 1)
        server.process.terminate()
        server.wait_until(lambda: httpx.get(f"{server.http}/v2/health/ready").status_code == 503)
        assert httpx.get(f"{server.http}/v2/health/live").status_code == 200
        refused = httpx.post(f"{server.http}/v1/scans", content=content)
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        assert server.metric("covidnet_requests_in_flight") == 1  # Prometheus scrapes until the last answer
        assert server.metric("covidnet_rejected_requests_total", reason="draining") == 1
        assert refused.headers["connection"] == "close"
        with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as over_grpc:
            GRPCInferenceServiceStub(channel).ModelInfer(pb.ModelInferRequest(model_name="covidnet"))
        assert over_grpc.value.code() == grpc.StatusCode.UNAVAILABLE
        assert not over_grpc.value.initial_metadata()  # with some, a client's retry policy doesn't ask another replica
        assert {key for key, _ in over_grpc.value.trailing_metadata()} == {"x-request-id", "retry-after"}
        connection.sendall(content[1000:])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"probabilities"' in answer
    assert server.process.wait(30) == 0


@asynccontextmanager
async def stopping_while_one_is_connected() -> AsyncIterator[tuple[asyncio.Task[None], socket.socket]]:
    """A server's farewell as it begins, and a connection that the kernel has made and the server's loop not yet seen."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    http = _HttpServer(uvicorn.Config(application, lifespan="off", log_config=None))
    listener = _listen("127.0.0.1", 0)
    serving = asyncio.create_task(http.serve([listener]))
    while not http.started:
        await asyncio.sleep(0.01)
    with socket.create_connection(listener.getsockname(), timeout=10) as client:
        farewell = asyncio.create_task(http.farewell(listener))
        yield farewell, client
        await farewell
        http.should_exit = True
        await serving


def test_who_has_connected_before_the_port_closes_is_answered_and_nobody_else_gets_in() -> None:
    async def stop() -> None:
        async with stopping_while_one_is_connected() as (farewell, client):
            await asyncio.sleep(2 * FAREWELL_S)
            assert not farewell.done()
            with pytest.raises((ConnectionRefusedError, TimeoutError)):  # the second where it isn't let in
                await asyncio.to_thread(socket.create_connection, client.getpeername(), 0.2)
            client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            assert (await asyncio.to_thread(client.recv, 1000)).startswith(b"HTTP/1.1 200 ")

    asyncio.run(stop())


def test_a_connection_that_never_asks_does_not_keep_the_server_from_stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.server.SILENT_S", 0.1)

    async def stop() -> None:
        async with stopping_while_one_is_connected() as (farewell, _):
            await asyncio.wait_for(farewell, 5)

    asyncio.run(stop())


def test_who_waits_to_be_accepted_when_the_port_closes_is_answered() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def ask_while_the_loop_is_busy() -> bytes:
        http = _HttpServer(uvicorn.Config(application, lifespan="off", log_config=None))
        listener = _listen("127.0.0.1", 0)
        serving = asyncio.create_task(http.serve([listener]))
        while not http.started:
            await asyncio.sleep(0.01)
        with socket.create_connection(
            listener.getsockname(), timeout=10
        ) as connection:  # by the kernel; none accepts it
            connection.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            await http.close_port(listener)
            answer = await asyncio.to_thread(connection.recv, 1000)
        http.should_exit = True
        await serving
        return answer

    assert asyncio.run(ask_while_the_loop_is_busy()).startswith(b"HTTP/1.1 200 ")


def test_a_filter_keeps_newcomers_out_and_those_under_way_go_on() -> None:
    listener = _listen("127.0.0.1", 0)
    with listener, socket.create_connection(listener.getsockname(), timeout=10) as early:
        _let_nobody_in(listener)
        if may_administer_the_network():
            with pytest.raises(TimeoutError):
                socket.create_connection(listener.getsockname(), 0.2)
        early.sendall(b"hello")
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(10) == b"hello"


def may_administer_the_network() -> bool:
    """CAP_NET_ADMIN, which newer kernels want for a filter."""
    status = Path("/proc/self/status")
    found = re.search(r"^CapEff:\s*(\w+)", status.read_text(), re.MULTILINE) if status.exists() else None
    return found is not None and bool(int(found[1], 16) >> 12 & 1)
