"""Trained models side by side: what each predicts of the test split, and which of them wins on validation."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from covidnet.config import Config
from covidnet.data import packed as packed_data
from covidnet.errors import CovidnetError
from covidnet.evaluation import bootstrap, calibration, metrics
from covidnet.evaluation.metrics import Predictions
from covidnet.models import saved
from covidnet.models.blocks import Classifier
from covidnet.training import loop
from covidnet.training.volumes import Volumes, select

TITLES = {
    "resnet3d101": "ResNet3D101",
    "densenet3d121": "DenseNet3D121",
    "mc3_18": "MC3_18",
    "covidnet3d-s": "CovidNet3D-S",
    "covidnet3d-l": "CovidNet3D-L",
}


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
    """Load a trained model and read the test split with it.

    Raises:
        CovidnetError: the model was trained for other classes, or the dataset has no scan to test with.
    """
    model, description = saved.load(path)
    if description.classes != config.classes:
        raise CovidnetError(
            f"{path} was trained for classes {list(description.classes)}, the configuration has {list(config.classes)}; "
            "train it again, or set classes in params.yaml to its own"
        )
    if not len(packed.split("test")):
        raise CovidnetError("the dataset has no scan in its test split: raise data.test and ingest again")
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


def title(name: str) -> str:
    """A model's name as the paper prints it."""
    return TITLES.get(name, name)
