"""What the manifests promise: least rights, nothing unbounded, and names, ports and paths that fit together."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import toy_bundle
import typer
from rendered_manifests import FOLDERS, OVERLAYS, Object, Rendered, of_kind, pods

from covidnet.export import torchserve
from serving import server
from serving.__main__ import app
from serving.monitoring.local import free_ports

SELECTED = {
    "serving.kserve.io/inferenceservice": "covidnet"
}  # the label that KServe gives the pods of an InferenceService

overlays = pytest.mark.parametrize("folder", OVERLAYS)
everything = pytest.mark.parametrize("folder", FOLDERS)


def containers(objects: list[Object]) -> Iterator[Object]:
    for pod in pods(objects):
        yield from pod["containers"]


def arguments(objects: list[Object]) -> list[str]:
    """Of our own server; none where another one serves."""
    return [arg for c in containers(objects) if c["image"].startswith("covidnet3d-serving") for arg in c["args"]]


def walk(tree: object) -> Iterator[tuple[str, object]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield key, value
            yield from walk(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from walk(value)


@everything
def test_pods_are_restricted(rendered: Rendered, folder: str) -> None:
    """The rules of Kubernetes' restricted Pod Security Standard, and a root that can't be written."""
    for pod in pods(rendered[folder]):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert all({"emptyDir", "persistentVolumeClaim"} & volume.keys() for volume in pod["volumes"])
        assert all(volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if "emptyDir" in volume)
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["runAsNonRoot"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["seccompProfile"]["type"] == "RuntimeDefault"
    assert not {"hostNetwork", "hostPID", "hostIPC", "hostPath", "privileged"} & {
        key for key, _ in walk(rendered[folder])
    }


@everything
def test_images_have_a_version_and_containers_limits(rendered: Rendered, folder: str) -> None:
    for container in containers(rendered[folder]):
        _, _, version = container["image"].rpartition("/")[2].partition(":")
        assert version not in ("", "latest")
        for bound in ("requests", "limits"):
            assert {"cpu", "memory", "ephemeral-storage"} <= container["resources"][bound].keys()


@everything
def test_no_secret_is_written_down(rendered: Rendered, folder: str) -> None:
    assert not of_kind(rendered[folder], "Secret")
    for key, value in walk(rendered[folder]):
        if isinstance(value, str) and re.search(r"password|token|secret|access.?key", key, re.IGNORECASE):
            pytest.fail(f"{key} has a value; refer to a Secret")


@overlays
def test_nothing_is_logged_elsewhere(rendered: Rendered, folder: str) -> None:
    """KServe's payload logger would send scans away."""
    assert "logger" not in {key for key, _ in walk(of_kind(rendered[folder], "InferenceService"))}


@overlays
def test_what_is_named_is_there(rendered: Rendered, folder: str) -> None:
    objects = rendered[folder]
    names = {(tree["kind"], tree["metadata"]["name"]) for tree in objects}
    assert all(tree["metadata"].get("namespace", "covidnet") == "covidnet" for tree in objects)
    for predictor in [value for key, value in walk(objects) if key == "predictor"]:
        model = predictor["model"]
        assert ("ServiceAccount", predictor["serviceAccountName"]) in names
        assert ("ServingRuntime", model["runtime"]) in names
        runtimes = {tree["metadata"]["name"]: tree["spec"] for tree in of_kind(objects, "ServingRuntime")}
        runtime = runtimes[model["runtime"]]
        assert model["modelFormat"] in [
            {"name": known["name"], "version": known["version"]} for known in runtime["supportedModelFormats"]
        ]
        assert model["protocolVersion"] in runtime["protocolVersions"]
        scheme, _, place = model["storageUri"].partition("://")
        assert scheme in ("pvc", "s3", "oci")
        assert scheme != "pvc" or ("PersistentVolumeClaim", place.split("/")[0]) in names
    for pod in pods(objects):
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert all(mount["name"] in volumes for c in pod["containers"] for mount in c["volumeMounts"])
        for spread in pod.get("topologySpreadConstraints", []):  # a canary may have one replica
            assert spread["labelSelector"]["matchLabels"] == SELECTED
    assert "topologySpreadConstraints" in pods(objects)[0]
    for binding in of_kind(objects, "RoleBinding"):
        assert ("Role", binding["roleRef"]["name"]) in names
        assert all((subject["kind"], subject["name"]) in names for subject in binding["subjects"])
    for budget in of_kind(objects, "PodDisruptionBudget"):
        assert budget["spec"]["selector"]["matchLabels"] == SELECTED


