"""The archive, the handler, and TorchServe itself beside the engine that the KServe predictor runs."""

import base64
import concurrent.futures
import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from covidnet import cli, stages
from covidnet.errors import CovidnetError
from covidnet.export import torchserve
from covidnet.export.bundle import FILES, WEIGHTS, Bundle
from covidnet.inference import engine, predict
from serving.torchserve import ping

ts_context = pytest.importorskip("ts.context", reason="pip install 'covidnet3d[torchserve]'")

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def volumes() -> np.ndarray:
    """Prepared volumes, uint8 (16, D, H, W), smooth enough to differ as scans do."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (16, 4, 8, 8), np.uint8)
    return coarse.repeat(4, axis=1).repeat(8, axis=2).repeat(8, axis=3)


@pytest.fixture(scope="module")
def expected(found_bundle: Bundle, volumes: np.ndarray) -> engine.Outputs:
    """What the torch-free engine says of them."""
    outputs = engine.load(found_bundle).run(volumes[:, None])
    assert outputs.probabilities.std(axis=0).min() > 0.01  # or agreement would mean little
    return outputs


def v1(*scans: np.ndarray) -> dict[str, Any]:
    return {"instances": [{"volume": scan.tolist()} for scan in scans]}


def v2(scans: np.ndarray, **more: Any) -> dict[str, Any]:
    tensor = {"name": "volume", "datatype": "UINT8", "shape": list(scans.shape), "data": scans.tolist()}
    return {"inputs": [tensor], **more}


def probabilities(predictions: list[dict[str, Any]]) -> np.ndarray:
    return np.array([list(prediction["probabilities"].values()) for prediction in predictions])


class TestArchive:
    def test_has_what_the_archiver_of_torchserve_would_name(self, exported: Path) -> None:
        archiver = pytest.importorskip(
            "model_archiver.model_packaging_utils", reason="pip install torch-model-archiver"
        )
        config = pytest.importorskip("model_archiver.model_archiver_config").ModelArchiverConfig(
            model_name="covidnet", handler="handler.py", version="1.0", runtime="python"
        )
        theirs = json.loads(archiver.ModelExportUtils.generate_manifest_json(config))
        with zipfile.ZipFile(exported / "model-store" / "covidnet.mar") as archive:
            ours = json.loads(archive.read("MAR-INF/MANIFEST.json"))
            names = set(archive.namelist())
        assert ours["model"] == theirs["model"]
        assert ours["runtime"] == theirs["runtime"]
        assert {f"bundle/{name}" for name in FILES} <= names
        assert {"handler.py", "covidnet/data/preprocess.py", "serving/protocol.py"} <= names

    def test_is_the_same_for_the_same_bundle(
        self, exported: Path, found_bundle: Bundle, repository: Path, tmp_path: Path
    ) -> None:
        again = torchserve.write(found_bundle.path, tmp_path / "again", repository / "serving")
        assert again.read_bytes() == (exported / "model-store" / "covidnet.mar").read_bytes()

    def test_the_verb_writes_beside_the_export(
        self, found_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stages, "export", lambda *_: {"model": "covidnet3d-s"})  # the stage has its own tests
        shutil.copytree(found_bundle.path, tmp_path / "winner" / "bundle")
        result = CliRunner().invoke(cli.app, ["export", "--out", str(tmp_path / "winner"), "--torchserve", "--json"])
        assert result.exit_code == 0, result.output
        written = tmp_path / "winner-torchserve"
        assert json.loads(result.stdout)["metrics"]["torchserve"] == str(written / "model-store" / "covidnet.mar")
        assert sorted(path.name for path in written.rglob("*") if path.is_file()) == [
            "config.properties",
            "covidnet.mar",
        ]

    def test_configuration_keeps_tokens_on_and_management_at_home(self, exported: Path) -> None:
        lines = (exported / "config" / "config.properties").read_text().splitlines()
        properties = dict(line.split("=", 1) for line in lines)
        assert properties["disable_token_authorization"] == "false"
        assert properties["management_address"].startswith("http://127.0.0.1:")
        assert properties["grpc_management_address"] == "127.0.0.1"
        model = json.loads(properties["model_snapshot"])["models"]["covidnet"]["1.0"]
        assert model["marName"] == "covidnet.mar"
        assert model["batchSize"] > 1

    def test_weights_of_another_network_are_refused(
        self, found_bundle: Bundle, bundle_dir: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(found_bundle.path, tmp_path / "mixed")
        shutil.copy(bundle_dir / WEIGHTS, tmp_path / "mixed")
        with pytest.raises(CovidnetError, match="weights don't fit the architecture"):
            torchserve.network(replace(found_bundle, path=tmp_path / "mixed"))


@pytest.fixture(scope="module")
def handler(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Loaded from the archive, as a worker of TorchServe does."""
    from serving.torchserve.handler import Handler

    model_dir = tmp_path_factory.mktemp("model")
    with zipfile.ZipFile(exported / "model-store" / "covidnet.mar") as archive:
        archive.extractall(model_dir)
    loaded = Handler()
    loaded.initialize(ts_context.Context("covidnet", str(model_dir), {}, 8, None, "0.12.0"))
    return loaded


