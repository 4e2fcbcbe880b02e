"""What the pods of each kind of task ask of a cluster."""

from dataclasses import dataclass

from kfp import dsl, kubernetes

RAW_SCANS = "/data"
_HOUR_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Cluster:
    """Settings of the pods. Fixed when the graph is compiled: KFP 2.17 hands no parameters to resources inside loops.

    Args:
        gpus: per search, training and evaluation pod; 0 runs on CPU.
        gpu_resource: the extended resource that the GPU nodes offer; its taint is tolerated.
        data_claim: PersistentVolumeClaim with the raw scans, mounted at `/data`; None for phantoms.
        retries: after a lost pod. A fault that a user can mend fails again, so more is a waste.
    """

    gpus: int = 0
    gpu_resource: str = "nvidia.com/gpu"
    data_claim: str | None = None
    retries: int = 1

    def light(self, task: dsl.PipelineTask) -> dsl.PipelineTask:
        """A task of seconds that reads small files."""
        kubernetes.set_timeout(task, _HOUR_SECONDS)
        return task.set_cpu_request("500m").set_cpu_limit("2").set_memory_request("1Gi").set_memory_limit("4Gi")

    def ingesting(self, task: dsl.PipelineTask) -> dsl.PipelineTask:
        """Decoding, one process per core."""
        if self.data_claim:
            kubernetes.mount_pvc(task, self.data_claim, RAW_SCANS)
        kubernetes.set_timeout(task, 12 * _HOUR_SECONDS)
        task.set_cpu_request("4").set_cpu_limit("16").set_memory_request("8Gi").set_memory_limit("32Gi")
        return self._retried(task)

    def training(self, task: dsl.PipelineTask) -> dsl.PipelineTask:
        """Anything that runs a network on the packed dataset, which it holds in memory."""
        if self.gpus:
            task.set_accelerator_type(self.gpu_resource).set_accelerator_limit(self.gpus)
            kubernetes.add_toleration(task, key=self.gpu_resource, operator="Exists", effect="NoSchedule")
        kubernetes.set_timeout(task, 72 * _HOUR_SECONDS)
        task.set_cpu_request("2").set_cpu_limit("8").set_memory_request("6Gi").set_memory_limit("24Gi")
        return self._retried(task)

    def _retried(self, task: dsl.PipelineTask) -> dsl.PipelineTask:
        return task.set_retry(self.retries, backoff_duration="60s") if self.retries else task