@overlays
def test_rights_are_few(rendered: Rendered, folder: str) -> None:
    objects = rendered[folder]
    assert not of_kind(objects, "ClusterRole") + of_kind(objects, "ClusterRoleBinding")
    for role in of_kind(objects, "Role"):
        for rule in role["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert not {"roles", "rolebindings", "pods/exec"} & set(rule["resources"])
            if {"secrets", "configmaps"} & set(rule["resources"]):  # of Kubeflow Pipelines, by name
                assert rule["resourceNames"]
                assert rule["verbs"] == ["get"]
    bound = {subject["name"] for binding in of_kind(objects, "RoleBinding") for subject in binding["subjects"]}
    assert "covidnet-serving" not in bound


@overlays
def test_the_network_is_closed_but_for_the_servers_ports(rendered: Rendered, folder: str) -> None:
    policies = {tree["metadata"]["name"]: tree["spec"] for tree in of_kind(rendered[folder], "NetworkPolicy")}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    listening = {port["containerPort"] for c in containers(rendered[folder]) for port in c["ports"]}
    opened = {port["port"] for port in policies["requests"]["ingress"][0]["ports"]}
    queue_proxy = {8012, 8022} if "serverless" in folder else set()
    assert opened >= queue_proxy
    # where Knative serves there is one port, and gRPC's opening leads nowhere
    assert listening & opened == ({8080} if "serverless" in folder else opened - queue_proxy)
    assert policies["requests"]["podSelector"]["matchLabels"] == SELECTED
    for source in policies["requests"]["ingress"][0]["from"]:
        assert source.get("namespaceSelector") or source["podSelector"].get("matchExpressions")


@overlays
def test_ports_are_those_of_the_server(rendered: Rendered, folder: str) -> None:
    objects = rendered[folder]
    given = arguments(objects)
    for container in containers(objects):
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        probes = [container[f"{name}Probe"] for name in ("startup", "readiness", "liveness")]
        assert all(probe["httpGet"]["port"] == ports["http1"] for probe in probes if "httpGet" in probe)
        if given:
            context = typer.main.get_command(app).make_context("serving", list(given))
            assert context.params["http_port"] == ports["http1"]
            assert context.params["grpc_port"] == ports.get("grpc", 8081)
            assert str(context.params["bundle"]) == "/mnt/models"
        elif "torchserve" in container["image"]:
            assert ports == {"http1": 8085, "grpc": 7070, "metrics": 8082}
            for address in (
                "inference_address=http://0.0.0.0:8085",
                "grpc_inference_port=7070",
                "metrics_address=http://0.0.0.0:8082",
            ):
                assert address in torchserve.CONFIG.splitlines()
        else:
            assert {f"port={ports['http1']}", f"port={ports['grpc']}"} <= {
                re.sub(r"--\w*?(rest_|http-|grpc-)?port", "port", arg) for arg in container["args"]
            }


@overlays
def test_a_pod_may_drain(rendered: Rendered, folder: str) -> None:
    for pod in pods(rendered[folder]):
        (container,) = pod["containers"]
        before_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        stopping_s = server.GRACE_S + server.FAREWELL_S + server.SILENT_S + server.STOP_S
        assert pod["terminationGracePeriodSeconds"] > before_s + stopping_s


@overlays
def test_the_server_serves_until_the_gateways_have_forgotten_its_pod(rendered: Rendered, folder: str) -> None:
    """Kubernetes takes a pod out of its service and signals it at the same time: the signal has to come later."""
    for pod in pods(rendered[folder]):
        (container,) = pod["containers"]
        if "covidnet3d-serving" not in container["image"]:
            continue
        if "serverless" in folder:  # Knative refuses a lifecycle; its queue-proxy waits by itself
            assert "lifecycle" not in container
        else:
            probe = container["readinessProbe"]
            assert container["lifecycle"] == {"preStop": {"sleep": {"seconds": 10}}}
            assert probe["httpGet"]["path"] == "/v2/health/ready"


def test_knative_lets_in_what_the_server_does(rendered: Rendered) -> None:
    for folder in ("overlays/serverless", "overlays/canary-serverless"):
        (service,) = of_kind(rendered[folder], "InferenceService")
        assert service["spec"]["predictor"]["containerConcurrency"] == server.MAX_REQUESTS
        (container,) = containers(rendered[folder])
        assert len(container["ports"]) == 1  # Knative refuses a second


def test_overlays_share_all_but_how_they_serve(rendered: Rendered) -> None:
    """A diff of each overlay with the base: whoever reads the base knows the rest of every overlay."""
    serving = {"ServingRuntime", "InferenceService", "NetworkPolicy"}
    base = [tree for tree in rendered["base"] if tree["kind"] not in serving]
    for folder in OVERLAYS:
        assert [tree for tree in rendered[folder] if tree["kind"] not in serving] == base


@pytest.fixture(scope="module")
def running(rendered: Rendered, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real server with the runtime's own arguments, but its bundle, and ports of loopback that are free."""
    ports = [str(port) for port in free_ports(2)]
    folder = tmp_path_factory.mktemp("served")
    replaced = {"/mnt/models": str(toy_bundle.write(folder).path), "8080": ports[0], "8081": ports[1]}
    given = [replaced.get(argument, argument) for argument in arguments(rendered["overlays/standard"])]
    log = folder / "log.txt"
    with log.open("wb") as stream:
        command = [sys.executable, "-m", "serving", *given]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, cwd=repository, env=environment, stdout=stream, stderr=stream)
    url = f"http://127.0.0.1:{ports[0]}"
    try:
        for _ in range(600):
            if process.poll() is not None:
                pytest.fail(log.read_text())
            try:
                httpx.get(url)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def test_the_real_server_answers_the_probes(rendered: Rendered, running: str) -> None:
    paths = {
        value["path"] for c in containers(rendered["overlays/standard"]) for key, value in walk(c) if key == "httpGet"
    }
    assert paths == {"/v2/health/live", "/v2/health/ready"}
    for path in paths:
        assert httpx.get(f"{running}{path}").status_code == 200
    assert httpx.get(f"{running}/metrics").status_code == 200
