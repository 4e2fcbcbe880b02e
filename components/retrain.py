"""Component `retrain`: the found architecture, trained from scratch."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def retrain(
    params: str,
    variant: str,
    dataset: dsl.Input[dsl.Dataset],
    genotype: dsl.Input[dsl.Artifact],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Train the found architecture from scratch.

    Args:
        params: Configuration, as JSON.
        variant: Search space that the genotype comes from, S or L.
        dataset: From ingest.
        genotype: From search.
        model: Weights, description, validation predictions.
        metrics: Validation accuracy, size, training cost.
    """
    import json
    from pathlib import Path

    from covidnet import config, stages

    settings = config.parse(json.loads(params))
    found = stages.retrain(settings, Path(dataset.path), Path(genotype.path), Path(model.path), variant)
    model.metadata.update({"folder": f"retrain/{variant}", **found})
    for key, value in found.items():
        if isinstance(value, (int, float)):
            metrics.log_metric(key, value)
