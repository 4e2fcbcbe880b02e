"""The real server, in a process of its own, and real clients."""

import asyncio
import base64
import gzip
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import nibabel
import numpy as np
import pytest
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, InferResponse, RESTConfig
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from kserve.protocol.infer_type import RequestedOutput
from PIL import Image

from covidnet.data.preprocess import Spec, prepare
from covidnet.data.scan import Scan
from covidnet.inference.predict import predict

if TYPE_CHECKING:
    from conftest import Server

CLASSES = ["NCP", "CP", "Normal"]
SECRET = "Doe^Jane"


def by_rest(server: "Server", inputs: list[InferInput], outputs: list[str] | None = None) -> InferResponse:
    async def infer() -> InferResponse:
        async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=60)) as client:
            return await client.infer(server.http, request_of(inputs, outputs), model_name="covidnet")

    return asyncio.run(infer())


def by_grpc(server: "Server", inputs: list[InferInput], outputs: list[str] | None = None) -> InferResponse:
    async def infer() -> InferResponse:
        async with InferenceGRPCClient(server.grpc, timeout=60) as client:
            return await client.infer(request_of(inputs, outputs))

    return asyncio.run(infer())


def request_of(inputs: list[InferInput], outputs: list[str] | None) -> InferRequest:
    wanted = [RequestedOutput(name) for name in outputs] if outputs else None
    return InferRequest("covidnet", inputs, request_id="7", request_outputs=wanted)


def tensor(name: str, array: np.ndarray, datatype: str) -> InferInput:
    made = InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def file_tensor(path: Path) -> InferInput:
    return tensor("file", np.array([path.read_bytes()], np.object_), "BYTES")


def probabilities(response: InferResponse) -> list[float]:
    return response.get_output_by_name("probabilities").as_numpy()[0].tolist()


@pytest.fixture(scope="module")
def expected(nifti: Path, bundle_dir: Path) -> list[float]:
    """What `covidnet predict` says."""
    (result,) = predict([nifti], bundle_dir)
    return [result["probabilities"][name] for name in CLASSES]


@pytest.fixture(scope="module")
def volume(scan: Scan) -> np.ndarray:
    return prepare(scan, Spec((16, 64, 64))).volume[None]  # (1, D, H, W)


def test_every_way_in_gives_the_answer_of_covidnet_predict(
    server: "Server", nifti: Path, scan: Scan, volume: np.ndarray, expected: list[float]
) -> None:
    content = nifti.read_bytes()
    text = base64.b64encode(content).decode()
    spacing = np.array(scan.spacing_mm, np.float32)
    hu = [tensor("scan_hu", scan.voxels, "INT16"), tensor("spacing_mm", spacing, "FP32")]
    instances: list[dict[str, Any]] = [
        {"file": {"b64": text}},
        {"volume": volume[0].tolist()},
        {"scan_hu": scan.voxels.tolist(), "spacing_mm": spacing.tolist()},
    ]
    v1 = httpx.post(f"{server.http}/v1/models/covidnet:predict", json={"instances": instances}, timeout=60).json()
    json_file = {"inputs": [{"name": "file", "shape": [1], "datatype": "BYTES", "data": [text]}]}
    v2 = httpx.post(f"{server.http}/v2/models/covidnet/infer", json=json_file, timeout=60).json()
    raw = httpx.post(f"{server.http}/v1/scans", content=content, timeout=60).json()
    form = httpx.post(f"{server.http}/v1/scans", files={"file": (f"{SECRET}.exe", content)}, timeout=60).json()
    answers = {
        "V1 file": [v1["predictions"][0]["probabilities"][name] for name in CLASSES],
        "V1 volume": [v1["predictions"][1]["probabilities"][name] for name in CLASSES],
        "V1 scan_hu": [v1["predictions"][2]["probabilities"][name] for name in CLASSES],
        "V2 JSON file": v2["outputs"][0]["data"],
        "upload": [raw["probabilities"][name] for name in CLASSES],
        "form": [form["probabilities"][name] for name in CLASSES],
    }
    for name, inputs in {"file": [file_tensor(nifti)], "scan_hu": hu}.items():
        answers[f"V2 {name}"] = probabilities(by_rest(server, inputs))
        answers[f"gRPC {name}"] = probabilities(by_grpc(server, inputs))
    answers["V2 volume"] = probabilities(by_rest(server, [tensor("volume", volume, "UINT8")]))
    answers["gRPC volume"] = probabilities(by_grpc(server, [tensor("volume", volume, "UINT8")]))
    for way, found in answers.items():
        assert found == pytest.approx(expected, abs=1e-6), way


