"""A bundle's way into an InferenceService: dark canary, traffic in steps, promotion, or back.

    rollout = Rollout(service, settings)
    rollout.begin(candidate)          # beside the stable model, without traffic
    rollout.shift(25)                 # percent
    rollout.promote()  or  rollout.roll_back()

Every step states the whole of what a rollout decides and reads the rest from the cluster, so each may be repeated, and a
later task of a pipeline goes on where an earlier one, or a killed one, left off. Two ways, by KServe's deployment mode:

* Knative: the predictor gets the new model, ``canaryTrafficPercent`` keeps traffic on the last rolled-out revision;
* Standard: ``spec.canary`` has a second predictor, ``<service>-<name>-predictor``; promotion makes it the stable one
  without a restart (KServe 0.20 and later).
"""

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from kserve import (
    V1beta1InferenceService,
    V1beta1InferenceServiceSpec,
    V1beta1ModelFormat,
    V1beta1ModelSpec,
    V1beta1PredictorSpec,
)
from kserve.models import V1beta1CanarySpec
from kubernetes.client import V1ObjectMeta

from covidnet.config import Deploy
from covidnet.deploy.endpoint import Endpoint
from covidnet.deploy.service import Json, Service
from covidnet.errors import CovidnetError

_PREFIX = "covidnet3d"  # of our annotations
_CANDIDATE, _VERSION, _STABLE, _FIRST = (
    f"{_PREFIX}/{key}" for key in ("candidate-uri", "bundle-version", "stable-uri", "first")
)
_MODE, _TAGS = "serving.kserve.io/deploymentMode", "serving.kserve.io/enable-tag-routing"
_OLD_NAMES = {"RawDeployment": "Standard", "Serverless": "Knative"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A bundle to serve.

    Args:
        uri: where the cluster's storage initializer finds it: s3, pvc, oci, ...
        version: of the bundle.
    """

    uri: str
    version: str

    @property
    def name(self) -> str:
        """Of its predictor in Standard mode."""
        return f"b{self.version}"


@dataclass(frozen=True, slots=True)
class Rollout:
    """One InferenceService and how to change it."""

    service: Service
    settings: Deploy

    def begin(self, candidate: Candidate) -> str:
        """Put a bundle beside the stable model, without traffic, and wait until it is loaded.

        The first bundle of a service has nobody to stand beside and gets the traffic at once.

        Returns:
            what was done, in a sentence.

        Raises:
            CovidnetError: see `Service.apply` and `Service.wait`.
        """
        current = self.service.get()
        if current is None or _notes_of(current).get(_FIRST) == "true":
            self._apply(self._predictor(candidate.uri), None, {_FIRST: "true", **_notes(candidate)})
            self.service.wait(_is_ready, f"bundle {candidate.version}", self.settings.ready_timeout_s)
            return f"bundle {candidate.version} is the first of {self.service.name} and gets all traffic"
        if _serves(current, candidate):
            if _CANDIDATE in _notes_of(current):
                self.roll_back()  # another candidate, which an earlier run left behind
            return f"bundle {candidate.version} is served by {self.service.name} already"
        self._state(current, candidate, 0)
        self.service.wait(
            lambda found: _canary_ready(found, candidate), f"canary {candidate.version}", self.settings.ready_timeout_s
        )
        return f"bundle {candidate.version} is loaded beside the stable model, without traffic"

    def shift(self, percent: int) -> None:
        """Send a part of the traffic to the candidate, and wait until the cluster does so."""
        current, candidate = self._under_way()
        self._state(current, candidate, percent)
        self.service.wait(
            lambda found: _canary_ready(found, candidate) and _percent(found, candidate) == percent,
            f"{percent} % of the traffic to canary {candidate.version}",
            self.settings.ready_timeout_s,
        )

    def promote(self) -> None:
        """Give the candidate all traffic and make it the stable model."""
        current, candidate = self._under_way()
        renamed = _mode(current) == "Standard" and not self.is_first()
        predictor = self._predictor(candidate.uri, candidate.name if renamed else None)
        self._apply(predictor, None, {_VERSION: candidate.version})
        self.service.wait(_is_ready, f"bundle {candidate.version}", self.settings.ready_timeout_s)

    def roll_back(self) -> None:
        """Leave the stable model alone with the traffic; a service that had none before is removed."""
        current, _ = self._under_way()
        if _notes_of(current).get(_FIRST) == "true":
            self.service.delete()
            return
        stable_name = current["spec"]["predictor"].get("name") if _mode(current) == "Standard" else None
        self._apply(self._predictor(_stable_uri(current), stable_name), None, {})
        self.service.wait(_is_ready, "the stable model", self.settings.ready_timeout_s)

    def under_way(self) -> bool:
        """Whether a candidate waits for a verdict."""
        current = self.service.get()
        return current is not None and _CANDIDATE in _notes_of(current)

    def is_first(self) -> bool:
        """Whether the candidate is the only model of its service."""
        return _notes_of(self._under_way()[0]).get(_FIRST) == "true"

    def stable(self) -> Endpoint | None:
        """Where the service answers; None where there is none, or it isn't ready."""
        current = self.service.get()
        if current is None or not _is_ready(current):
            return None
        return self._endpoint(_address(current))

    def canary(self) -> Endpoint:
        """Where the candidate alone answers, whatever its share of the traffic.

        Raises:
            CovidnetError: the cluster gives it no address.
        """
        current, candidate = self._under_way()
        if _notes_of(current).get(_FIRST) == "true":
            return self._endpoint(_address(current))
        if _mode(current) == "Standard":
            address = urlsplit(_address(current))
            host = f"{self.service.name}-{candidate.name}-predictor.{self.service.namespace}.svc.cluster.local"
            port = f":{address.port}" if address.port else ""
            return self._endpoint(f"http://{host}{port}")
        for entry in _predictor_status(current).get("traffic", []):
            if entry.get("tag") == "latest" and entry.get("url"):
                return self._endpoint(entry["url"])
        raise CovidnetError(
            f"InferenceService {self.service.name}: Knative gives the canary no address of its own; expected an entry with "
            "the tag `latest` in status.components.predictor.traffic (is tag routing turned off in this cluster?)"
        )

    def _endpoint(self, url: str) -> Endpoint:
        return Endpoint(url, self.settings.gateway)

    def _under_way(self) -> tuple[Json, Candidate]:
        current = self.service.get()
        notes = _notes_of(current) if current else {}
        if current is None or _CANDIDATE not in notes:
            raise CovidnetError(f"InferenceService {self.service.name} has no rollout under way; run `deploy` first")
        return current, Candidate(notes[_CANDIDATE], notes[_VERSION])

    def _state(self, current: Json, candidate: Candidate, percent: int) -> None:
        """Apply the canary with its share of the traffic."""
        stable = _stable_uri(current)
        notes = {_STABLE: stable, **_notes(candidate)}
        if _mode(current) == "Standard":
            second = self._predictor(candidate.uri, candidate.name)
            second.min_replicas = 1  # else KServe derives it from the traffic, and of 0 % that is none
            canary = [V1beta1CanarySpec(predictor=second, traffic_percent=percent)]
            self._apply(self._predictor(stable, current["spec"]["predictor"].get("name")), canary, notes)
        else:
            predictor = self._predictor(candidate.uri)
            predictor.canary_traffic_percent = percent
            self._apply(predictor, None, {**notes, _TAGS: "true"})

    def _predictor(self, uri: str, name: str | None = None) -> V1beta1PredictorSpec:
        model = V1beta1ModelSpec(
            model_format=V1beta1ModelFormat(name=self.settings.model_format),
            runtime=self.settings.runtime,
            protocol_version="v2",
            storage_uri=uri,
        )
        return V1beta1PredictorSpec(name=name, model=model)

    def _apply(self, predictor: V1beta1PredictorSpec, canary: list[Any] | None, notes: dict[str, str]) -> None:
        stated = V1beta1InferenceService(
            metadata=V1ObjectMeta(annotations=notes),
            spec=V1beta1InferenceServiceSpec(predictor=predictor, canary=canary),
        )
        self.service.apply(self.service.api.sanitize_for_serialization(stated), force=self.settings.force)


def _notes(candidate: Candidate) -> dict[str, str]:
    return {_CANDIDATE: candidate.uri, _VERSION: candidate.version}


def _notes_of(current: Json) -> dict[str, str]:
    notes: dict[str, str] = current["metadata"].get("annotations", {})
    return notes


def _serves(current: Json, candidate: Candidate) -> bool:
    """Whether the stable model is this bundle, wherever it lies."""
    notes = _notes_of(current)
    promoted = notes.get(_VERSION) if _CANDIDATE not in notes else None
    return promoted == candidate.version or _stable_uri(current) == candidate.uri


def _mode(current: Json) -> str:
    """How KServe runs it; its own word for it where it has said one."""
    told = current.get("status", {}).get("deploymentMode")
    told = told or _notes_of(current).get(_MODE, "Knative")
    return str(_OLD_NAMES.get(told, told))


def _stable_uri(current: Json) -> str:
    """Where the model lies that has the traffic: in Knative mode, the predictor has the canary's during a rollout."""
    if stable := _notes_of(current).get(_STABLE):
        return str(stable)
    model = current["spec"]["predictor"].get("model", {})
    if not model.get("storageUri"):
        raise CovidnetError(
            f"InferenceService {current['metadata']['name']}: expected spec.predictor.model.storageUri, the form that "
            "this pipeline and manifests/ write; found another one"
        )
    return str(model["storageUri"])


def _predictor_status(found: Json) -> Json:
    status: Json = found.get("status", {}).get("components", {}).get("predictor", {})
    return status


def _is_ready(found: Json) -> bool:
    conditions = found.get("status", {}).get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _canary_ready(found: Json, candidate: Candidate) -> bool:
    if _mode(found) == "Standard":
        return any(
            c["name"] == candidate.name and c["ready"] for c in found.get("status", {}).get("canaryStatuses", [])
        )
    status = _predictor_status(found)
    latest = status.get("latestCreatedRevision")
    return _is_ready(found) and latest is not None and latest == status.get("latestReadyRevision")


def _percent(found: Json, candidate: Candidate) -> int | None:
    """The share of the traffic that the cluster says the candidate has."""
    if _mode(found) == "Standard":
        entries = found.get("status", {}).get("canaryStatuses", [])
        return next((c["trafficPercent"] for c in entries if c["name"] == candidate.name), None)
    status = _predictor_status(found)
    entries = [e for e in status.get("traffic", []) if e.get("revisionName") == status.get("latestReadyRevision")]
    return sum(entry.get("percent") or 0 for entry in entries)


def _address(current: Json) -> str:
    status = current.get("status", {})
    url = status.get("address", {}).get("url") or status.get("url")
    if not url:
        raise CovidnetError(f"InferenceService {current['metadata']['name']} has no address in its status")
    return str(url)
