"""A finished bundle on other data: external validation, and the matrix of several bundles on several datasets.

    covidnet evaluate --bundle results/export/bundle --data other/dataset --out results/external

Runs from the bundle alone, without torch. Nothing is fitted on the other data: neither the temperature, nor a threshold.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from covidnet import folder
from covidnet.config import Evaluate
from covidnet.data import packed as packed_data
from covidnet.data.preprocess import Spec
from covidnet.errors import CovidnetError, UsageError
from covidnet.evaluation import bootstrap, calibration, subgroups
from covidnet.evaluation.metrics import Predictions, classification
from covidnet.export.bundle import Bundle
from covidnet.inference.engine import Engine, load

BATCH = 16


def validate(
    bundles: Sequence[Path], datasets: Sequence[Path], settings: Evaluate, out: Path, *, split: str, seed: int
) -> dict[str, Any]:
    """Every bundle on every dataset; writes `results.json`, `metrics.json`, `matrix.csv`, `matrix.md` and predictions.

    Args:
        datasets: packed ones, as `covidnet ingest` writes them.
        settings: of the intervals and the positive class.
        out: folder to write.
        split: ``test``, or ``all`` where the model has seen nothing of the dataset.

    Returns:
        Flat figures, by ``<bundle>.<dataset>.<metric>`` where there are several.

    Raises:
        UsageError: no bundle or no dataset, or a positive class that a bundle hasn't.
        CovidnetError: a dataset was prepared otherwise than for the bundle, has classes that it doesn't know, or no scan
            in the split.
    """
    if not bundles or not datasets or split not in ("test", "all"):
        raise UsageError(
            f"expected --bundle, --data and --split test or all; found {len(bundles)} bundles, {len(datasets)} datasets, "
            f"split {split!r}"
        )
    parameters = {"evaluate": settings.model_dump(mode="json"), "split": split, "seed": seed}
    inputs = {f"bundle {i}": path for i, path in enumerate(bundles)} | {f"data {i}": p for i, p in enumerate(datasets)}
    with folder.write(out, "external", parameters, inputs) as work:
        if work is None:
            told: dict[str, Any] = json.loads((out / "metrics.json").read_text())
            return told
        cells: list[dict[str, Any]] = []
        for path in bundles:
            bundle = Bundle.load(path)
            engine = load(bundle)
            for dataset in datasets:
                found, predictions = _cell(bundle, engine, dataset, settings, split, seed)
                predictions.save(work / f"predictions-{len(cells)}.csv")
                cells.append(found)
        _write_matrix(work, cells)
        folder.write_json(work / "results.json", {"split": split, "cells": cells})
        flat = _flat(cells)
        folder.write_json(work / "metrics.json", flat)
    return flat


def predict_packed(
    bundle: Bundle, engine: Engine, packed: packed_data.Packed, chosen: np.ndarray
) -> tuple[Predictions, np.ndarray]:
    """What a bundle says of packed scans, and the novelty score of each, ``(N,)``."""
    scans = packed.scans[chosen]
    parts = [engine.run(np.ascontiguousarray(scans[i : i + BATCH, None])).logits for i in range(0, len(scans), BATCH)]
    rows = [packed.rows[i] for i in chosen]
    predictions = Predictions(
        scan_ids=tuple(row.scan_id for row in rows),
        patients=tuple(row.patient_id for row in rows),
        labels=packed.labels(bundle.labels)[chosen],
        logits=np.concatenate(parts),
        classes=bundle.labels,
    )
    return predictions, bundle.calibration.novelty.scores(scans)


def _cell(
    bundle: Bundle, engine: Engine, dataset: Path, settings: Evaluate, split: str, seed: int
) -> tuple[dict[str, Any], Predictions]:
    if settings.positive not in bundle.labels:
        raise UsageError(
            f"evaluate.positive is {settings.positive!r}, which is not a class of the bundle ({', '.join(bundle.labels)}); "
            "choose one with -S evaluate.positive=..."
        )
    packed = packed_data.read(dataset)
    _require_same_preparation(bundle, dataset)
    chosen = np.arange(len(packed.rows)) if split == "all" else packed.split(split)
    if not len(chosen):
        raise CovidnetError(
            f"{dataset} has no scan in its {split} split; choose `--split all` if none trained the model"
        )
    predictions, novelty = predict_packed(bundle, engine, packed, chosen)
    temperature = bundle.calibration.temperature
    probabilities = predictions.probabilities(temperature)
    ranges = bootstrap.intervals(
        predictions,
        settings.positive,
        temperature=temperature,
        resamples=settings.bootstrap,
        confidence=settings.confidence,
        seed=seed,
    )
    columns = subgroups.read_columns(dataset / "manifest.csv", predictions.scan_ids)
    groups = subgroups.subgroups(
        predictions, columns, settings.positive,
        resamples=settings.bootstrap, confidence=settings.confidence, seed=seed,
    )  # fmt: skip
    cell: dict[str, Any] = folder.finite(
        {
            "bundle": bundle.version,
            "dataset": _name(dataset),
            "scans": len(predictions),
            "patients": len(set(predictions.patients)),
            "metrics": classification(predictions.labels, probabilities, bundle.labels, settings.positive),
            "intervals": ranges.values,
            "warnings": [*ranges.warnings, *_absent(predictions)],
            "ece": calibration.expected_calibration_error(predictions.labels, probabilities),
            "brier": calibration.brier(predictions.labels, probabilities),
            "flagged": float((novelty > 0).mean()),
            "subgroups": [asdict(group) for group in groups],
        }
    )
    return cell, predictions


def _require_same_preparation(bundle: Bundle, dataset: Path) -> None:
    """The scans must have been prepared as those that the bundle was trained on."""
    try:
        found = Spec.from_dict(json.loads((dataset / "preprocess.json").read_text()))
    except OSError:
        raise CovidnetError(
            f"{dataset / 'preprocess.json'} is missing; run `covidnet ingest` for this dataset"
        ) from None
    expected = Spec.from_dict(bundle.preprocess)
    if found != expected:
        raise CovidnetError(
            f"{dataset} was prepared by {found.to_dict()}, the bundle expects {expected.to_dict()}; ingest the dataset "
            "again with the bundle's data.size, data.window_hu and data.crop"
        )


def _absent(predictions: Predictions) -> list[str]:
    absent = [name for k, name in enumerate(predictions.classes) if not (predictions.labels == k).any()]
    return [f"no scan of class {', '.join(absent)}: figures that need it are undefined"] if absent else []


def _name(dataset: Path) -> str:
    """Folder above where the dataset's own is called ``dataset``, as under `results`."""
    resolved = dataset.resolve()
    return resolved.parent.name if resolved.name == "dataset" else resolved.name


