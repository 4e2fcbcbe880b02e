import pytest

from covidnet.deploy.service import ATTEMPTS
from covidnet.errors import CovidnetError

TREE = {"spec": {"predictor": {"model": {"storageUri": "s3://models/a"}}}}


@pytest.mark.parametrize("fault", [429, 500, 503, (409, {"reason": "Conflict", "message": "modified"}), "hang"])
def test_a_busy_api_server_is_asked_again(service, kube, fault):
    kube.faults = [fault, fault]
    assert service.apply(TREE)["spec"] == TREE["spec"]
    assert kube.faults == []


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (503, r"could not patch .*: 503 .*\(4 attempts\)"),
        ("hang", r"the Kubernetes API at http://127.0.0.1:\d+ gives no answer: .*\(4 attempts\)"),
    ],
)
def test_an_api_server_that_stays_away_is_named(service, kube, fault, message):
    kube.faults = [fault] * ATTEMPTS
    with pytest.raises(CovidnetError, match=message):
        service.apply(TREE)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (401, "not logged in"),
        (403, "may not patch inferenceservices there"),
        ((404, "404 page not found"), "KServe is not installed"),
        ((422, {"message": "spec.predictor: invalid"}), "KServe refuses it: spec.predictor: invalid"),
        (418, "418 I'm a Teapot: no"),
    ],
)
def test_a_refusal_is_named_at_once(service, kube, fault, message):
    kube.faults = [fault]
    with pytest.raises(CovidnetError, match=message) as error:
        service.apply(TREE)
    assert "InferenceService covidnet in namespace team" in str(error.value)


def test_no_rights_to_read_is_not_taken_for_absence(service, kube):
    kube.faults = [403]
    with pytest.raises(CovidnetError, match="may not read inferenceservices there"):
        service.get()


def test_absence(service, kube):
    assert service.get() is None
    service.delete()


def test_a_status_of_an_older_generation_is_not_believed(service, kube):
    """Right after an apply, the status still speaks of the model before."""
    service.apply(TREE)
    seen = []
    kube.kserve.status = lambda spec, looks, history, generation: {"observedGeneration": 0 if looks < 4 else generation}
    service.wait(lambda found: seen.append(found["status"]) or True, "it", 2)
    assert seen == [{"observedGeneration": 1}]


def test_a_service_deleted_meanwhile(service, kube):
    with pytest.raises(CovidnetError, match="was deleted while waiting for it"):
        service.wait(lambda _: True, "it", 1)
