"""A Kubernetes API over HTTP with server-side apply, and behind it a KServe that makes what is applied come true."""

import json
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from typing import Any

import pytest
from json_server import JsonHandler, answering
from kubernetes.client import ApiClient, Configuration

from covidnet.config import Deploy
from covidnet.deploy.rollout import Rollout
from covidnet.deploy.service import Service

ROOT = "/apis/serving.kserve.io/v1beta1/namespaces/team/inferenceservices/"


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """Path to value; lists are atomic, as `spec.canary` is in KServe's schema."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {key: value for name, part in tree.items() for key, value in leaves(part, f"{path}.{name}").items()}


def without(tree: Any, dropped: set[str], path: str = "") -> Any:
    """``tree`` less the leaves at these paths."""
    if not isinstance(tree, dict):
        return tree
    return {k: without(v, dropped, f"{path}.{k}") for k, v in tree.items() if f"{path}.{k}" not in dropped}


def merged(base: Any, over: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return {**base, **{key: merged(base.get(key), value) for key, value in over.items()}}


class KServe:
    """What the controller does with an InferenceService, one step per look at it.

    Args:
        mode: deployment mode.
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.looks = 1  # at an object, before it is ready
        self.never: dict[str, Any] | None = None  # status of a service that doesn't get ready
        self.url = "http://covidnet.team.example"

    def status(self, spec: dict[str, Any], looks: int, history: list[str], generation: int) -> dict[str, Any]:
        ready = looks >= self.looks
        base = {"deploymentMode": self.mode, "observedGeneration": generation, "url": self.url}
        if self.never and "broken" in json.dumps(spec):
            return {**base, **self.never}
        condition = {"type": "Ready", "status": "True" if ready else "False", "reason": "" if ready else "Deploying"}
        status = {**base, "address": {"url": self.url}, "conditions": [condition]}
        predictor = spec["predictor"]
        if self.mode == "Standard":
            status["canaryStatuses"] = [
                {"name": c["predictor"]["name"], "ready": ready, "trafficPercent": c["trafficPercent"]}
                for c in spec.get("canary", [])
            ]
            return status
        latest, percent = predictor["model"]["storageUri"], predictor.get("canaryTrafficPercent", 100)
        if not history or (percent == 100 and history[-1] != latest):
            history.append(latest)
        traffic = [
            {"revisionName": latest, "percent": percent, "tag": "latest", "url": "http://latest-covidnet.example"}
        ]
        if percent < 100:
            traffic.append({"revisionName": history[-1], "percent": 100 - percent})
        revisions = {"latestCreatedRevision": latest, "latestReadyRevision": latest if ready else history[-1]}
        status["components"] = {"predictor": {"traffic": traffic, **revisions}}
        return status


class Kube(ThreadingHTTPServer):
    """The API server. ``faults`` are answers to give first: a status, or ``"hang"``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.kserve = KServe("Standard")
        self.managers: dict[str, dict[str, Any]] = {}
        self.generation, self.looks = 0, 0
        self.history: list[str] = []
        self.applied: list[dict[str, Any]] = []
        self.faults: list[Any] = []
        self.pods: list[dict[str, Any]] = []
        self.deleted = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def live(self) -> dict[str, Any] | None:
        if not self.managers:
            return None
        tree: Any = {}
        for applied in self.managers.values():
            tree = merged(tree, json.loads(json.dumps(applied)))
        self.looks += 1
        tree["metadata"]["generation"] = self.generation
        return {**tree, "status": self.kserve.status(tree["spec"], self.looks, self.history, self.generation)}

    def apply(self, manager: str, tree: dict[str, Any], force: bool) -> tuple[int, dict[str, Any]]:
        tree = json.loads(json.dumps({"metadata": tree["metadata"], "spec": tree["spec"]}))
        stated = leaves(tree)
        causes = []
        for other, theirs in self.managers.items():
            clashes = {p for p, v in leaves(theirs).items() if p in stated and stated[p] != v and other != manager}
            if force:
                self.managers[other] = without(theirs, clashes)
            else:
                causes += [
                    {"reason": "FieldManagerConflict", "message": f'conflict with "{other}"', "field": p}
                    for p in clashes
                ]
        if causes:
            return 409, {"reason": "Conflict", "message": "Apply failed", "details": {"causes": causes}}
        if self.managers.get(manager) != tree:
            self.generation, self.looks = self.generation + 1, 0
        self.managers[manager] = tree
        self.applied.append(tree)
        return 200, self.live() or {}


class Handler(JsonHandler):
    server: Kube

    def do_GET(self) -> None:
        if self.fault():
            return
        if "/pods" in self.path:
            self.answer(200, {"kind": "PodList", "apiVersion": "v1", "items": self.server.pods})
        elif found := self.server.live():
            self.answer(200, found)
        else:
            self.answer(404, {"reason": "NotFound"})

    def do_PATCH(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.fault():
            return
        assert self.headers["Content-Type"] == "application/apply-patch+yaml"
        query = dict(pair.split("=") for pair in self.path.split("?")[1].split("&"))
        self.answer(*self.server.apply(query["fieldManager"], body, query["force"] == "true"))

    def do_DELETE(self) -> None:
        if not self.fault():
            self.server.managers.clear()
            self.server.deleted = True
            self.answer(200, {"kind": "Status", "status": "Success"})

    def fault(self) -> bool:
        if not self.server.faults:
            return False
        fault = self.server.faults.pop(0)
        if fault == "hang":
            threading.Event().wait(0.6)
        elif fault is not None:
            status, body = fault if isinstance(fault, tuple) else (fault, {"message": "no"})
            self.answer(status, body)
        return fault is not None


@pytest.fixture
def kube() -> Iterator[Kube]:
    server = Kube()
    with answering(server):
        yield server


@pytest.fixture
def service(kube: Kube) -> Service:
    settings = Configuration(host=kube.address)
    settings.retries = 0
    return Service(ApiClient(settings), "team", "covidnet", timeout_s=0.3, pause_s=0.005)


@pytest.fixture(params=["Standard", "Knative"])
def rollout(request: pytest.FixtureRequest, kube: Kube, service: Service) -> Rollout:
    """A rollout in each of KServe's deployment modes."""
    kube.kserve.mode = request.param
    return Rollout(service, Deploy(ready_timeout_s=2, watch_s=0.05, pause_s=0))
