"""The three tasks of a rollout: load beside the served model, try it out, hand over the traffic or take it back."""

from pathlib import Path

import numpy as np

from covidnet.cluster import connect, own_namespace
from covidnet.config import Deploy
from covidnet.data import packed as packed_data
from covidnet.deploy.findings import Findings
from covidnet.deploy.rollout import Candidate, Rollout
from covidnet.deploy.service import Service
from covidnet.deploy.smoke import smoke_test as compare
from covidnet.deploy.smoke import watch
from covidnet.errors import CovidnetError, UsageError
from covidnet.export.bundle import Bundle


def rollout(settings: Deploy) -> Rollout:
    """The rollout of the configured service.

    Raises:
        CovidnetError: no cluster.
        UsageError: no service is configured.
    """
    if settings.service is None:
        raise UsageError("deploy.service: expected the name of an InferenceService, found null")
    return Rollout(Service(connect(), settings.namespace or own_namespace(), settings.service), settings)


def deploy(settings: Deploy, bundle: Path, uri: str) -> str:
    """Load a bundle beside the served model.

    Args:
        settings: ``deploy``.
        bundle: the exported folder, here.
        uri: the same folder as the cluster's storage initializer sees it.

    Raises:
        CovidnetError: it doesn't get ready (it is taken back), no rights, a conflict, no answer.
    """
    way, candidate = rollout(settings), Candidate(settings.storage_uri or uri, Bundle.load(bundle).version)
    try:
        return way.begin(candidate)
    except CovidnetError:
        _take_back(way)
        raise


def smoke_test(settings: Deploy, dataset: Path, bundle: Path) -> Findings:
    """Compare answers of the candidate, or of the service where nothing is under way, with those of the bundle.

    Args:
        settings: ``deploy``.
        dataset: from ingest; scans of its validation split are sent.
        bundle: the exported folder.
    """
    way = rollout(settings)
    try:
        endpoint = way.canary() if way.under_way() else way.stable()
    except CovidnetError as error:
        return Findings([(False, str(error))])
    if endpoint is None:
        return Findings([(False, f"InferenceService {settings.service} is not ready")])
    return compare(endpoint, bundle, _validation(settings, dataset), settings)


def release(settings: Deploy, dataset: Path, passed: bool) -> Findings:
    """Shift the traffic in steps and watch, then promote; roll back at the first condition that isn't met.

    Args:
        settings: ``deploy``.
        dataset: from ingest; scans of its validation split are sent meanwhile.
        passed: the verdict of the smoke test.

    Raises:
        CovidnetError: the cluster doesn't follow; the candidate is taken back.
    """
    way = rollout(settings)
    if not way.under_way():
        return Findings([(passed, "nothing to hand over: the bundle was served already")])
    if not passed:
        way.roll_back()
        return Findings([(False, "the smoke test failed: rolled back")])
    findings = Findings()
    try:
        _hand_over(way, findings, _validation(settings, dataset))
    except CovidnetError:
        _take_back(way)
        raise
    return findings


def _hand_over(way: Rollout, findings: Findings, volumes: np.ndarray) -> None:
    first, canary = way.is_first(), way.canary()
    stable = None if first else way.stable()
    for percent in (100,) if first else way.settings.steps:
        if not first:
            way.shift(percent)
        for met, text in watch(canary, stable, volumes, way.settings).checks:
            findings.add(met, f"at {percent} %: {text}")
        if not findings.passed:
            way.roll_back()
            findings.add(False, f"rolled back at {percent} %")
            return
    way.promote()
    findings.add(True, "promoted: it has all traffic")


def _take_back(way: Rollout) -> None:
    if way.under_way():
        way.roll_back()


def _validation(settings: Deploy, dataset: Path) -> np.ndarray:
    """Evenly spread validation scans, ``uint8 (N, D, H, W)``."""
    packed = packed_data.read(dataset)
    rows = packed.split("validation")
    chosen = rows[np.linspace(0, len(rows) - 1, min(settings.scans, len(rows))).round().astype(int)]
    volumes: np.ndarray = packed.scans[chosen]
    return volumes
