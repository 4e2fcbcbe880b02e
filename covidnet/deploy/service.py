"""One KServe InferenceService, read and server-side applied over the Kubernetes API.

Server-side apply states only what a rollout decides: where the model is, and how the traffic is split. Resources, scaling,
probes and the rest stay with whoever wrote them (`manifests/`), and a field that somebody else sets otherwise is a
conflict with a name instead of a silent overwrite.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kubernetes import client
from kubernetes.client import ApiClient, ApiException
from urllib3.exceptions import HTTPError

from covidnet.cluster import pending
from covidnet.errors import CovidnetError

MANAGER = "covidnet-rollout"
ATTEMPTS = 4  # of a call that the API server was too busy for
_GROUP, _VERSION, _PLURAL = "serving.kserve.io", "v1beta1", "inferenceservices"
_TRANSIENT = {429, 500, 502, 503, 504}

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Service:
    """An InferenceService, there or not yet there.

    Args:
        api: from `connect`.
        namespace: where it is.
        name: its name.
        timeout_s: of one call; the API server answers in milliseconds, or not at all.
        pause_s: before the first repetition of a call, and between two looks at the status.
    """

    api: ApiClient
    namespace: str
    name: str
    timeout_s: float = 20.0
    pause_s: float = 2.0

    def get(self) -> Json | None:
        """The whole object; None where there is none."""
        try:
            return self._call("GET", self._path, "read")
        except _Absent:
            return None

    def apply(self, tree: Json, *, force: bool = False) -> Json:
        """Server-side apply ``spec`` and ``metadata.annotations`` of ``tree``; fields left out that were ours go.

        Args:
            tree: the parts to state.
            force: take fields over from another manager.

        Raises:
            CovidnetError: another manager sets a field otherwise (named), no rights, or no answer.
        """
        body = {
            "apiVersion": f"{_GROUP}/{_VERSION}",
            "kind": "InferenceService",
            "metadata": {"name": self.name, "namespace": self.namespace, **tree.get("metadata", {})},
            "spec": tree["spec"],
        }
        query = [("fieldManager", MANAGER), ("force", str(force).lower())]
        return self._call("PATCH", self._path, "patch", body, query)

    def delete(self) -> None:
        """Remove it; no fault if it isn't there."""
        try:
            self._call("DELETE", self._path, "delete")
        except _Absent:
            return

    def wait(self, ready: Callable[[Json], bool], what: str, timeout_s: float) -> Json:
        """Look until ``ready`` says so.

        Args:
            ready: decides on the whole object.
            what: is waited for; for the message.
            timeout_s: in all.

        Raises:
            CovidnetError: not ready in time, or the model can't be loaded at all; with the reasons that the cluster gives.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            found = self.get()
            if found is None:
                raise CovidnetError(f"InferenceService {self.name} was deleted while waiting for {what}")
            current = found.get("status", {}).get("observedGeneration", 0) >= found["metadata"].get("generation", 0)
            if current and ready(found):
                return found
            failed = current and _failure(found)
            if failed or time.monotonic() >= deadline:
                head = failed or f"not within {timeout_s:g} s"
                reasons = [*self._conditions(found), *self._pods()] or ["the cluster gives no reason"]
                raise CovidnetError(f"{what} is not ready: {head}\n" + "\n".join(f"- {reason}" for reason in reasons))
            time.sleep(self.pause_s)

    @property
    def _path(self) -> str:
        return f"/apis/{_GROUP}/{_VERSION}/namespaces/{self.namespace}/{_PLURAL}/{self.name}"

    def _call(self, method: str, path: str, verb: str, body: Json | None = None, query: Any = ()) -> Json:
        pause_s = self.pause_s
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(pause_s)
                pause_s *= 2
            try:
                with self._named(verb):
                    return self._request(method, path, body, query)
            except _Transient as error:
                last = error
        raise CovidnetError(f"{last} ({ATTEMPTS} attempts)")

    def _request(self, method: str, path: str, body: Json | None, query: Any) -> Json:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/apply-patch+yaml"  # JSON is YAML
        answer, _, _ = self.api.call_api(
            path,
            method,
            query_params=list(query),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
            response_type="object",
            _request_timeout=self.timeout_s,
        )
        tree: Json = answer
        return tree

    @contextmanager
    def _named(self, verb: str) -> Iterator[None]:
        where = f"InferenceService {self.name} in namespace {self.namespace}"
        try:
            yield
        except ApiException as error:
            if error.status == 404 and "page not found" not in str(error.body):
                raise _Absent from None
            if error.status in _TRANSIENT or (error.status == 409 and not _managers(error)):
                raise _Transient(
                    f"the Kubernetes API could not {verb} {where}: {error.status} {error.reason}"
                ) from None
            raise CovidnetError(_refusal(error, verb, where)) from None
        except HTTPError as error:
            host = self.api.configuration.host
            raise _Transient(f"the Kubernetes API at {host} gives no answer: {type(error).__name__}") from None

    def _conditions(self, found: Json) -> Iterator[str]:
        for condition in found.get("status", {}).get("conditions", []):
            if condition["status"] != "True" and (condition.get("message") or condition.get("reason")):
                yield f"{condition['type']}: {condition.get('reason', '')} {condition.get('message', '')}".strip()

    def _pods(self) -> Iterator[str]:
        """Why pods are pending or waiting; nothing where the account may not read pods."""
        selector = f"serving.kserve.io/inferenceservice={self.name}"
        try:
            pods = client.CoreV1Api(self.api).list_namespaced_pod(
                self.namespace, label_selector=selector, _request_timeout=self.timeout_s
            )
        except (ApiException, HTTPError):
            return
        yield from pending(pods.items)


class _Absent(Exception):
    """There is no such object."""


class _Transient(Exception):
    """Worth another attempt."""


def _failure(found: Json) -> str | None:
    """What KServe knows to be hopeless; waiting longer would not mend it."""
    model = found.get("status", {}).get("modelStatus", {})
    if model.get("transitionStatus") in ("BlockedByFailedLoad", "InvalidSpec"):
        info = model.get("lastFailureInfo", {})
        return f"{info.get('reason', model['transitionStatus'])}: {info.get('message', '')}".rstrip(": ")
    return None


def _managers(error: ApiException) -> list[Json]:
    """Fields that another manager sets otherwise, of a refused apply."""
    try:
        causes: list[Json] = json.loads(error.body)["details"]["causes"]
    except (TypeError, ValueError, KeyError):
        return []
    return [cause for cause in causes if cause.get("reason") == "FieldManagerConflict"]


def _refusal(error: ApiException, verb: str, where: str) -> str:
    if error.status == 409:
        fields = "; ".join(f"{cause['field']} ({cause['message']})" for cause in _managers(error))
        return (
            f"{where} is managed by somebody else as well: {fields}. Take the field out of what they apply, or set "
            "deploy.force=true to take it over"
        )
    remedies = {
        401: "the account is not logged in: renew the kubeconfig, or the pod's service account token",
        403: f"the account may not {verb} inferenceservices there; give its service account that right",
        404: "KServe is not installed in this cluster: the API group serving.kserve.io is not there",
        422: f"KServe refuses it: {_message(error)}",
    }
    return f"{where}: {remedies.get(error.status, f'{error.status} {error.reason}: {_message(error)}')}"


def _message(error: ApiException) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)
