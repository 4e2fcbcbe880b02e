"""A training stage on several nodes: as a Kubeflow TrainJob, submitted and followed from the task that stands for it.

The pods of the job run the same verb of the CLI under torchrun. What they share is a volume (`COVIDNET_WORKSPACE`): the
dataset is copied there, the stage works and leaves its checkpoints there, and its result is copied to where the task
wants it. The job's name comes from its inputs, so a task that lost its pod finds the job again, and a job that failed is
submitted anew and goes on from its checkpoint.
"""

import hashlib
import inspect
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covidnet import folder
from covidnet.config import Config
from covidnet.errors import CovidnetError

if TYPE_CHECKING:
    from kubeflow.trainer import TrainerClient

RUNTIME = "torch-distributed"  # TrainingRuntime of the namespace, or ClusterTrainingRuntime
ATTEMPTS = 3
_VOLUME = "workspace"

Metrics = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """A stage on several nodes.

    Args:
        name: of the TrainJob, the same for the same inputs.
        verb: of the CLI, with its options.
        shared: folder of this job on the volume.
        nodes: pods.
        gpus: per pod.
        gpu_type: extended resource of the nodes.
    """

    name: str
    verb: tuple[str, ...]
    shared: Path
    nodes: int
    gpus: int
    gpu_type: str


def run(job: str, stage: Callable[..., Metrics], config: Config, dataset: Path, *rest: Any) -> Metrics:
    """Run a stage here, or as a TrainJob.

    Args:
        job: ``nodes``, ``gpus`` and ``gpu_type`` as JSON; empty runs it here.
        stage: ``baseline``, ``search`` or ``retrain`` of `covidnet.stages`.
        config: its configuration.
        dataset: from ingest.
        rest: what else the stage takes: ``searched`` of retrain, ``out``, and ``model`` or ``variant``.

    Raises:
        CovidnetError: the stage's own; or the job failed for good, or can't be submitted.
    """
    if not job:
        return stage(config, dataset, *rest)
    arguments = inspect.signature(stage).bind(config, dataset, *rest).arguments
    planned = plan(json.loads(job), stage.__name__, config, arguments)
    result = planned.shared / "results" / stage.__name__ / planned.verb[-1]
    if not folder.is_complete(result):
        follow(planned, _client())
    folder.require(result, " ".join(planned.verb))
    shutil.copytree(result, arguments["out"])
    metrics: Metrics = json.loads((result / "metrics.json").read_text())
    return metrics


def plan(placement: Metrics, stage: str, config: Config, arguments: dict[str, Any]) -> Job:
    """Lay out the job's folder on the shared volume: configuration, dataset, and the genotype to retrain."""
    option, which = ("model", arguments["model"]) if "model" in arguments else ("variant", arguments["variant"])
    inputs = {"dataset": arguments["dataset"]}
    if "searched" in arguments:
        inputs[f"search/{which}"] = arguments["searched"]
    told = [stage, which, config.model_dump_json(), folder.code_digest(), *map(folder.digest, inputs.values())]
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]
    name = f"{stage}-{which.lower().replace('_', '-')}-{digest}"
    shared = Path(os.environ[folder.WORKSPACE]) / "jobs" / name
    shared.mkdir(parents=True, exist_ok=True)
    # JSON is YAML; the profile is laid over already
    folder.write_json(shared / "params.yaml", {**config.model_dump(mode="json"), "profiles": {config.profile: {}}})
    for place, source in inputs.items():
        target = shared / "results" / place
        if not folder.is_complete(target):
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)
    return Job(name, (stage, f"--{option}", which), shared, **placement)


def follow(job: Job, client: "TrainerClient", poll_s: float = 10.0) -> None:
    """Submit the job, or find it again, print its log, and submit it anew when it failed.

    Raises:
        CovidnetError: failed `ATTEMPTS` times, or the cluster refuses; with the reasons that it gives.
    """
    for attempt in range(ATTEMPTS):
        if not _exists(client, job.name):
            _submit(client, job)
        state = _watch(client, job, poll_s)
        if state == "Complete":
            return
        reasons = _reasons(client, job.name)
        print(f"TrainJob {job.name} failed (attempt {attempt + 1} of {ATTEMPTS}): {reasons}", flush=True)
        _asked(client.delete_job, job.name)
        while _exists(client, job.name):
            time.sleep(poll_s)
    raise CovidnetError(
        f"TrainJob {job.name} failed {ATTEMPTS} times: {reasons}. Its checkpoint is kept in {job.shared}; run again to go on"
    )


