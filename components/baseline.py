"""Component `baseline`: one of the paper's human-designed networks."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def baseline(
    params: str,
    name: str,
    gpus: int,
    gpu_type: str,
    job: str,
    code: str,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Train one of the paper's human-designed networks.

    Args:
        params: Configuration, as JSON.
        name: resnet3d101, densenet3d121 or mc3_18.
        gpus: Of this pod; 0 where a TrainJob has them.
        gpu_type: What the nodes offer, e.g. nvidia.com/gpu.
        job: Nodes and GPUs of a TrainJob, as JSON; empty trains in this pod.
        code: Digest of the code: the cache answers for equal code only.
        dataset: From ingest.
        model: Weights, description, validation predictions.
        metrics: Validation accuracy, size, training cost.
    """
    import json
    from pathlib import Path

    from covidnet import config, stages
    from covidnet.training import train_job

    settings = config.parse(json.loads(params))
    found = train_job.run(job, stages.baseline, settings, Path(dataset.path), Path(model.path), name)
    model.metadata.update({"folder": f"baseline/{name}", **found})
    for key, value in found.items():
        if isinstance(value, (int, float)):
            metrics.log_metric(key, value)
