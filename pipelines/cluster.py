"""What the pods of each kind of task ask of a cluster."""

from dataclasses import dataclass
from typing import Any

from kfp import dsl, kubernetes

from components import IMAGE
from covidnet.folder import WORKSPACE

RAW_SCANS, SHARED = "/data", "/workspace"
AWS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")
_HOUR_SECONDS = 3600
_USER = 1000  # of components/Containerfile


@dataclass(frozen=True, slots=True)
class Cluster:
    """Settings of the pods, fixed when the graph is compiled; GPUs and nodes are parameters of a run.

    Args:
        data_claim: PersistentVolumeClaim with the raw scans, mounted read-only at `/data`; None for phantoms.
        workspace_claim: PersistentVolumeClaim for work in progress, mounted at `/workspace`: a task that lost its pod
            goes on from its checkpoint, and the pods of a TrainJob share it (then it must be ReadWriteMany).
        key_secret: Secret whose entry `key` makes the pseudonyms of patients (docs/data.md); None takes the public key.
        data_secret: Secret with the credentials of `AWS` that `data.revision` needs, under the variables' names.
        node_selector: labels of the nodes that train, ``key=value``.
        tolerations: taints of those nodes, by key.
        cached: take results of equal inputs from the cache.
        at_once: tasks of a loop that run side by side; None: as many as the cluster has room for.
        retries: after a lost pod. A fault that a user can mend fails again, so more is a waste.
    """

    data_claim: str | None = None
    workspace_claim: str | None = None
    key_secret: str | None = None
    data_secret: str | None = None
    node_selector: tuple[str, ...] = ()
    tolerations: tuple[str, ...] = ("nvidia.com/gpu",)
    cached: bool = True
    at_once: int | None = None
    retries: int = 2

    def light(self, task: dsl.PipelineTask, hours: int = 1) -> dsl.PipelineTask:
        """A task of seconds that reads small files, or waits."""
        self._run(task, hours)
        return task.set_cpu_request("500m").set_cpu_limit("2").set_memory_request("1Gi").set_memory_limit("4Gi")

    def telling(self, task: dsl.PipelineTask) -> dsl.PipelineTask:
        """The gate, and the last task, which passes on what the gate said."""
        self._mount_workspace(task)
        return self.light(task)

    def configuring(self, task: dsl.PipelineTask) -> dsl.PipelineTask:
        """Looks at the raw scans' names and sizes, or for their version, so never from the cache."""
        self._mount(task)
        return self.light(task).set_caching_options(False)

    def ingesting(self, task: dsl.PipelineTask) -> dsl.PipelineTask:
        """Decoding, one process per core."""
        self._mount(task)
        if self.key_secret:
            kubernetes.use_secret_as_env(task, self.key_secret, {"key": "COVIDNET_PATIENT_KEY"})
        self._run(task, hours=12)
        task.set_cpu_request("4").set_cpu_limit("16").set_memory_request("8Gi").set_memory_limit("32Gi")
        return self._retried(task)

    def computing(self, task: dsl.PipelineTask, gpus: Any = None, gpu_type: Any = None) -> dsl.PipelineTask:
        """Anything that runs a network on the packed dataset, which it holds in memory.

        Args:
            task: to place.
            gpus: parameter of the run; None asks for none.
            gpu_type: parameter of the run.
        """
        if gpus is not None:
            task.set_accelerator_type(gpu_type).set_accelerator_limit(gpus)
        for key in self.tolerations:
            kubernetes.add_toleration(task, key=key, operator="Exists", effect="NoSchedule")
        for label in self.node_selector:
            kubernetes.add_node_selector(task, *label.split("=", 1))
        # PyTorch hands batches between processes through /dev/shm, and containers have 64 MiB of it
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit="4Gi")
        self._mount_workspace(task)
        self._run(task, hours=72)
        task.set_cpu_request("2").set_cpu_limit("8").set_memory_request("6Gi").set_memory_limit("24Gi")
        return self._retried(task)

    def _run(self, task: dsl.PipelineTask, hours: int) -> None:
        kubernetes.set_timeout(task, hours * _HOUR_SECONDS)
        task.set_caching_options(self.cached)
        # the image's user, said to Kubernetes, too: without it a namespace under restricted Pod Security refuses the pod
        kubernetes.set_security_context(task, run_as_user=_USER, run_as_group=_USER, run_as_non_root=True)

    def _mount(self, task: dsl.PipelineTask) -> None:
        if self.data_claim:
            kubernetes.mount_pvc(task, self.data_claim, RAW_SCANS)
        if self.data_secret:
            kubernetes.use_secret_as_env(task, self.data_secret, {name: name for name in AWS}, optional=True)
        self._mount_workspace(task)

    def _mount_workspace(self, task: dsl.PipelineTask) -> None:
        if self.workspace_claim:
            kubernetes.mount_pvc(task, self.workspace_claim, SHARED)
            task.set_env_variable(WORKSPACE, SHARED)
            task.set_env_variable("COVIDNET_WORKSPACE_CLAIM", self.workspace_claim)
            task.set_env_variable("COVIDNET_IMAGE", IMAGE)  # of the pods of a TrainJob

    def _retried(self, task: dsl.PipelineTask) -> dsl.PipelineTask:
        return task.set_retry(self.retries, backoff_duration="60s", backoff_factor=2.0) if self.retries else task