def _client() -> "TrainerClient":
    from kubeflow.common.types import KubernetesBackendConfig
    from kubeflow.trainer import TrainerClient

    from covidnet.cluster import own_namespace

    client: TrainerClient = _asked(TrainerClient, KubernetesBackendConfig(namespace=own_namespace()))
    return client


def _submit(client: "TrainerClient", job: Job) -> None:
    from kubeflow.trainer import CustomTrainerContainer
    from kubeflow.trainer.options import Name, TrainerCommand
    from kubeflow.trainer.options.kubernetes import RuntimePatch

    results = job.shared / "results"
    command = ["torchrun", "-m", "covidnet", *job.verb, "--params", str(job.shared / "params.yaml")]
    resources = {"cpu": 4, "memory": "16Gi", **({job.gpu_type: job.gpus} if job.gpus else {})}
    trainer = CustomTrainerContainer(os.environ["COVIDNET_IMAGE"], job.nodes, resources, {"PYTHONUNBUFFERED": "1"})
    options = [
        Name(job.name),
        TrainerCommand([*command, "-S", f"results={results}"]),
        RuntimePatch(_with_volume(os.environ["COVIDNET_WORKSPACE_CLAIM"], os.environ[folder.WORKSPACE])),
    ]
    _asked(client.train, runtime=RUNTIME, trainer=trainer, options=options)
    print(f"TrainJob {job.name}: {job.nodes} nodes with {job.gpus} {job.gpu_type} each", flush=True)


def _with_volume(claim: str, mount: str) -> Any:
    """A patch of the runtime: the shared volume in the container `node` of every pod."""
    from kubeflow.trainer.options import kubernetes as patch

    container = patch.ContainerPatch("node", volume_mounts=[{"name": _VOLUME, "mountPath": mount}])
    volume = {"name": _VOLUME, "persistentVolumeClaim": {"claimName": claim}}
    pod = patch.PodTemplatePatch(spec=patch.PodSpecPatch(volumes=[volume], containers=[container]))
    replicated = patch.ReplicatedJobPatch("node", patch.JobTemplatePatch(spec=patch.JobSpecPatch(template=pod)))
    jobs = patch.JobSetSpecPatch(replicated_jobs=[replicated])
    return patch.TrainingRuntimeSpecPatch(template=patch.JobSetTemplatePatch(spec=jobs))


def _watch(client: "TrainerClient", job: Job, poll_s: float) -> str:
    """Print the first pod's log as it grows, and why pods wait, until the job ends; its last state."""
    printed, told = 0, ""
    while True:
        found = _asked(client.get_job, job.name)
        lines = list(_asked(lambda: list(client.get_job_logs(job.name)))) if _started(found) else []
        for line in lines[printed:]:
            print(line, flush=True)
        printed = max(printed, len(lines))
        if found.status in ("Complete", "Failed"):
            return str(found.status)
        waiting = "" if _started(found) else _reasons(client, job.name)
        if waiting and waiting != told:
            print(f"TrainJob {job.name} waits: {waiting}", flush=True)
            told = waiting
        time.sleep(poll_s)


def _started(found: Any) -> bool:
    return any(step.status not in (None, "Pending", "Unknown") for step in found.steps)


def _reasons(client: "TrainerClient", name: str) -> str:
    """The latest messages that the cluster has for the job and its pods."""
    events = _asked(client.get_job_events, name)
    return "; ".join(f"{event.reason}: {event.message}" for event in events[-3:]) or "the cluster gives no reason yet"


def _exists(client: "TrainerClient", name: str) -> bool:
    from kubernetes.client import ApiException

    try:
        client.get_job(name)
    except RuntimeError as error:  # the SDK's only error; what it was lies in its cause
        if isinstance(error.__cause__, ApiException) and error.__cause__.status == 404:
            return False
        raise _named(error) from None
    return True


def _asked(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call the SDK, which wraps what the API server said in a sentence without it."""
    try:
        return call(*arguments, **options)
    except (RuntimeError, TimeoutError, ValueError) as error:
        raise _named(error) from None


def _named(error: Exception) -> CovidnetError:
    status = int(getattr(error.__cause__, "status", 0) or 0)
    remedy = {
        403: "; the account may not do that with TrainJobs in this namespace: give its service account the right",
        404: f"; is Kubeflow Trainer installed, with a runtime {RUNTIME}?",
    }.get(status, "")
    return CovidnetError(f"Kubeflow Trainer: {error}{f' ({status})' if status else ''}{remedy}")
