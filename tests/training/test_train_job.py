"""TrainJobs against an HTTP API that does what Kubeflow Trainer does with them."""

import json
from http.server import ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import yaml
from json_server import JsonHandler, answering
from kubeflow.common.types import KubernetesBackendConfig
from kubeflow.trainer import TrainerClient
from kubernetes.client import Configuration

from covidnet import config, folder, stages
from covidnet.errors import CovidnetError
from covidnet.training import train_job

TRAINER = "/apis/trainer.kubeflow.org/v1alpha1/"
JOBS = f"{TRAINER}namespaces/team/trainjobs"
PLACEMENT = json.dumps({"nodes": 2, "gpus": 4, "gpu_type": "nvidia.com/gpu"})
RUNTIME = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "ClusterTrainingRuntime",
    "metadata": {"name": "torch-distributed", "labels": {"trainer.kubeflow.org/framework": "torch"}},
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {}},
        "template": {
            "spec": {
                "replicatedJobs": [
                    {
                        "name": "node",
                        "template": {
                            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
                            "spec": {"template": {"spec": {"containers": [{"name": "node", "image": "torch"}]}}},
                        },
                    }
                ]
            }
        },
    },
}


class Trainer(ThreadingHTTPServer):
    """Jobs go through ``fates``, one from look to look; a callable in them does what the job does at its end."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.jobs, self.created, self.fates, self.refuse = {}, [], [], None
        self.state = "Pending"

    def look(self):
        if self.fates:
            self.state = self.fates.pop(0)
            if callable(self.state):
                self.state = self.state()


class Handler(JsonHandler):
    def do_GET(self):
        path = urlsplit(self.path).path
        if self.server.refuse:
            return self.answer(self.server.refuse, {})
        if path.startswith(JOBS + "/"):
            job = self.server.jobs.get(path.rpartition("/")[2])
            if job is None:
                return self.answer(404, {})
            state = self.server.state
            conditions = [{"type": state, "status": "True"}] if state in ("Complete", "Failed") else []
            for condition in conditions:
                condition.update(reason="x", message="x", lastTransitionTime="2026-01-01T00:00:00Z")
            return self.answer(200, {**job, "status": {"conditions": conditions}})
        if path.endswith("clustertrainingruntimes/torch-distributed"):
            return self.answer(200, RUNTIME)
        if path.endswith("/log"):
            return self.answer(200, "step 1\nstep 2\n", "text/plain")
        if path.endswith("/pods"):
            return self.answer(200, {"kind": "PodList", "apiVersion": "v1", "items": self.pods()})
        if path.endswith("/events"):
            return self.answer(200, {"kind": "EventList", "apiVersion": "v1", "items": self.events()})
        return self.answer(404, {})

    def pods(self):
        labels = {"jobset.sigs.k8s.io/replicatedjob-name": "node", "batch.kubernetes.io/job-completion-index": "0"}
        phase = {"Pending": "Pending", "Complete": "Succeeded", "Failed": "Failed"}.get(self.server.state, "Running")
        container = {"name": "node", "image": "x"}
        meta = {"name": "job-node-0", "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"}
        return [{"metadata": meta, "spec": {"containers": [container]}, "status": {"phase": phase}}]

    def events(self):
        message = {"Pending": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", "Failed": "OOMKilled"}
        involved = {"kind": "Pod", "name": "job-node-0"}
        return [
            {"metadata": {"name": "e"}, "involvedObject": involved, "reason": "Event",
             "firstTimestamp": "2026-01-01T00:00:00Z", "message": message.get(self.server.state, "")},
        ]  # fmt: skip

    def do_POST(self):
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.refuse:
            return self.answer(self.server.refuse, {})
        job["metadata"] |= {"namespace": "team", "creationTimestamp": "2026-01-01T00:00:00Z"}
        self.server.jobs[job["metadata"]["name"]] = job
        self.server.created.append(job)
        self.server.look()
        return self.answer(201, job)

    def do_DELETE(self):
        self.server.jobs.pop(urlsplit(self.path).path.rpartition("/")[2])
        self.answer(200, {})


@pytest.fixture
def trainer(monkeypatch, tmp_path):
    server = Trainer()
    with answering(server):
        settings = Configuration(host=f"http://127.0.0.1:{server.server_port}")
        settings.retries = 0
        client = TrainerClient(KubernetesBackendConfig(namespace="team", client_configuration=settings))
        monkeypatch.setattr(train_job, "_client", lambda: client)
        monkeypatch.setattr(train_job, "time", SimpleNamespace(sleep=lambda _: server.look()))
        monkeypatch.setenv(folder.WORKSPACE, str(tmp_path / "workspace"))
        monkeypatch.setenv("COVIDNET_WORKSPACE_CLAIM", "work")
        monkeypatch.setenv("COVIDNET_IMAGE", "registry.example/covidnet3d@sha256:0")
        yield server


@pytest.fixture
def dataset(tmp_path):
    """Any finished folder: the job doesn't look into it here."""
    out = tmp_path / "dataset"
    out.mkdir()
    (out / "scans.npy").write_text("scans")
    (out / "provenance.json").write_text(json.dumps({"outputs": ["scans.npy"]}))
    return out


