"""The Kubernetes cluster of this pod or of the kubeconfig, and why pods wait in it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kubernetes import config
from kubernetes.client import ApiClient
from kubernetes.config import ConfigException

from covidnet.errors import CovidnetError

_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def connect() -> ApiClient:
    """The cluster of this pod, or of the kubeconfig.

    Raises:
        CovidnetError: there is neither.
    """
    try:
        config.load_incluster_config() if _OWN_NAMESPACE.is_file() else config.load_kube_config()
    except ConfigException:
        raise CovidnetError(
            "no Kubernetes cluster: expected to run in a pod, or with a kubeconfig; found neither"
        ) from None
    return ApiClient()


def own_namespace() -> str:
    """Namespace of this pod, else that of the kubeconfig's context."""
    if _OWN_NAMESPACE.is_file():
        return _OWN_NAMESPACE.read_text().strip()
    try:
        _, context = config.list_kube_config_contexts()
    except ConfigException:
        return "default"
    return str(context["context"].get("namespace") or "default")


def pending(pods: list[Any]) -> Iterator[str]:
    """Why each of these pods isn't running: no node for it, or a container that can't start."""
    for pod in pods:
        for condition in pod.status.conditions or []:
            if condition.type == "PodScheduled" and condition.status == "False":
                yield f"pod {pod.metadata.name}: {condition.reason}: {condition.message}"
        statuses = [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]
        for status in statuses:
            state = status.state.waiting or (status.last_state and status.last_state.terminated)
            if state is not None and state.reason not in ("PodInitializing", "ContainerCreating"):
                yield f"pod {pod.metadata.name}, container {status.name}: {state.reason}: {state.message or ''}".rstrip(
                    ": "
                )
