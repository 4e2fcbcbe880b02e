"""What the real server says to bad requests and to too many of them."""

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

if TYPE_CHECKING:
    from conftest import Server

SECRET = "Doe^Jane"


def bad_posts() -> dict[str, tuple[str, dict[str, Any]]]:
    v1, v2, upload = "/v1/models/covidnet:predict", "/v2/models/covidnet/infer", "/v1/scans"
    image = {"name": SECRET, "shape": [1], "datatype": SECRET, "data": [SECRET]}
    return {
        "V1 text": (v1, {"content": SECRET}),
        "V1 empty": (v1, {"content": b""}),
        "V1 list": (v1, {"json": [SECRET]}),
        "V1 unknown key": (v1, {"json": {"instances": [{SECRET: 1}]}}),
        "V1 no instances": (v1, {"json": {"inputs": [SECRET]}}),
        "V1 binary": (v1, {"content": b"\xff\xfe" + SECRET.encode(), "headers": {"content-type": "text/plain"}}),
        "V1 cloud event": (v1, {"content": SECRET, "headers": {"ce-id": SECRET, "ce-specversion": "9"}}),
        "V1 compressed": (v1, {"content": SECRET, "headers": {"content-encoding": "gzip"}}),
        "V1 not a scan": (v1, {"json": {"instances": [{"file": {"b64": base64.b64encode(SECRET.encode()).decode()}}]}}),
        "V1 deep": (v1, {"content": b"[" * 100_000}),
        "V2 no inputs": (v2, {"json": {"id": SECRET}}),
        "V2 inputs of another kind": (v2, {"json": {"inputs": SECRET}}),
        "V2 unknown tensor": (v2, {"json": {"inputs": [image]}}),
        "V2 shape": (v2, {"json": {"inputs": [{**image, "name": "volume", "datatype": "UINT8", "shape": [9, 9]}]}}),
        "V2 json length": (v2, {"content": SECRET, "headers": {"inference-header-content-length": "99999"}}),
        "upload empty": (upload, {"content": b""}),
        "upload text": (upload, {"content": SECRET * 1000}),
        "upload cut zip": (upload, {"content": b"PK\x03\x04" + SECRET.encode()}),
        "upload cut gzip": (upload, {"content": b"\x1f\x8b\x08" + SECRET.encode()}),
        "upload dicom": (upload, {"content": bytes(128) + b"DICM" + SECRET.encode() * 99}),
        "form without boundary": (upload, {"content": SECRET, "headers": {"content-type": "multipart/form-data"}}),
        "form of two": (upload, {"files": [("a", SECRET.encode()), ("b", SECRET.encode())]}),
        "no form": (upload, {"content": SECRET, "headers": {"content-type": "multipart/form-data; boundary=x"}}),
        "another model": (f"/v1/models/{SECRET}:predict", {"json": {}}),
        "another model in V2": (f"/v2/models/{SECRET}/infer", {"json": {}}),
        "unload": ("/v2/repository/models/covidnet/unload", {}),
        "no route": (f"/{SECRET}", {"content": SECRET}),
    }


@pytest.mark.parametrize(("path", "body"), bad_posts().values(), ids=bad_posts())
def test_bad_http_requests_get_a_4xx_that_says_why_and_quotes_nothing(
    server: "Server", path: str, body: dict[str, Any]
) -> None:
    response = httpx.post(server.http + path, timeout=60, **body)
    assert 400 <= response.status_code < 500
    assert len(response.json()["error"]) > 5
    assert SECRET not in response.text + str(response.headers)
    assert SECRET not in server.log.read_text()


def grpc_input(**changes: Any) -> pb.ModelInferRequest:
    one = {"name": "volume", "datatype": "UINT8", "shape": [1, 16, 64, 64], **changes}
    return pb.ModelInferRequest(
        model_name="covidnet",
        inputs=[pb.ModelInferRequest.InferInputTensor(**one)],
        raw_input_contents=[bytes(16 * 64 * 64)],
    )


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (pb.ModelInferRequest(model_name="covidnet"), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.ModelInferRequest(model_name=SECRET), grpc.StatusCode.NOT_FOUND),
        (grpc_input(name=SECRET), grpc.StatusCode.INVALID_ARGUMENT),
        (grpc_input(datatype=SECRET), grpc.StatusCode.INVALID_ARGUMENT),
        (grpc_input(shape=[-1]), grpc.StatusCode.INVALID_ARGUMENT),
        (grpc_input(shape=[1, 16, 64, 65]), grpc.StatusCode.INVALID_ARGUMENT),
        (grpc_input(name="file", datatype="BYTES", shape=[1]), grpc.StatusCode.INVALID_ARGUMENT),
        (
            grpc_input(contents=pb.InferTensorContents(bytes_contents=[SECRET.encode()])),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
    ],
)
def test_bad_grpc_requests_get_a_status_that_says_why_and_quotes_nothing(
    server: "Server", request_: pb.ModelInferRequest, status: grpc.StatusCode
) -> None:
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as refused:
        GRPCInferenceServiceStub(channel).ModelInfer(request_, timeout=60)
    assert refused.value.code() == status
    assert len(refused.value.details()) > 5
    assert SECRET not in refused.value.details()
    assert SECRET not in server.log.read_text()


@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata", "ServerReady"])
def test_a_broken_grpc_message_is_refused_like_another_bad_request(server: "Server", method: str) -> None:
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(b"\x0a\xff" + SECRET.encode())
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert SECRET not in refused.value.details()


def test_a_caller_cant_unload_the_model(server: "Server") -> None:
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as refused:
        GRPCInferenceServiceStub(channel).RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="covidnet"))
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert httpx.get(f"{server.http}/v2/models/covidnet/ready").status_code == 200


def test_a_body_announced_above_the_limit_is_refused_before_it_is_sent(server: "Server") -> None:
    for path in ("/v1/scans", "/v1/models/covidnet:predict", "/v2/models/covidnet/infer"):
        with server.begin(path, content_length=2**40) as connection:
            assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_full_queue_answers_429_and_serves_again(server: "Server", nifti: Path) -> None:
    held = [server.begin("/v1/scans", content_length=1000) for _ in range(32)]
    try:
        server.wait_until(lambda: server.metric("covidnet_requests_in_flight") >= 32)
        refused = httpx.post(f"{server.http}/v1/scans", content=nifti.read_bytes())
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 0
        with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as over_grpc:
            GRPCInferenceServiceStub(channel).ModelInfer(grpc_input())
        assert over_grpc.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert httpx.get(f"{server.http}/v2/health/live").status_code == 200
    finally:
        for connection in held:
            connection.close()
    server.wait_until(lambda: server.metric("covidnet_requests_in_flight") == 0)
    assert httpx.post(f"{server.http}/v1/scans", content=nifti.read_bytes(), timeout=60).status_code == 200
