"""Component `evaluate`: the one reading of the test split."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    params: str,
    code: str,
    dataset: dsl.Input[dsl.Dataset],
    baselines: dsl.Input[list[dsl.Model]],
    genotypes: dsl.Input[list[dsl.Artifact]],
    retrained: dsl.Input[list[dsl.Model]],
    evaluation: dsl.Output[dsl.Artifact],
    winner: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
) -> None:
    """Choose the winner on validation, read the test split once, write the report.

    Args:
        params: Configuration, as JSON.
        code: Digest of the code: the cache answers for equal code only.
        dataset: From ingest.
        baselines: From all baselines.
        genotypes: From all searches.
        retrained: From all retrained networks.
        evaluation: Results, plots, report.
        winner: A copy of the best model.
        metrics: The winner's figures on the test split.
        confusion: The winner's confusion matrix on the test split, and its ROC curve for the positive class.
        report: The whole benchmark on one page.
        summary: The answer and the table of models.
    """
    import csv
    import json
    import shutil
    import tempfile
    from pathlib import Path

    from covidnet import config, stages

    settings = config.parse(json.loads(params))
    out = Path(evaluation.path)
    with tempfile.TemporaryDirectory() as results:  # the stage finds its candidates as under `results` of params.yaml
        candidates = [Path(results) / model.metadata["folder"] for model in [*retrained, *baselines]]
        for artifact in [*retrained, *baselines, *genotypes]:
            link = Path(results) / artifact.metadata["folder"]
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(artifact.path, target_is_directory=True)
        found = stages.evaluate(settings, Path(dataset.path), candidates, out)
        best = json.loads((out / "results.json").read_text())["winner"]["folder"]
        shutil.copytree(Path(results) / best, winner.path)
    evaluation.metadata.update({"folder": "evaluate", "winner": best})
    for name, value in found.items():
        if isinstance(value, (int, float)):
            metrics.log_metric(name, value)
    with (out / "plots" / "confusion.csv").open(newline="") as stream:
        pairs = [(row["actual"], row["predicted"]) for row in csv.DictReader(stream)]
    classes = list(settings.classes)
    confusion.log_confusion_matrix(classes, [[pairs.count((a, p)) for p in classes] for a in classes])
    with (out / "plots" / "roc.csv").open(newline="") as stream:
        points = [row for row in csv.DictReader(stream) if row["class"] == settings.evaluate.positive]
    curve = [[float(row[name]) for row in points] for name in ("false_positive_rate", "sensitivity", "threshold")]
    confusion.log_roc_curve(*curve)
    shutil.copyfile(out / "summary.md", summary.path)
    shutil.copyfile(out / "report.html", report.path)