TRITON = """
import sys
import numpy as np

volume = np.load(sys.argv[1])
for protocol, url in zip(("http", "grpc"), sys.argv[2:]):
    triton = __import__(f"tritonclient.{protocol}", fromlist=[protocol])
    client = triton.InferenceServerClient(url)
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("covidnet")
    tensor = triton.InferInput("volume", list(volume.shape), "UINT8")
    tensor.set_data_from_numpy(volume)
    outputs = [triton.InferRequestedOutput("probabilities"), triton.InferRequestedOutput("label")]
    result = client.infer("covidnet", [tensor], outputs=outputs)
    print(result.as_numpy("label").item().decode(), *result.as_numpy("probabilities")[0])
"""


def test_tritonclient_works_unmodified(
    server: "Server", volume: np.ndarray, expected: list[float], tmp_path: Path
) -> None:
    if find_spec("tritonclient") is None:
        pytest.skip("tritonclient is not installed")
    np.save(tmp_path / "volume.npy", volume)
    # in a process of its own: its protocol buffers and KServe's have the same names
    command = [sys.executable, "-c", TRITON, tmp_path / "volume.npy", server.http.removeprefix("http://"), server.grpc]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        label, *found = line.split()
        assert label == CLASSES[int(np.argmax(expected))]
        assert [float(p) for p in found] == pytest.approx(expected, abs=1e-6)


