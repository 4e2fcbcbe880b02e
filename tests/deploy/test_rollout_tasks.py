"""Deploy, smoke test and release as the pipeline calls them, on a Kubernetes API over HTTP."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from covidnet.config import Deploy
from covidnet.deploy import run
from covidnet.deploy.findings import Findings
from covidnet.deploy.rollout import Candidate, Rollout
from covidnet.errors import CovidnetError, UsageError

FIRST = Candidate("s3://models/first", "aaaaaaaaaaaa")
SETTINGS = Deploy(ready_timeout_s=2, watch_s=0, pause_s=0, steps=(10, 50))
BUNDLE, DATASET = Path("bundle"), Path("dataset")


@pytest.fixture
def way(rollout: Rollout, monkeypatch: pytest.MonkeyPatch) -> Rollout:
    """The rollout that the tasks find, with a bundle and scans that need no files."""
    monkeypatch.setattr(run, "rollout", lambda _: rollout)
    monkeypatch.setattr(run, "Bundle", SimpleNamespace(load=lambda _: SimpleNamespace(version="bbbbbbbbbbbb")))
    monkeypatch.setattr(run, "_validation", lambda *_: np.zeros((1, 8, 16, 16), np.uint8))
    return rollout


@pytest.fixture
def served(way: Rollout) -> Rollout:
    way.begin(FIRST)
    way.promote()
    return way


def watched(monkeypatch: pytest.MonkeyPatch, *verdicts: bool) -> list[Any]:
    """Let every look at the traffic have its verdict; gives whom it looked at."""
    seen: list[Any] = []

    def watch(canary: Any, stable: Any, *_: Any) -> Findings:
        seen.append((canary.url, stable and stable.url))
        return Findings([(verdicts[len(seen) - 1], "failures and latency")])

    monkeypatch.setattr(run, "watch", watch)
    return seen


def test_without_a_service_there_is_nothing_to_roll_out() -> None:
    with pytest.raises(UsageError, match=r"deploy\.service: expected the name"):
        run.rollout(Deploy(service=None))


def test_the_configured_place_of_the_bundle_goes_before_the_artifacts(served: Rollout, kube: Any) -> None:
    run.deploy(SETTINGS.model_copy(update={"storage_uri": "oci://registry/model:2"}), BUNDLE, "s3://artifact")
    assert "oci://registry/model:2" in str(kube.live()["spec"])
    assert "s3://artifact" not in str(kube.live()["spec"])


def test_a_bundle_that_does_not_get_ready_is_taken_back_and_the_reason_passed_on(served: Rollout, kube: Any) -> None:
    before = kube.live()["spec"]
    kube.kserve.never = {"modelStatus": {"transitionStatus": "InvalidSpec", "lastFailureInfo": {"message": "no such"}}}
    with pytest.raises(CovidnetError, match="no such"):
        run.deploy(SETTINGS, BUNDLE, "s3://models/broken")
    assert kube.live()["spec"] == before
    assert not served.under_way()


@pytest.mark.parametrize("begun", [True, False])
def test_the_smoke_test_asks_the_candidate_or_else_the_service(
    served: Rollout, kube: Any, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    asked = []
    monkeypatch.setattr(run, "compare", lambda endpoint, *_: asked.append(endpoint.url) or Findings([(True, "equal")]))
    if begun:
        run.deploy(SETTINGS, BUNDLE, "s3://models/second")
    expected = served.canary().url if begun else kube.kserve.url
    assert run.smoke_test(SETTINGS, DATASET, BUNDLE).passed
    assert asked == [expected]


def test_a_service_that_is_not_there_fails_the_smoke_test_in_words(way: Rollout) -> None:
    findings = run.smoke_test(SETTINGS, DATASET, BUNDLE)
    assert findings.checks == [(False, "InferenceService covidnet is not ready")]


def test_traffic_goes_up_in_the_configured_steps_and_then_all_of_it(
    served: Rollout, kube: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    object.__setattr__(served, "settings", SETTINGS)
    seen = watched(monkeypatch, True, True)
    run.deploy(SETTINGS, BUNDLE, "s3://models/second")
    candidate = served.canary().url
    findings = run.release(SETTINGS, DATASET, passed=True)
    assert [text for _, text in findings.checks] == [
        "at 10 %: failures and latency", "at 50 %: failures and latency", "promoted: it has all traffic",
    ]  # fmt: skip
    assert findings.passed
    assert seen == [(candidate, kube.kserve.url)] * 2
    assert kube.live()["spec"]["predictor"]["model"]["storageUri"] == "s3://models/second"


def test_the_first_bundle_is_watched_alone_and_once(way: Rollout, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch, True)
    run.deploy(SETTINGS, BUNDLE, "s3://models/first")
    assert run.release(SETTINGS, DATASET, passed=True).passed
    assert [stable for _, stable in seen] == [None]


def fails_while_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    watched(monkeypatch, True, False)


def loses_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def shift(*_: Any) -> None:
        raise CovidnetError("the cluster doesn't follow")

    watched(monkeypatch, True, True)
    monkeypatch.setattr(Rollout, "shift", shift)


@pytest.mark.parametrize(
    ("passed", "fault", "told"),
    [
        (False, lambda _: None, "the smoke test failed: rolled back"),
        (True, fails_while_watched, "rolled back at 50 %"),
        (True, loses_the_cluster, "the cluster doesn't follow"),
    ],
)
def test_whatever_fails_the_stable_model_has_the_traffic_again(
    served: Rollout,
    kube: Any,
    monkeypatch: pytest.MonkeyPatch,
    passed: bool,
    fault: Callable[[pytest.MonkeyPatch], None],
    told: str,
) -> None:
    object.__setattr__(served, "settings", SETTINGS)
    before = kube.live()["spec"]
    fault(monkeypatch)
    run.deploy(SETTINGS, BUNDLE, "s3://models/second")
    if fault is loses_the_cluster:
        with pytest.raises(CovidnetError, match=told):
            run.release(SETTINGS, DATASET, passed=passed)
    else:
        findings = run.release(SETTINGS, DATASET, passed=passed)
        assert not findings.passed
        assert findings.checks[-1] == (False, told)
    assert kube.live()["spec"] == before


@pytest.mark.parametrize("passed", [True, False])
def test_where_nothing_is_under_way_the_verdict_of_the_smoke_test_stands(served: Rollout, passed: bool) -> None:
    findings = run.release(SETTINGS, DATASET, passed=passed)
    assert findings.passed is passed
    assert "served already" in findings.markdown("", "")
