"""A Model Registry over HTTP that keeps what it is told, by the paths, bodies and statuses of its REST API v1."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from json_server import JsonHandler, answering
from pydantic import ValidationError
from toy_bundle import TEMPERATURE, detector, write

from covidnet.config import Deploy
from covidnet.deploy import registry
from covidnet.errors import CovidnetError
from covidnet.export.bundle import Bundle, Calibration

ROOT = "/api/model_registry/v1/"
KINDS = {"registered_model": "registered_models", "model_version": "model_versions", "model_artifact": "artifacts"}
LINEAGE = {"data_revision": "d41d8cd98f00", "code": "c0de"}
RUN = {"id": "b6a9dde3-1647-463f-aeb8-5800089c84e8", "name": "covidnet3d-x7k2p"}


class Registry(ThreadingHTTPServer):
    """``tables`` hold what was registered; ``refuse`` is a status to answer with, ``lose`` a request to drop."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tables: dict[str, list[dict[str, Any]]] = {name: [] for name in KINDS.values()}
        self.tokens: list[str | None] = []
        self.token: str | None = None
        self.refuse: int | None = None
        self.lose: str | None = None
        self.raced: dict[str, Any] | None = None
        self.lock = threading.Lock()
        self.address = f"http://127.0.0.1:{self.server_port}"

    def add(self, table: str, body: dict[str, Any], parent: str | None) -> tuple[int, dict[str, Any]]:
        """A name is unique below its parent, and immutable."""
        if any(row["name"] == body["name"] and row["parent"] == parent for row in self.tables[table]):
            return 409, {"code": "409", "message": "already exists"}
        number = sum(map(len, self.tables.values())) + 1
        row = {"state": "LIVE", **body, "id": str(number), "parent": parent}
        self.tables[table].append(row)
        return 201, row


class Handler(JsonHandler):
    server: Registry

    def refused(self) -> bool:
        given = self.headers.get("Authorization")
        self.server.tokens.append(given)
        status = self.server.refuse
        if self.server.token is not None and given != f"Bearer {self.server.token}":
            status = 401
        if status:
            self.answer(status, {"code": str(status), "message": "refused"})
        return status is not None

    def do_GET(self) -> None:
        if self.refused():
            return
        if "name=" not in self.path:  # the client's first look, at all models
            items = self.server.tables["registered_models"]
            self.answer(200, {"items": items, "size": len(items), "pageSize": 1, "nextPageToken": ""})
            return
        kind, query = urlsplit(self.path).path.removeprefix(ROOT), parse_qs(urlsplit(self.path).query)
        name, parent = query["name"][0], query.get("parentResourceId", [None])[0]
        rows = [row for row in self.server.tables.get(KINDS.get(kind, ""), [])
                if (row["name"], row["parent"]) == (name, parent)]  # fmt: skip
        self.answer(*((200, rows[0]) if rows else (404, {"code": "404", "message": "not found"})))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.refused():
            return
        *above, table = self.path.removeprefix(ROOT).split("/")
        if table == self.server.lose:
            self.server.lose = None
            self.close_connection = True
            return
        parent = above[1] if above else body.get("registeredModelId")
        if self.server.raced is not None:  # another client was a moment faster
            self.server.add(table, self.server.raced, parent)
            self.server.raced = None
        self.answer(*self.server.add(table, body, parent))

    def answer(self, status: int, tree: dict[str, Any]) -> None:
        super().answer(status, {key: value for key, value in tree.items() if key != "parent"})


@pytest.fixture
def server() -> Iterator[Registry]:
    server = Registry()
    with answering(server):
        yield server


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registered")
    write(folder)
    return folder / "bundle"


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    figures = {"accuracy": 0.875, "balanced_accuracy": 0.86, "kappa": 0.8, "f1": None, "roc_auc": 0.97}
    told = {"metrics": {"covidnet3d-s": figures}, "calibration": {"ece_after": 0.04}}
    results = {"winner": {"name": "covidnet3d-s"}, **told}
    (tmp_path / "results.json").write_text(json.dumps(results))
    made = {"inputs": {"dataset": "3d5b", "retrain/S": "c1a7"}, "git_revision": "5d41c06"}
    (tmp_path / "provenance.json").write_text(json.dumps(made))
    return tmp_path


@pytest.fixture(autouse=True)
def _not_in_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KF_PIPELINES_SA_TOKEN_PATH", raising=False)
    monkeypatch.setattr("covidnet.cluster.own_namespace", lambda: "lungs")


def register(server: Registry, evaluated: Path, bundle: Path, run: dict[str, str] = RUN) -> str:
    return registry.register(server.address, evaluated, bundle, "s3://models/run/bundle", LINEAGE, run)


