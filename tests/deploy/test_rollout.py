import json

import pytest
import yaml
from jsonschema import Draft202012Validator

from covidnet.deploy.endpoint import MODEL
from covidnet.deploy.rollout import Candidate
from covidnet.errors import CovidnetError

FIRST = Candidate("s3://models/first", "aaaaaaaaaaaa")
SECOND = Candidate("s3://models/second", "bbbbbbbbbbbb")
BROKEN = Candidate("s3://models/broken", "cccccccccccc")


def spec(kube):
    return kube.live()["spec"]


def serving(kube):
    """Where the model lies that has all the traffic; None while it is shared."""
    found = spec(kube)
    shared = found.get("canary") or "canaryTrafficPercent" in found["predictor"]
    return None if shared else found["predictor"]["model"]["storageUri"]


@pytest.fixture
def served(rollout):
    """A service with the first bundle promoted."""
    rollout.begin(FIRST)
    rollout.promote()
    return rollout


def test_the_first_bundle_gets_the_traffic_at_once(rollout, kube):
    assert "is the first" in rollout.begin(FIRST)
    assert rollout.is_first()
    assert rollout.canary().url == kube.kserve.url
    rollout.promote()
    assert serving(kube) == FIRST.uri
    assert not rollout.under_way()


def test_a_first_bundle_that_fails_leaves_no_service(rollout, kube):
    rollout.begin(FIRST)
    rollout.roll_back()
    assert kube.deleted
    assert rollout.service.get() is None


def test_a_canary_stands_beside_the_stable_model_without_traffic(served, kube):
    served.begin(SECOND)
    found = spec(kube)
    if kube.kserve.mode == "Standard":
        assert found["predictor"]["model"]["storageUri"] == FIRST.uri
        (canary,) = found["canary"]
        assert (canary["trafficPercent"], canary["predictor"]["name"]) == (0, "bbbbbbbbbbbbb")
        assert canary["predictor"]["model"]["storageUri"] == SECOND.uri
        assert canary["predictor"]["minReplicas"] == 1
        assert served.canary().url == "http://covidnet-bbbbbbbbbbbbb-predictor.team.svc.cluster.local"
    else:
        assert found["predictor"]["model"]["storageUri"] == SECOND.uri
        assert found["predictor"]["canaryTrafficPercent"] == 0
        assert served.canary().url == "http://latest-covidnet.example"
    assert served.stable().url == kube.kserve.url


def test_traffic_moves_in_steps_and_the_promoted_model_has_all_of_it(served, kube):
    served.begin(SECOND)
    for percent in (10, 50):
        served.shift(percent)
        found = spec(kube)
        told = found["canary"][0]["trafficPercent"] if "canary" in found else None
        assert percent in (told, found["predictor"].get("canaryTrafficPercent"))
    served.promote()
    assert serving(kube) == SECOND.uri
    assert not served.under_way()
    if kube.kserve.mode == "Standard":  # the same Deployment goes on: a promotion starts no pod
        assert spec(kube)["predictor"]["name"] == "bbbbbbbbbbbbb"


def test_the_way_back_ends_where_it_began(served, kube):
    before = spec(kube)
    served.begin(SECOND)
    served.shift(10)
    served.roll_back()
    assert spec(kube) == before
    assert not served.under_way()


def test_the_way_back_after_a_promotion_keeps_the_promoted_name(served, kube):
    served.begin(SECOND)
    served.promote()
    before = spec(kube)
    served.begin(FIRST)
    served.roll_back()
    assert spec(kube) == before


def test_repeating_any_step_changes_nothing(served, kube):
    steps = [lambda: served.begin(SECOND), lambda: served.shift(10), lambda: served.shift(50)]
    for step in steps:
        step()
        generation = kube.generation
        step()
        assert kube.generation == generation
    served.promote()
    generation = kube.generation
    assert "already" in served.begin(SECOND)
    assert kube.generation == generation


def test_the_same_bundle_at_another_place_is_served_already(served, kube):
    applied = len(kube.applied)
    assert "already" in served.begin(Candidate("s3://models/elsewhere", FIRST.version))
    assert len(kube.applied) == applied


def test_what_a_killed_run_left_is_replaced_or_cleared(served, kube):
    before = spec(kube)
    served.begin(SECOND)
    served.shift(10)
    third = Candidate("s3://models/third", "dddddddddddd")
    served.begin(third)  # the killed run's canary is gone, its traffic too
    assert SECOND.uri not in json.dumps(spec(kube))
    served.begin(FIRST)
    assert spec(kube) == before
    assert not served.under_way()


def test_nothing_to_promote_is_said(rollout):
    with pytest.raises(CovidnetError, match="no rollout under way"):
        rollout.promote()