def _write_matrix(work: Path, cells: Sequence[dict[str, Any]]) -> None:
    """One row per bundle and dataset, as CSV, and accuracy as a table of bundles by datasets."""
    shown = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "f1", "roc_auc")
    with (work / "matrix.csv").open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["bundle", "dataset", "scans", "patients", *shown, "ece", "flagged"])
        for cell in cells:
            figures = [cell["metrics"][name] for name in shown]
            writer.writerow(
                [*(cell[k] for k in ("bundle", "dataset", "scans", "patients")), *figures, cell["ece"], cell["flagged"]]
            )
    datasets = list(dict.fromkeys(cell["dataset"] for cell in cells))
    lines = ["| bundle | " + " | ".join(datasets) + " |", "|---" * (len(datasets) + 1) + "|"]
    for bundle in dict.fromkeys(cell["bundle"] for cell in cells):
        row = [_accuracy(cell) for cell in cells if cell["bundle"] == bundle]
        lines.append(f"| {bundle} | " + " | ".join(row) + " |")
    note = "\nAccuracy in percent with its interval by patients. Research use only, no output is a diagnosis.\n"
    (work / "matrix.md").write_text("\n".join(lines) + "\n" + note)


def _accuracy(cell: dict[str, Any]) -> str:
    interval = cell["intervals"]["accuracy"]
    text = f"{100 * cell['metrics']['accuracy']:.1f}"
    return f"{text} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else f"{text} (no interval)"


def _flat(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for cell in cells:
        prefix = "" if len(cells) == 1 else f"{cell['bundle']}.{cell['dataset']}."
        flat |= {
            f"{prefix}{name}": cell["metrics"][name] for name in ("accuracy", "balanced_accuracy", "f1", "roc_auc")
        }
        flat |= {f"{prefix}{name}": cell[name] for name in ("ece", "flagged", "scans")}
    return flat