class TestHandler:
    def answer(self, handler: Any, *bodies: bytes, headers: dict[str, str] | None = None) -> tuple[list[bytes], Any]:
        context = ts_context.Context("covidnet", "", {}, 8, None, "0.12.0", metrics=_Metrics())
        context.request_processor = [ts_context.RequestProcessor(headers or {}) for _ in bodies]
        return handler.handle([{"body": bytearray(body)} for body in bodies], context), context

    def test_answers_every_request_of_a_batch_in_its_protocol(
        self, handler: Any, volumes: np.ndarray, expected: engine.Outputs
    ) -> None:
        bodies = [orjson.dumps(v1(*volumes[:2])), b"{nonsense", orjson.dumps(v2(volumes[2:12])), orjson.dumps(v1())]
        contents, context = self.answer(handler, *bodies)
        assert [context.get_response_status(i)[0] for i in range(4)] == [200, 400, 200, 400]
        first, third = json.loads(contents[0]), json.loads(contents[2])
        assert probabilities(first["predictions"]) == pytest.approx(expected.probabilities[:2], abs=TOLERANCE)
        assert third["outputs"][0]["shape"] == [10, 3]
        assert third["outputs"][0]["data"] == pytest.approx(expected.probabilities[2:12].ravel(), abs=TOLERANCE)
        assert "error" in json.loads(contents[1])
        assert b"nonsense" not in contents[1]

    def test_explains(self, handler: Any, volumes: np.ndarray, expected: engine.Outputs) -> None:
        contents, _ = self.answer(handler, orjson.dumps(v1(volumes[0])), headers={"explain": "True"})
        maps = json.loads(contents[0])["predictions"][0]["cam"]
        assert np.array([maps["NCP"], maps["CP"], maps["Normal"]]) == pytest.approx(expected.cam[0], abs=1e-3)

    def test_an_envelope_is_refused(self, handler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TS_SERVICE_ENVELOPE", "kserve")
        with pytest.raises(CovidnetError, match="unset it"):
            handler.initialize(None)


class _Metrics:
    def add_counter(self, name: str, value: int, index: int, dimensions: list[Any]) -> None:
        assert value == 1


@pytest.mark.slow
class TestServer:
    def test_v1_and_v2_say_what_the_engine_says(
        self, server: Any, volumes: np.ndarray, expected: engine.Outputs, found_bundle: Bundle
    ) -> None:
        with server.client() as client:
            first = client.post("/v1/models/covidnet:predict", json=v1(*volumes)).raise_for_status().json()
            explained = client.post("/v1/models/covidnet:explain", json=v1(volumes[3])).raise_for_status().json()
            second = client.post("/v2/models/covidnet/infer", json=v2(volumes, id="seven")).raise_for_status().json()
        assert first["model_version"] == second["model_version"] == found_bundle.version
        assert probabilities(first["predictions"]) == pytest.approx(expected.probabilities, abs=TOLERANCE)
        assert second["id"] == "seven"
        assert second["outputs"][0]["data"] == pytest.approx(expected.probabilities.ravel(), abs=TOLERANCE)
        maps = explained["predictions"][0]["cam"]
        assert np.array(list(maps.values())) == pytest.approx(expected.cam[3], abs=1e-3)

    def test_a_file_is_prepared_as_predict_prepares_it(self, server: Any, nifti: Path, found_bundle: Bundle) -> None:
        (alone,) = predict.predict([nifti], found_bundle.path)
        body = {"instances": [{"file": {"b64": base64.b64encode(nifti.read_bytes()).decode()}}]}
        with server.client() as client:
            answer = client.post("/v1/models/covidnet:predict", json=body).raise_for_status().json()["predictions"][0]
        assert answer["probabilities"] == pytest.approx(alone["probabilities"], abs=TOLERANCE)
        assert answer["flags"] == alone["flags"]

    def test_tritons_client_sends_binary_tensors(
        self, server: Any, volumes: np.ndarray, expected: engine.Outputs, tmp_path: Path
    ) -> None:
        np.save(tmp_path / "volumes.npy", volumes)
        token = server.tokens["inference"]["key"]
        command = [sys.executable, "-c", TRITON, server.inference.removeprefix("http://"), token, str(tmp_path)]
        subprocess.run(command, check=True, timeout=120)
        assert np.load(tmp_path / "probabilities.npy") == pytest.approx(expected.probabilities, abs=TOLERANCE)

    def test_concurrent_callers_get_their_own_answers(
        self, server: Any, volumes: np.ndarray, expected: engine.Outputs
    ) -> None:
        def ask(index: int) -> httpx.Response:
            body = orjson.dumps(v1(volumes[index])) if index != 5 else b"[]"
            return client.post("/v1/models/covidnet:predict", content=body)

        with server.client() as client, concurrent.futures.ThreadPoolExecutor(16) as pool:
            responses = list(pool.map(ask, range(16)))
        assert responses.pop(5).status_code == 400
        others = np.delete(expected.probabilities, 5, axis=0)
        found = np.concatenate([probabilities(r.raise_for_status().json()["predictions"]) for r in responses])
        assert found == pytest.approx(others, abs=TOLERANCE)

    def test_nobody_gets_in_without_a_token(self, server: Any, volumes: np.ndarray) -> None:
        key = server.tokens["inference"]["key"]
        for headers in ({}, {"authorization": "Bearer wrong"}):
            response = httpx.post(
                f"{server.inference}/v1/models/covidnet:predict", json=v1(volumes[0]), headers=headers
            )
            assert response.status_code == 400
            assert response.json()["type"] == "InvalidKeyException"
        management = httpx.get(f"{server.management}/models", headers={"authorization": f"Bearer {key}"})
        assert management.status_code == 400
        assert httpx.get(f"{server.inference}/v2/health/ready").status_code == 400

    def test_the_probe_takes_the_token_that_torchserve_wrote(self, server: Any, tmp_path: Path) -> None:
        assert ping.ready(server.inference, server.keys)
        assert not ping.ready(server.inference, tmp_path / "not_yet_written.json")
        stale = tmp_path / "stale.json"
        stale.write_text(json.dumps({"inference": {"key": "of-another-start"}}))
        assert not ping.ready(server.inference, stale)

    def test_metrics_have_the_predictors_names(self, server: Any, volumes: np.ndarray) -> None:
        with server.client() as client:
            client.post("/v1/models/covidnet:predict", json=v1(volumes[0])).raise_for_status()
            client.post("/v1/models/covidnet:predict", json={})
        text = httpx.get(f"{server.metrics}/metrics").raise_for_status().text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        outcomes = {s.labels["outcome"] for s in samples if s.name == "covidnet_requests_total"}
        assert {"ok", "invalid"} <= outcomes
        assert sum(s.value for s in samples if s.name == "covidnet_predictions_total") >= 1
        assert any(s.name.startswith("ts_inference_latency_microseconds") for s in samples)

    def test_the_log_quotes_no_request(self, server: Any) -> None:
        with server.client() as client:
            client.post("/v1/models/covidnet:predict", content=b'{"instances": [{"patient": "Doe^Jane"}]}')
            client.post("/v1/models/covidnet:predict", content=b"Doe^Jane")
        assert "Doe^Jane" not in server.log.read_text()


# Triton's and KServe's protocol buffers have the same names, so this client runs in a process of its own.
TRITON = """
import sys
from pathlib import Path
import numpy as np
import tritonclient.http as triton

address, token, folder = sys.argv[1:]
volumes = np.load(Path(folder, "volumes.npy"))
volume = triton.InferInput("volume", volumes.shape, "UINT8")
volume.set_data_from_numpy(volumes, binary_data=True)
wanted = [triton.InferRequestedOutput("probabilities", binary_data=True)]
client = triton.InferenceServerClient(address)
answer = client.infer("covidnet", [volume], outputs=wanted, headers={"Authorization": f"Bearer {token}"})
np.save(Path(folder, "probabilities.npy"), answer.as_numpy("probabilities"))
"""