def test_only_the_models_place_and_the_traffic_are_stated(rollout, kube, service):
    """The first manager is `kubectl apply` of manifests/: what it sets beside the model stays."""
    theirs = {
        "metadata": {"name": "covidnet", "annotations": {"team": "lungs"}},
        "spec": {"predictor": {"maxReplicas": 5, "model": {"resources": {"limits": {"cpu": "2"}}}}},
    }
    kube.apply("kubectl", merge_uri(theirs, FIRST.uri), force=False)
    taking = type(rollout)(service, rollout.settings.model_copy(update={"force": True}))
    taking.begin(SECOND)
    taking.roll_back()
    found = kube.live()
    assert found["spec"]["predictor"]["maxReplicas"] == 5
    assert found["spec"]["predictor"]["model"]["resources"] == {"limits": {"cpu": "2"}}
    assert found["spec"]["predictor"]["model"]["storageUri"] == FIRST.uri
    assert found["metadata"]["annotations"]["team"] == "lungs"


def merge_uri(tree, uri):
    tree["spec"]["predictor"]["model"]["storageUri"] = uri
    return tree


@pytest.mark.parametrize("rollout", ["Knative"], indirect=True)
def test_a_field_that_somebody_else_sets_otherwise_is_named_and_may_be_taken_over(rollout, kube):
    theirs = {"metadata": {"name": "covidnet"}, "spec": {"predictor": {"model": {"storageUri": FIRST.uri}}}}
    kube.apply("argocd", theirs, force=False)
    with pytest.raises(
        CovidnetError, match=r'spec.predictor.model.storageUri \(conflict with "argocd"\).*deploy.force'
    ):
        rollout.begin(SECOND)
    type(rollout)(rollout.service, rollout.settings.model_copy(update={"force": True})).begin(SECOND)
    assert spec(kube)["predictor"]["model"]["storageUri"] == SECOND.uri


def test_a_canary_that_never_gets_ready_is_explained(served, kube):
    kube.kserve.never = {
        "conditions": [
            {"type": "Ready", "status": "False", "reason": "PredictorNotReady", "message": "waiting for pods"},
            {"type": "IngressReady", "status": "True"},
        ]
    }
    kube.pods = [
        pod("covidnet-0", conditions=[unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")]),
        pod("covidnet-1", waiting={"reason": "ImagePullBackOff", "message": "manifest unknown"}),
    ]
    fast = type(served)(served.service, served.settings.model_copy(update={"ready_timeout_s": 0.05}))
    with pytest.raises(CovidnetError) as error:
        fast.begin(BROKEN)
    text = str(error.value)
    assert "canary cccccccccccc is not ready: not within 0.05 s" in text
    assert "- Ready: PredictorNotReady waiting for pods" in text
    assert "covidnet-0: Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu." in text
    assert "container kserve-container: ImagePullBackOff: manifest unknown" in text


def test_a_model_that_can_not_be_loaded_ends_the_wait(served, kube):
    kube.kserve.never = {
        "modelStatus": {
            "transitionStatus": "BlockedByFailedLoad",
            "lastFailureInfo": {"reason": "ModelLoadFailed", "message": "SHA256SUMS: model.onnx was altered"},
        }
    }
    with pytest.raises(CovidnetError, match=r"ModelLoadFailed: SHA256SUMS: model\.onnx was altered"):
        served.begin(BROKEN)
    served.roll_back()
    assert serving(kube) == FIRST.uri


def pod(name, conditions=(), waiting=None):
    statuses = [{"name": "kserve-container", "image": "", "imageID": "", "ready": False, "restartCount": 0,
                 "state": {"waiting": waiting}}] if waiting else []  # fmt: skip
    return {"metadata": {"name": name}, "status": {"conditions": list(conditions), "containerStatuses": statuses}}


def unschedulable(message):
    return {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}


@pytest.fixture(scope="module")
def schema(request):
    """KServe's own schema, with a misspelled field as an error."""
    from tests.conftest import REPOSITORY

    file = REPOSITORY.parent / "shared" / "crds" / "serving.kserve.io_inferenceservices.yaml"
    if not file.is_file():
        pytest.skip(f"the schemas of KServe are not here: expected {file}")

    def strict(node):
        if isinstance(node, dict):
            if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
                node.setdefault("additionalProperties", False)
            for part in node.values():
                strict(part)
        elif isinstance(node, list):
            for part in node:
                strict(part)
        return node

    tree = yaml.load(file.read_text(), yaml.CSafeLoader)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return Draft202012Validator(strict(tree["properties"]["spec"]))


def test_all_that_is_applied_obeys_kserves_schema(served, kube, schema):
    served.begin(SECOND)
    served.shift(10)
    served.promote()
    served.begin(FIRST)
    served.roll_back()
    assert len(kube.applied) >= 6
    for tree in kube.applied:
        assert [error.message for error in schema.iter_errors(tree["spec"])] == []


def test_the_models_name_is_the_runtimes_own_so_a_canary_answers_on_the_paths_of_the_service(repository):
    """KServe would fill a placeholder with the name of the predictor, which a canary has of its own."""
    trees = {path: yaml.safe_load(path.read_text()) for path in (repository / "manifests").rglob("runtime.yaml")}
    runtimes = {path: tree["spec"]["containers"] for path, tree in trees.items() if tree["kind"] == "ServingRuntime"}
    assert len(runtimes) >= 4
    for path, containers in runtimes.items():
        assert "{{" not in json.dumps(containers), path
        named = [word for container in containers for word in container.get("args", []) if "model_name" in word]
        assert set(named) <= {f"--model_name={MODEL}"}, path