def test_a_batch_is_answered_in_order_and_as_one_by_one(server: "Server", volume: np.ndarray) -> None:
    batch = np.concatenate([volume, 255 - volume, volume // 2] * 4)  # 12, more than one run of the network
    together = by_grpc(server, [tensor("volume", batch, "UINT8")]).get_output_by_name("probabilities").as_numpy()
    assert together.shape == (12, 3)
    alone = [probabilities(by_grpc(server, [tensor("volume", one[None], "UINT8")])) for one in batch[:3]]
    assert together.tolist() == [pytest.approx(row, abs=1e-6) for row in alone * 4]
    assert not np.allclose(alone[0], alone[1], atol=1e-3)


def test_explain_and_the_cam_output_are_the_same_maps(server: "Server", volume: np.ndarray) -> None:
    body = {"instances": [{"volume": volume[0].tolist()}]}
    v1 = httpx.post(f"{server.http}/v1/models/covidnet:explain", json=body).json()["predictions"][0]["cam"]
    response = by_grpc(server, [tensor("volume", volume, "UINT8")], ["cam"])
    assert [output.name for output in response.outputs] == ["cam"]
    cam = response.get_output_by_name("cam").as_numpy()
    assert np.array([v1[name] for name in CLASSES])[None] == pytest.approx(cam, abs=1e-6)


def test_a_map_at_the_scans_resolution_is_the_same_by_every_way(server: "Server", nifti: Path, scan: Scan) -> None:
    response = by_grpc(server, [file_tensor(nifti)], ["label", "cam_scan"])
    (evidence,) = response.get_output_by_name("cam_scan").as_numpy()
    assert evidence.shape == scan.shape
    assert evidence.dtype == np.uint8
    (unit,) = json.loads(response.parameters["evidence_per_255"].string_param)
    content = nifti.read_bytes()
    upload = httpx.post(
        f"{server.http}/v1/scans", content=content, headers={"accept": "application/x-nifti"}, timeout=60
    )
    body = {"instances": [{"file": {"b64": base64.b64encode(content).decode()}}], "parameters": {"cam": "scan"}}
    v1 = httpx.post(f"{server.http}/v1/models/covidnet:explain", json=body, timeout=60).json()["predictions"][0]
    assert base64.b64decode(v1["cam_nifti"]["b64"]) == upload.content
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(upload.content))
    assert np.allclose(image.affine, nibabel.load(nifti).affine)
    # the fixture's file has its axes to the right, front and head turned round, so x, y, z are the project's
    assert np.allclose(image.get_fdata().transpose(2, 1, 0), evidence * (unit / 255), atol=1e-4)


def test_a_map_too_large_for_json_is_asked_for_as_binary_data(server: "Server", scan: Scan) -> None:
    large = np.kron(scan.voxels, np.ones((1, 4, 4), np.int16))
    inputs = [tensor("scan_hu", large, "INT16"), tensor("spacing_mm", np.array([2, 1, 1], np.float32), "FP32")]
    wanted = [RequestedOutput("cam_scan", {"binary_data": False})]
    body, json_bytes = InferRequest("covidnet", inputs, request_outputs=wanted).to_rest()
    refused = httpx.post(
        f"{server.http}/v2/models/covidnet/infer",
        content=body,
        headers={"inference-header-content-length": str(json_bytes)},
        timeout=60,
    )
    assert refused.status_code == 400
    assert "binary" in refused.json()["error"]


def test_an_answer_names_the_model_version_and_flags_and_times(server: "Server", nifti: Path, bundle_dir: Path) -> None:
    (expected,) = predict([nifti], bundle_dir)
    answer = httpx.post(f"{server.http}/v1/scans", content=nifti.read_bytes(), timeout=60).json()
    assert answer["model_version"] == expected["bundle"]
    assert answer["label"] == expected["label"]
    assert answer["flags"] == expected["flags"]
    assert "out-of-distribution" in answer["flags"]  # the fixture's threshold is below any distance
    assert answer["energy"] == pytest.approx(expected["energy"], abs=1e-5)
    assert answer["novelty"] == pytest.approx(expected["novelty"], abs=1e-5)
    assert set(answer["seconds"]) == {*expected["seconds"], "queue"}
    response = by_rest(server, [file_tensor(nifti)])
    assert response.id == "7"
    assert json.loads(response.parameters["classes"]) == CLASSES


def test_the_overlay_comes_alone_or_within_the_json(server: "Server", nifti: Path) -> None:
    content = nifti.read_bytes()
    picture = httpx.post(f"{server.http}/v1/scans", content=content, headers={"accept": "image/png"}, timeout=60)
    assert picture.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(picture.content)).width > 400
    answer = httpx.post(f"{server.http}/v1/scans?overlay=true", content=content, timeout=60).json()
    assert base64.b64decode(answer["overlay"].removeprefix("data:image/png;base64,")) == picture.content


