"""Component `baseline`: one of the paper's human-designed networks."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def baseline(
    params: str,
    name: str,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Train one of the paper's human-designed networks.

    Args:
        params: Configuration, as JSON.
        name: resnet3d101, densenet3d121 or mc3_18.
        dataset: From ingest.
        model: Weights, description, validation predictions.
        metrics: Validation accuracy, size, training cost.
    """
    import json
    from pathlib import Path

    from covidnet import config, stages

    found = stages.baseline(config.parse(json.loads(params)), Path(dataset.path), Path(model.path), name)
    model.metadata.update({"folder": f"baseline/{name}", **found})
    for key, value in found.items():
        if isinstance(value, (int, float)):
            metrics.log_metric(key, value)