def test_figures_data_revision_and_lineage_are_recorded(server: Registry, evaluated: Path, bundle: Path) -> None:
    version = Bundle.load(bundle).version
    assert register(server, evaluated, bundle) == f"covidnet3d, version {version}, is registered at {server.address}"
    (model,) = server.tables["registered_models"]
    (known,) = server.tables["model_versions"]
    (artifact,) = server.tables["artifacts"]
    assert (model["name"], known["name"], known["registeredModelId"]) == ("covidnet3d", version, model["id"])
    assert "no output is a diagnosis" in known["description"]
    assert known["customProperties"] == {
        **{
            name: {"metadataType": "MetadataStringValue", "string_value": value}
            for name, value in {
                "winner": "covidnet3d-s",
                "data_revision": "d41d8cd98f00",
                "code": "c0de",
                "dataset_sha256": "3d5b",
                "git_revision": "5d41c06",
            }.items()
        },
        **{
            name: {"metadataType": "MetadataDoubleValue", "double_value": value}
            for name, value in {
                "test_accuracy": 0.875,
                "test_balanced_accuracy": 0.86,
                "test_kappa": 0.8,
                "test_roc_auc": 0.97,
                "test_ece": 0.04,
            }.items()
        },
    }
    assert artifact["parent"] == known["id"]
    told = {key: artifact[key] for key in artifact if key not in ("id", "parent", "state")}
    assert told == {
        "artifactType": "model-artifact",
        "name": "covidnet3d",
        "uri": "s3://models/run/bundle",
        "modelFormatName": "onnx",
        "modelFormatVersion": "1",
        "modelSourceKind": "kfp",
        "modelSourceClass": "pipelinerun",
        "modelSourceGroup": "lungs",
        "modelSourceId": RUN["id"],
        "modelSourceName": RUN["name"],
    }


def test_what_is_registered_is_found_by_the_registrys_own_client(
    server: Registry, evaluated: Path, bundle: Path
) -> None:
    register(server, evaluated, bundle)
    version, code = (
        Bundle.load(bundle).version,
        "\n".join(
            [
                "import sys; from model_registry import ModelRegistry",
                "registry = ModelRegistry(sys.argv[1], author='reader', is_secure=False)",
                "print(registry.get_model_version('covidnet3d', sys.argv[2]).custom_properties['test_accuracy'])",
                "print(registry.get_model_artifact('covidnet3d', sys.argv[2]).uri)",
            ]
        ),
    )  # a process of its own: the client patches asyncio for all of it
    read = [sys.executable, "-W", "ignore", "-c", code, server.address, version]
    found = subprocess.run(read, capture_output=True, text=True, check=True).stdout
    assert found.split() == ["0.875", "s3://models/run/bundle"]


def test_registering_again_changes_nothing(server: Registry, evaluated: Path, bundle: Path) -> None:
    register(server, evaluated, bundle)
    before = json.dumps(server.tables)
    assert "is registered already at" in register(server, evaluated, bundle, {"id": "later", "name": "later"})
    assert json.dumps(server.tables) == before


def test_another_bundle_is_another_version_of_the_same_model(
    server: Registry, evaluated: Path, bundle: Path, tmp_path: Path
) -> None:
    register(server, evaluated, bundle)
    write(tmp_path, Calibration(TEMPERATURE, detector(5.0)))
    register(server, evaluated, tmp_path / "bundle")
    assert [len(rows) for rows in server.tables.values()] == [1, 2, 2]


@pytest.mark.parametrize("lost", ["registered_models", "model_versions", "artifacts"])
def test_what_a_lost_connection_left_half_done_is_completed(
    server: Registry, evaluated: Path, bundle: Path, lost: str
) -> None:
    server.lose = lost
    with pytest.raises(CovidnetError, match=f"the Model Registry at {server.address} could not take bundle"):
        register(server, evaluated, bundle)
    assert not server.tables[lost]
    register(server, evaluated, bundle)
    assert [len(rows) for rows in server.tables.values()] == [1, 1, 1]


def test_two_runs_at_once_make_one_model(server: Registry, evaluated: Path, bundle: Path) -> None:
    server.raced = {"name": "covidnet3d"}
    register(server, evaluated, bundle)
    assert [len(rows) for rows in server.tables.values()] == [1, 1, 1]


def test_the_token_of_the_service_account_is_sent_and_never_told(
    server: Registry, evaluated: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = "secret"
    with pytest.raises(CovidnetError, match="401 Unauthorized; it asks for a token"):
        register(server, evaluated, bundle)
    assert server.tokens == [None]
    (tmp_path / "token").write_text("wrong\n")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(CovidnetError, match="401") as error:
        register(server, evaluated, bundle)
    assert "wrong" not in str(error.value)
    (tmp_path / "token").write_text("secret\n")
    register(server, evaluated, bundle)
    assert server.tokens[-1] == "Bearer secret"


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(403, "has no rights there"), (404, "speaks the API of the installed client"), (500, "see the registry's log")],
)
def test_a_refusal_is_named(server: Registry, evaluated: Path, bundle: Path, status: int, remedy: str) -> None:
    server.refuse = status
    with pytest.raises(CovidnetError, match=f"{status} .*{remedy}"):
        register(server, evaluated, bundle)


def test_no_registry_is_named(server: Registry, evaluated: Path, bundle: Path) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(CovidnetError, match=r"no answer \(.*is the address right\?"):
        register(server, evaluated, bundle)


def test_a_registry_that_hangs_is_given_up(
    server: Registry, evaluated: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "TIMEOUT_S", 0.3)
    with server.lock:
        monkeypatch.setattr(Handler, "answer", lambda self, *_: self.server.lock.acquire())
        with pytest.raises(CovidnetError, match="no answer"):
            register(server, evaluated, bundle)


def test_an_address_without_a_scheme_is_refused_before_anything_runs() -> None:
    with pytest.raises(ValidationError, match="registry"):
        Deploy(registry="model-registry-service.kubeflow:8080")