def test_a_synthetic_scan_of_each_class_is_answered(server: "Server") -> None:
    for label in CLASSES:
        answer = httpx.post(f"{server.http}/v1/phantoms/{label}", timeout=60)
        assert sum(answer.json()["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert httpx.post(f"{server.http}/v1/phantoms/{SECRET}").status_code == 400


@pytest.mark.slow
def test_a_real_dicom_series_is_answered_as_by_covidnet_predict(
    server: "Server", real_scans: Path, bundle_dir: Path
) -> None:
    folder = real_scans / "tcia-lung-pet-ct-dx-A0002"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
    (expected,) = predict([folder], bundle_dir)
    answer = httpx.post(f"{server.http}/v1/scans", content=stream.getvalue(), timeout=120).json()
    assert answer["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-6)
    assert answer["flags"] == expected["flags"]


def test_metadata_names_the_tensors_and_their_shapes(server: "Server") -> None:
    metadata = httpx.get(f"{server.http}/v2/models/covidnet").json()
    shapes = {item["name"]: item["shape"] for item in metadata["inputs"] + metadata["outputs"]}
    assert shapes["volume"] == [-1, 16, 64, 64]
    assert shapes["probabilities"] == [-1, 3]
    assert httpx.get(f"{server.http}/v2/health/live").json() == {"live": True}
    assert httpx.get(f"{server.http}/v1/models").json() == {"models": ["covidnet"]}
    with grpc.insecure_channel(server.grpc) as channel:
        stub = GRPCInferenceServiceStub(channel)
        assert stub.ServerReady(pb.ServerReadyRequest()).ready
        over_grpc = stub.ModelMetadata(pb.ModelMetadataRequest(name="covidnet"))
    assert {item.name: list(item.shape) for item in [*over_grpc.inputs, *over_grpc.outputs]} == shapes


def test_grpc_takes_messages_beyond_its_usual_limits(server: "Server", scan: Scan) -> None:
    large = np.kron(scan.voxels, np.ones((2, 6, 6), np.int16))  # 14 MB and more
    assert large.nbytes > 8 * 2**20
    inputs = [tensor("scan_hu", large, "INT16"), tensor("spacing_mm", np.array([2, 1, 1], np.float32), "FP32")]
    assert sum(probabilities(by_grpc(server, inputs))) == pytest.approx(1, abs=1e-5)


def test_a_full_disk_is_no_fault_of_the_scan(
    start: Callable[[], "Server"], disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, nifti: Path
) -> None:
    short = Path(tempfile.mkdtemp(), "disk")  # a socket lies below, whose path has at most 107 bytes
    short.symlink_to(disk("size=3m"))
    monkeypatch.setenv("TMPDIR", str(short))
    server = start()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            archive.writestr(f"{number}.dcm", np.random.default_rng(number).integers(0, 4, 2**20, np.uint8).tobytes())
    packed = stream.getvalue()  # 1 MiB, of 4
    for content, what in ((packed, "unpacked"), (packed * 4, "uploaded")):
        refused = httpx.post(f"{server.http}/v1/scans", content=content, timeout=60)
        assert (refused.status_code, what) == (503, what)
        assert "the disk is full" in refused.text
    assert httpx.post(f"{server.http}/v1/scans", content=nifti.read_bytes(), timeout=60).status_code == 200
    assert server.log.read_text().count("no scan can be laid down") == 2
    assert server.stop() == 0
    shutil.rmtree(short.parent)


def test_metrics_count_outcomes_predictions_and_name_the_bundle(server: "Server", nifti: Path) -> None:
    ok = {"route": "scans", "outcome": "ok"}
    before = server.metric("covidnet_requests_total", **ok)
    label = httpx.post(f"{server.http}/v1/scans", content=nifti.read_bytes(), timeout=60).json()["label"]
    predictions = server.metric("covidnet_predictions_total", label=label)
    answer = httpx.post(f"{server.http}/v1/scans", content=nifti.read_bytes(), timeout=60).json()
    assert server.metric("covidnet_requests_total", **ok) == before + 2
    assert server.metric("covidnet_predictions_total", label=label) == predictions + 1
    assert server.metric("covidnet_bundle_info", version=answer["model_version"]) == 1
    for phase in ("decode", "preprocess", "queue", "inference"):
        assert server.metric("covidnet_phase_seconds_count", phase=phase) > 0


def test_the_serving_process_has_no_torch(server: "Server", repository: Path) -> None:
    code = "import sys, serving.server; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=repository).returncode == 0
    maps = Path(f"/proc/{server.process.pid}/maps")
    if maps.exists():  # after all the requests above
        assert "libtorch" not in maps.read_text()


@pytest.mark.parametrize("taken", ["--http-port", "--grpc-port"])
def test_two_servers_cant_share_a_port(server: "Server", bundle_dir: Path, repository: Path, taken: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()[1]
    ports = {"--http-port": free, "--grpc-port": free}
    ports[taken] = int((server.http if taken == "--http-port" else server.grpc).rpartition(":")[2])
    options = [str(part) for option in ports.items() for part in option]
    command = [sys.executable, "-m", "serving", "--bundle", str(bundle_dir), *options]
    ended = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert f"port {ports[taken]}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_page_may_run_nothing_but_itself_and_asks_no_other_host(server: "Server") -> None:
    page = httpx.get(f"{server.http}/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    assert "'unsafe-eval'" not in policy
    assert not re.search(r"""(src|href|action)\s*=\s*["']?(https?:)?//|url\(|@import""", page.text)
    assert "Research use only" in page.text
    assert page.headers["x-content-type-options"] == "nosniff"
