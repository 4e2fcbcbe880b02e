"""Tokens, TLS, deadlines, other origins, and where a bundle may come from."""

import hashlib
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import httpx
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from covidnet.errors import CovidnetError, UsageError
from covidnet.export.bundle import Bundle
from serving import access, storage
from serving.access import Access
from serving.client import Client
from serving.errors import Unauthenticated

if TYPE_CHECKING:
    from conftest import Server

TOKEN, OTHER_TOKEN = "9d1c6d0a7e6b4c55", "0f6c3b52a8d94e17"
DIGEST = hashlib.sha256(TOKEN.encode()).hexdigest()


def test_a_token_names_its_client_and_another_is_refused() -> None:
    clients = Access({"radiology": bytes.fromhex(DIGEST)})
    assert clients.client(f"Bearer {TOKEN}", "203.0.113.7") == "token radiology"
    for wrong in (None, "", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {DIGEST}", "Bearer "):
        with pytest.raises(Unauthenticated):
            clients.client(wrong, "203.0.113.7")


def test_clients_without_tokens_are_told_apart_by_address_except_on_loopback_and_behind_a_gateway() -> None:
    assert Access({}).client(None, "203.0.113.7") == "address 203.0.113.7"
    assert Access({}).client(None, "127.0.0.1") is None
    assert Access({}, behind_gateway=True).client(None, "203.0.113.7") is None


@pytest.mark.parametrize("text", ["", "# nothing\n", "radiology\n", "radiology abc\n", f"a {DIGEST}\na {DIGEST}\n"])
def test_a_file_without_usable_tokens_is_refused_and_not_quoted(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(UsageError) as refused:
        access.read_tokens(tmp_path / "tokens")
    assert DIGEST not in str(refused.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "server.example"])
def test_only_loopback_is_served_unprotected(host: str) -> None:
    with pytest.raises(UsageError, match="--behind-gateway"):
        access.check_exposure(host, protected=False, behind_gateway=False)
    access.check_exposure(host, protected=True, behind_gateway=False)
    access.check_exposure(host, protected=False, behind_gateway=True)
    for own in ("127.0.0.1", "::1", "localhost"):
        access.check_exposure(own, protected=False, behind_gateway=False)


def test_the_server_doesnt_start_unprotected_on_all_addresses(bundle_dir: Path, repository: Path) -> None:
    command = [sys.executable, "-m", "serving", "--bundle", str(bundle_dir), "--host", "0.0.0.0"]
    ended = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "--tokens" in ended.stderr


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    pair = folder / "cert.pem", folder / "key.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*command.split(), "-out", pair[0], "-keyout", pair[1]], check=True, capture_output=True)
    return pair


@pytest.fixture(scope="module")
def protected(
    start: Callable[..., "Server"], certificate: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> "Server":
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    other = hashlib.sha256(OTHER_TOKEN.encode()).hexdigest()
    tokens.write_text(f"# who may ask\nradiology {DIGEST}\nresearch {other}\n")
    return start("--tokens", str(tokens), "--tls-cert", str(certificate[0]), "--tls-key", str(certificate[1]))


def test_over_tls_a_token_opens_both_ports_and_without_one_only_probes_and_the_page_answer(
    protected: "Server", certificate: tuple[Path, Path], nifti: Path
) -> None:
    with httpx.Client(verify=str(certificate[0]), base_url=protected.http, timeout=60) as http:
        for path in ("/", "/v2/health/live", "/v2/health/ready"):
            assert http.get(path).status_code == 200
        for path in ("/metrics", "/v2/models/covidnet", "/v1/models"):
            refused = http.get(path)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
        content = nifti.read_bytes()
        assert http.post("/v1/scans", content=content).status_code == 401
        by_http = http.post("/v1/scans", content=content, headers={"authorization": f"Bearer {TOKEN}"})
    by_grpc = Client(protected.grpc, TOKEN, certificate[0]).predict(nifti)
    assert by_grpc.label == by_http.json()["label"]
    with pytest.raises(CovidnetError, match="UNAUTHENTICATED"):
        Client(protected.grpc, None, certificate[0]).predict(nifti)
    credentials = grpc.ssl_channel_credentials(certificate[0].read_bytes())
    with grpc.secure_channel(protected.grpc, credentials) as channel:
        stub = GRPCInferenceServiceStub(channel)
        assert stub.ServerReady(pb.ServerReadyRequest()).ready
        with pytest.raises(grpc.RpcError) as refused_call:
            stub.ModelMetadata(pb.ModelMetadataRequest(name="covidnet"))
    assert refused_call.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert TOKEN not in protected.log.read_text()


def test_a_client_has_its_limit_and_the_others_find_a_place(
    protected: "Server", certificate: tuple[Path, Path], nifti: Path
) -> None:
    host, port = protected.http.removeprefix("https://").split(":")
    head = f"POST /v1/scans HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 1000\r\n\r\n"
    context = ssl.create_default_context(cafile=str(certificate[0]))
    with ExitStack() as held, httpx.Client(verify=context, base_url=protected.http, timeout=60) as http:
        for _ in range(24):  # requests whose bodies never come
            connection = socket.create_connection((host, int(port)), timeout=60)
            held.enter_context(context.wrap_socket(connection, server_hostname=host)).sendall(head.encode())
        sent, own = nifti.read_bytes(), {"authorization": f"Bearer {TOKEN}"}
        in_flight = "covidnet_requests_in_flight 24.0"
        protected.wait_until(lambda: in_flight in http.get("/metrics", headers=own).text)
        refused = http.post("/v1/scans", content=sent, headers=own)
        assert refused.status_code == 429
        assert "24 of your requests" in refused.json()["error"]
        with pytest.raises(CovidnetError, match="24 of your requests"):
            Client(protected.grpc, TOKEN, certificate[0]).predict(nifti)
        other = http.post("/v1/scans", content=sent, headers={"authorization": f"Bearer {OTHER_TOKEN}"})
        assert other.status_code == 200


def test_pages_of_other_sites_are_refused_and_no_answer_allows_them(server: "Server") -> None:
    for origin in ("https://evil.example", "null"):
        refused = httpx.post(f"{server.http}/v1/phantoms/NCP", headers={"origin": origin})
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers
    own = httpx.post(f"{server.http}/v1/phantoms/NCP", headers={"origin": server.http}, timeout=60)
    assert own.status_code == 200


@pytest.mark.parametrize("path", ["/", "/static/page.js", "/v2", "/no-such-route"])
def test_every_answer_has_the_security_headers(server: "Server", path: str) -> None:
    headers = httpx.get(server.http + path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert "server" not in headers


def test_a_request_ends_at_its_own_deadline(server: "Server", nifti: Path) -> None:
    late = httpx.post(f"{server.http}/v1/scans", content=nifti.read_bytes(), headers={"x-request-timeout-ms": "1"})
    assert late.status_code == 408
    odd = httpx.post(f"{server.http}/v1/scans", content=b"x", headers={"x-request-timeout-ms": "soon"})
    assert odd.status_code == 400
    with pytest.raises(CovidnetError, match="DEADLINE_EXCEEDED"):
        Client(server.grpc, timeout_s=0.01).predict(nifti)
    assert Client(server.grpc).predict(nifti).label in ("NCP", "CP", "Normal")


@pytest.fixture
def web(bundle_dir: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(bundle_dir))) as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{files.server_address[1]}"
        files.shutdown()


def test_a_bundle_is_a_folder_or_fetched_from_a_uri(bundle_dir: Path, tmp_path: Path, web: str) -> None:
    assert storage.fetch(str(bundle_dir), tmp_path) == bundle_dir
    assert storage.fetch(f"file://{bundle_dir}", tmp_path) == bundle_dir
    fetched = storage.fetch(web, tmp_path)
    assert {path.name: path.read_bytes() for path in fetched.iterdir()} == {
        path.name: path.read_bytes() for path in bundle_dir.iterdir()
    }


def test_the_server_fetches_its_bundle_from_a_uri(start: Callable[..., "Server"], bundle_dir: Path, web: str) -> None:
    served = start("--bundle", web)
    assert served.metric("covidnet_bundle_info", version=Bundle.load(bundle_dir).version) == 1


def test_a_uri_that_cant_be_read_says_so(tmp_path: Path, web: str) -> None:
    with pytest.raises(UsageError, match="nosuch"):
        storage.fetch("nosuch://bucket/bundle", tmp_path)
    with pytest.raises(CovidnetError, match="http://"):
        storage.fetch(f"{web}/nothing/here", tmp_path)
