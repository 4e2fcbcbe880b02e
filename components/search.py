"""Component `search`: architecture search."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def search(
    params: str,
    variant: str,
    gpus: int,
    gpu_type: str,
    job: str,
    code: str,
    dataset: dsl.Input[dsl.Dataset],
    genotype: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Search an architecture on the training split, and compare it with random ones inside the supernet.

    Args:
        params: Configuration, as JSON.
        variant: Search space, S or L.
        gpus: Of this pod; 0 where a TrainJob has them.
        gpu_type: What the nodes offer, e.g. nvidia.com/gpu.
        job: Nodes and GPUs of a TrainJob, as JSON; empty trains in this pod.
        code: Digest of the code: the cache answers for equal code only.
        dataset: From ingest.
        genotype: genotype.json, and the history of the search.
        metrics: Size of the result, its accuracy inside the supernet beside that of random architectures.
    """
    import json
    from pathlib import Path

    from covidnet import config, stages
    from covidnet.training import train_job

    settings = config.parse(json.loads(params))
    found = train_job.run(job, stages.search, settings, Path(dataset.path), Path(genotype.path), variant)
    genotype.metadata.update({"folder": f"search/{variant}", **found})
    for key, value in found.items():
        if isinstance(value, (int, float)):
            metrics.log_metric(key, value)
