"""Is the winner fit to go out: ahead of what is deployed, good in itself, calibrated, aware of what it doesn't know?"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covidnet.config import Config
from covidnet.data import packed as packed_data
from covidnet.deploy.endpoint import Endpoint, EndpointError
from covidnet.deploy.findings import Findings
from covidnet.evaluation import novelty
from covidnet.evaluation.metrics import Predictions

BATCH = 16  # scans per request


def decide(
    config: Config, dataset: Path, evaluated: Path, winner: Path, baselines: Sequence[Path], deployed: Endpoint | None
) -> Findings:
    """Look at every condition of `config.gate`.

    Args:
        config: ``gate``, and ``export`` for the out-of-distribution flag.
        dataset: from ingest.
        evaluated: from evaluate.
        winner: the chosen model's folder.
        baselines: folders of all baselines.
        deployed: the service as it is; None where there is none.
    """
    findings, packed = Findings(), packed_data.read(dataset)
    _ahead(findings, config, packed, winner, baselines, deployed)
    results = json.loads((evaluated / "results.json").read_text())
    test = {**results["metrics"][results["winner"]["name"]], **results["calibration"]}
    _bounds(findings, test, config.gate.at_least, config.gate.at_most)
    _flags_the_foreign(findings, config, packed)
    return findings


def _ahead(
    findings: Findings,
    config: Config,
    packed: packed_data.Packed,
    winner: Path,
    baselines: Sequence[Path],
    deployed: Endpoint | None,
) -> None:
    """Compare with the deployed model on the same validation scans, with the baselines where there is none."""
    rival, note = "the best baseline", ""
    best = max(_validation_accuracy(path) for path in baselines)
    if deployed is not None:
        try:
            best, rival = _accuracy(deployed, packed, config.classes), "the deployed model"
        except EndpointError as error:
            note = f"; the deployed model can't be compared with: {error}"
    ahead, margin = _validation_accuracy(winner) - best, config.gate.margin
    text = f"validation accuracy {ahead:+.3f} beside {rival} (at least {margin:+.3f}{note})"
    findings.add(ahead >= margin, text)


def _accuracy(endpoint: Endpoint, packed: packed_data.Packed, classes: Sequence[str]) -> float:
    rows = packed.split("validation")
    parts = [
        endpoint.classify(packed.scans[rows[start : start + BATCH]]).probabilities
        for start in range(0, len(rows), BATCH)
    ]
    predicted = np.concatenate(parts)  # (N, K)
    if predicted.shape[1] != len(classes):
        raise EndpointError(f"it tells {predicted.shape[1]} classes apart, this run {len(classes)}")
    return float((predicted.argmax(axis=1) == packed.labels(classes)[rows]).mean())


def _validation_accuracy(model: Path) -> float:
    """Of a trained model's own folder."""
    predictions = Predictions.load(model / "validation.csv")
    return float((predictions.logits.argmax(axis=1) == predictions.labels).mean())


def _bounds(
    findings: Findings, test: Mapping[str, Any], at_least: Mapping[str, float], at_most: Mapping[str, float]
) -> None:
    """Figures on the test split; one that isn't there, or is undefined for this split, is not met."""
    for name, bound in at_least.items():
        found = test.get(name)
        findings.add(
            found is not None and found >= bound, f"{name} {_told(found)} on the test split (at least {bound})"
        )
    for name, bound in at_most.items():
        found = test.get(name)
        findings.add(found is not None and found <= bound, f"{name} {_told(found)} on the test split (at most {bound})")


def _flags_the_foreign(findings: Findings, config: Config, packed: packed_data.Packed) -> None:
    """The detector that the bundle will carry: quiet on test scans, loud on what is no chest in the right pose."""
    rate, bounds = config.export.false_alarm_rate, config.gate
    train, validation, test = (packed.scans[packed.split(split)] for split in packed_data.SPLITS)
    detector = novelty.fit(train, validation, rate)
    alarms = float((detector.scores(test) > 0).mean())
    text = f"{alarms:.1%} of the test scans flagged as out of distribution (at most {bounds.false_alarms:.1%})"
    findings.add(alarms <= bounds.false_alarms, text)
    seen = float((detector.scores(foreign(validation)) > 0).mean())
    findings.add(
        seen >= bounds.foreign_flagged,
        f"{seen:.1%} of inverted, upside-down, shuffled and blank scans flagged (at least {bounds.foreign_flagged:.1%})",
    )


def foreign(scans: np.ndarray) -> np.ndarray:
    """Stand-ins for what a model should refuse, made of known scans: ``uint8 (4 N, D, H, W)`` of ``(N, D, H, W)``."""
    shuffled = np.random.default_rng(0).permuted(scans.reshape(len(scans), -1), axis=1).reshape(scans.shape)
    return np.concatenate([255 - scans, scans[:, :, ::-1], shuffled, np.zeros_like(scans)])


def _told(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"
