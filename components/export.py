"""Component `export`: the winner as a verified bundle."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def export(
    params: str,
    code: str,
    dataset: dsl.Input[dsl.Dataset],
    evaluation: dsl.Input[dsl.Artifact],
    winner: dsl.Input[dsl.Model],
    bundle: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    model_card: dsl.Output[dsl.Markdown],
) -> None:
    """Export the winner as a bundle (ONNX, calibration, checksums, model card) and check it against torch.

    Args:
        params: Configuration, as JSON.
        code: Digest of the code: the cache answers for equal code only.
        dataset: From ingest.
        evaluation: From evaluate.
        winner: From evaluate.
        bundle: The stage's folder; what serving loads is `bundle` in it.
        metrics: Agreement with torch, sizes.
        model_card: What the model is for, and what it is not for.
    """
    import json
    import shutil
    import tempfile
    from pathlib import Path

    from covidnet import config, stages

    settings, evaluated, out = config.parse(json.loads(params)), Path(evaluation.path), Path(bundle.path)
    with tempfile.TemporaryDirectory() as results:  # the stage knows the winner by its place under `results`
        link = Path(results) / evaluation.metadata["winner"]
        link.parent.mkdir()
        link.symlink_to(winner.path, target_is_directory=True)
        found = stages.export(settings, Path(dataset.path), evaluated, [link], out)
    bundle.metadata.update({"folder": "export", "winner": evaluation.metadata["winner"]})
    for name, value in found.items():
        if isinstance(value, (int, float)):
            metrics.log_metric(name, value)
    shutil.copyfile(out / "bundle" / "MODEL_CARD.md", model_card.path)
