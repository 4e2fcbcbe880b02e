"""Component `retrain`: the found architecture, trained from scratch."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def retrain(
    params: str,
    variant: str,
    gpus: int,
    gpu_type: str,
    job: str,
    code: str,
    dataset: dsl.Input[dsl.Dataset],
    genotype: dsl.Input[dsl.Artifact],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Train the found architecture from scratch.

    Args:
        params: Configuration, as JSON.
        variant: Search space that the genotype comes from, S or L.
        gpus: Of this pod; 0 where a TrainJob has them.
        gpu_type: What the nodes offer, e.g. nvidia.com/gpu.
        job: Nodes and GPUs of a TrainJob, as JSON; empty trains in this pod.
        code: Digest of the code: the cache answers for equal code only.
        dataset: From ingest.
        genotype: From search.
        model: Weights, description, validation predictions.
        metrics: Validation accuracy, size, training cost.
    """
    import json
    from pathlib import Path

    from covidnet import config, stages
    from covidnet.training import train_job

    settings = config.parse(json.loads(params))
    searched, out = Path(genotype.path), Path(model.path)
    found = train_job.run(job, stages.retrain, settings, Path(dataset.path), searched, out, variant)
    model.metadata.update({"folder": f"retrain/{variant}", **found})
    for key, value in found.items():
        if isinstance(value, (int, float)):
            metrics.log_metric(key, value)
