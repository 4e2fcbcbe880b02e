"""What `manifests/` renders to, and the pods that KServe and Trainer make of it."""

from pathlib import Path
from typing import Any

Object = dict[str, Any]
Rendered = dict[str, list[Object]]
MANIFESTS = Path(__file__).resolve().parents[1] / "manifests"
FOLDERS = sorted(
    str(path.parent.relative_to(MANIFESTS))
    for path in MANIFESTS.rglob("kustomization.yaml")
    if "kind: Kustomization" in path.read_text()
)
OVERLAYS = [folder for folder in FOLDERS if folder.startswith("overlays/")]


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [tree for tree in objects if tree["kind"] == kind]


def pods(objects: list[Object]) -> list[Object]:
    """Specs of all pods that these objects lead to, as KServe and Trainer put them together."""
    specs = [
        _joined(objects, predictor) for service in of_kind(objects, "InferenceService") for predictor in _of(service)
    ]
    for runtime in of_kind(objects, "TrainingRuntime"):
        for job in runtime["spec"]["template"]["spec"]["replicatedJobs"]:
            specs.append(job["template"]["spec"]["template"]["spec"])
    return specs


def _of(service: Object) -> list[Object]:
    spec = service["spec"]
    return [spec["predictor"], *(canary["predictor"] for canary in spec.get("canary", []))]


def _joined(objects: list[Object], predictor: Object) -> Object:
    """The ServingRuntime's container and volumes in the predictor's pod."""
    names = {tree["metadata"]["name"]: tree["spec"] for tree in of_kind(objects, "ServingRuntime")}
    runtime = names[predictor["model"]["runtime"]]
    of_pod = ("serviceAccountName", "automountServiceAccountToken", "securityContext", "topologySpreadConstraints")
    taken = {key: predictor[key] for key in (*of_pod, "terminationGracePeriodSeconds") if key in predictor}
    more = {key: runtime[key] for key in ("volumes", "tolerations") if key in runtime}
    return {**taken, **more, "containers": runtime["containers"]}