def finish(workspace):
    """What the job's pods leave on the volume."""

    def at_the_end():
        (shared,) = (workspace / "jobs").iterdir()
        assert (shared / "results" / "dataset" / "scans.npy").read_text() == "scans"
        out = shared / "results" / "search" / "S"
        out.mkdir(parents=True)
        (out / "metrics.json").write_text('{"size_mib": 3.5}')
        (out / "provenance.json").write_text(json.dumps({"outputs": ["metrics.json"]}))
        return "Complete"

    return at_the_end


def search(dataset, tmp_path, job=PLACEMENT):
    out = tmp_path / "genotype"
    return train_job.run(job, stages.search, config.parse({"search": {"steps": 7}}), dataset, out, "S")


def test_without_a_job_the_stage_runs_here():
    def stage(settings, dataset, out, variant):
        return {"where": "here", "variant": variant}

    assert train_job.run("", stage, config.Config(), "d", "o", "S") == {"where": "here", "variant": "S"}


def test_a_job_runs_the_verb_under_torchrun_and_its_result_is_the_tasks(trainer, dataset, tmp_path, capsys):
    trainer.fates = ["Pending", "Running", finish(tmp_path / "workspace")]
    assert search(dataset, tmp_path) == {"size_mib": 3.5}
    assert folder.is_complete(tmp_path / "genotype")
    (job,) = trainer.created
    spec = job["spec"]["trainer"]
    assert spec["numNodes"] == 2
    assert spec["image"] == "registry.example/covidnet3d@sha256:0"
    assert spec["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == 4
    shared = tmp_path / "workspace" / "jobs" / job["metadata"]["name"]
    assert spec["command"] == ["torchrun", "-m", "covidnet", "search", "--variant", "S", "--params",
                               f"{shared}/params.yaml", "-S", f"results={shared}/results"]  # fmt: skip
    assert config.load(shared / "params.yaml").search.steps == 7
    (patch,) = job["spec"]["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert pod["volumes"] == [{"name": "workspace", "persistentVolumeClaim": {"claimName": "work"}}]
    assert pod["containers"][0]["volumeMounts"] == [{"name": "workspace", "mountPath": str(tmp_path / "workspace")}]
    told = capsys.readouterr().out
    assert "waits: Event: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu." in told
    assert told.count("step 1\nstep 2\n") == 1


def test_a_job_that_failed_is_submitted_anew_and_finds_its_checkpoint(trainer, dataset, tmp_path, capsys):
    def fail():
        (shared,) = (tmp_path / "workspace" / "jobs").iterdir()
        (shared / "results" / "search").mkdir()
        (shared / "results" / "search" / "checkpoint").write_text("half")
        return "Failed"

    def go_on():
        (shared,) = (tmp_path / "workspace" / "jobs").iterdir()
        assert (shared / "results" / "search" / "checkpoint").read_text() == "half"
        return finish(tmp_path / "workspace")()

    trainer.fates = ["Running", fail, "Running", go_on]
    assert search(dataset, tmp_path) == {"size_mib": 3.5}
    assert len(trainer.created) == 2
    assert "failed (attempt 1 of 3): Event: OOMKilled" in capsys.readouterr().out


def test_a_job_that_fails_again_and_again_is_named_with_the_reason(trainer, dataset, tmp_path):
    trainer.fates = ["Failed"]
    with pytest.raises(CovidnetError, match=r"TrainJob search-s-[0-9a-f]{12} failed 3 times: .*OOMKilled.*run again"):
        search(dataset, tmp_path)
    assert len(trainer.created) == 3


def test_a_task_that_lost_its_pod_finds_its_job_again(trainer, dataset, tmp_path):
    def lost():
        raise KeyboardInterrupt

    trainer.fates = ["Running", lost]
    with pytest.raises(KeyboardInterrupt):
        search(dataset, tmp_path)
    trainer.fates, trainer.state = [finish(tmp_path / "workspace")], "Running"
    assert search(dataset, tmp_path) == {"size_mib": 3.5}
    assert len(trainer.created) == 1


@pytest.mark.parametrize(
    ("status", "message"),
    [(403, r"\(403\); the account may not do that with TrainJobs"), (500, r"\(500\)"), (503, r"\(503\)")],
)
def test_a_refusal_is_named(trainer, dataset, tmp_path, status, message):
    trainer.refuse = status
    with pytest.raises(CovidnetError, match=message):
        search(dataset, tmp_path)


def test_the_job_obeys_trainers_schema(trainer, dataset, tmp_path, repository):
    from jsonschema import Draft202012Validator

    file = repository.parent / "shared" / "crds" / "trainer.kubeflow.org_trainjobs.yaml"
    if not file.is_file():
        pytest.skip(f"the schemas of Kubeflow Trainer are not here: expected {file}")
    trainer.fates = [finish(tmp_path / "workspace")]
    search(dataset, tmp_path)
    schema = yaml.load(file.read_text(), yaml.CSafeLoader)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]

    def strict(node):
        if isinstance(node, dict):
            if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
                node.setdefault("additionalProperties", False)
            for part in node.values():
                strict(part)
        elif isinstance(node, list):
            for part in node:
                strict(part)

    strict(schema["properties"]["spec"])
    errors = Draft202012Validator(schema["properties"]["spec"]).iter_errors(trainer.created[0]["spec"])
    assert [error.message for error in errors] == []
