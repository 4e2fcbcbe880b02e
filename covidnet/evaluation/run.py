"""The one reading of the test split: winner by validation, figures with intervals, explanations, report."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from covidnet import folder
from covidnet.config import Config
from covidnet.data import packed as packed_data
from covidnet.evaluation import bootstrap, calibration, metrics
from covidnet.evaluation.metrics import Predictions
from covidnet.models import saved
from covidnet.models.blocks import Classifier
from covidnet.training import loop
from covidnet.training.volumes import Volumes, select


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trained model with what it predicted.

    Args:
        folder: ``<stage>/<name>``, as under ``results``.
        training: the stage's `metrics.json`.
        temperature: fitted on validation.
    """

    folder: str
    name: str
    training: dict[str, Any]
    validation: Predictions
    test: Predictions
    temperature: float


def choose(candidates: Sequence[Candidate], config: Config) -> tuple[Candidate, str]:
    """The winner, by validation alone, and the reason in a sentence.

    The best validation accuracy wins, unless a smaller model is not significantly worse (paired patient-level bootstrap):
    then the smallest of those.
    """
    best = max(candidates, key=lambda c: metrics_of(c.validation, config)["accuracy"])
    alike = [c for c in candidates if c is best or _not_worse(c, best, config)]
    winner = min(alike, key=lambda c: c.training["size_mib"])
    accuracy = metrics_of(winner.validation, config)["accuracy"]
    if winner is best:
        reason = f"it has the best validation accuracy, {accuracy:.1%}"
        reason += "" if len(alike) == 1 else ", and is the smallest of those that can't be told apart from it"
    else:
        top = metrics_of(best.validation, config)["accuracy"]
        reason = (
            f"it is the smallest of the models whose validation accuracy can't be told apart from the best: "
            f"{accuracy:.1%} beside {top:.1%} of {best.name}"
        )
    return winner, reason


def metrics_of(predictions: Predictions, config: Config, temperature: float = 1.0) -> dict[str, float]:
    """All figures of a model's predictions."""
    probabilities = predictions.probabilities(temperature)
    return metrics.classification(predictions.labels, probabilities, predictions.classes, config.evaluate.positive)


def _not_worse(a: Candidate, b: Candidate, config: Config) -> bool:
    result = bootstrap.paired_difference(
        a.validation, b.validation, resamples=config.evaluate.bootstrap, confidence=config.evaluate.confidence
    )
    return bool(result.high >= 0)


def predict(
    config: Config, packed: packed_data.Packed, path: Path, device: torch.device
) -> tuple[Candidate, Classifier]:
    """Load a trained model and read the test split with it."""
    model, description = saved.load(path)
    loop.place(model, device)
    validation = Predictions.load(path / "validation.csv")
    rows = [packed.rows[i] for i in packed.split("test")]
    test = Predictions(
        scan_ids=tuple(row.scan_id for row in rows),
        patients=tuple(row.patient_id for row in rows),
        labels=packed.labels(config.classes)[packed.split("test")],
        logits=loop.logits(model, volumes_of(config, packed, "test", device)),
        classes=config.classes,
    )
    temperature = calibration.fit_temperature(validation.logits, validation.labels)
    training = json.loads((path / "metrics.json").read_text())
    name = f"{path.parent.name}/{path.name}"
    return Candidate(name, description.name, training, validation, test, temperature), model


def volumes_of(config: Config, packed: packed_data.Packed, split: str, device: torch.device) -> Volumes:
    """A split at the size it is packed at."""
    depth, height, width = packed.scans.shape[1:]
    return select(packed, packed.split(split), config.classes, (depth, height, width), device)


def explain(model: Classifier, scans: torch.Tensor, batch: int = 16) -> np.ndarray:
    """Class activation maps ``float32 (N, K, d, h, w)`` of ``uint8 (N, D, H, W)``."""
    with torch.inference_mode():
        parts = []
        for part in scans.split(batch):
            volume = loop.with_channels(model, loop.layout(part[:, None].float() / 127.5 - 1))
            parts.append(model.explain(volume)[1].float().cpu())
    maps: np.ndarray = torch.cat(parts).numpy()
    return maps


def write_curves(work: Path, winner: Candidate) -> None:
    """ROC points and the confusion matrix as CSV, for `dvc plots`."""
    from sklearn.metrics import roc_curve

    plots = work / "plots"
    plots.mkdir(exist_ok=True)
    probabilities = winner.test.probabilities(winner.temperature)
    with (plots / "roc.csv").open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["class", "false_positive_rate", "sensitivity"])
        for k, name in enumerate(winner.test.classes):
            for x, y in zip(*roc_curve(winner.test.labels == k, probabilities[:, k])[:2], strict=True):
                writer.writerow([name, f"{x:.6f}", f"{y:.6f}"])
    with (plots / "confusion.csv").open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["actual", "predicted"])
        for label, predicted in zip(winner.test.labels, winner.test.predicted, strict=True):
            writer.writerow([winner.test.classes[label], winner.test.classes[predicted]])


def finite(tree: Any) -> Any:
    """JSON has no NaN: undefined figures become null."""
    if isinstance(tree, dict):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    if isinstance(tree, float | np.floating):
        return float(tree) if math.isfinite(tree) else None
    return tree


def read_searches(config: Config, candidates: Sequence[Path]) -> dict[str, Any]:
    """What the searches behind the retrained candidates said, by variant."""
    found = {}
    for path in candidates:
        searched = path.parent.parent / "search" / path.name
        if path.parent.name == "retrain" and folder.is_complete(searched):
            found[path.name] = json.loads((searched / "search.json").read_text())
    return found
