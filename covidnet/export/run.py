"""The winner as a bundle, compared with torch on real batches before it is called done."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from covidnet import folder
from covidnet.config import Config
from covidnet.data import packed as packed_data
from covidnet.evaluation import calibration, novelty
from covidnet.evaluation.metrics import Predictions
from covidnet.export import bundle, card, onnx, precision, reference
from covidnet.models import saved

BATCHES = (1, 2, 5, 8)


def run(config: Config, dataset: Path, winner: Path, evaluated: Path, work: Path) -> dict[str, Any]:
    """Write `bundle/`, `parity.json` and `metrics.json` into ``work``.

    Raises:
        CovidnetError: the exported model and torch differ, or the bundle doesn't verify.
    """
    packed = packed_data.read(dataset)
    preprocess = json.loads((dataset / "preprocess.json").read_text())
    model, description = saved.load(winner)
    validation = Predictions.load(winner / "validation.csv")
    temperature = calibration.fit_temperature(validation.logits, validation.labels)
    known, held_out = (packed.scans[packed.split(split)] for split in ("train", "validation"))
    detector = novelty.fit(known, held_out, config.export.false_alarm_rate)
    genotype = description.genotype.to_dict() if description.genotype else description.to_dict()
    model_file = work / "model.onnx"
    onnx.export(
        model,
        model_file,
        size=description.size,
        channels=description.channels,
        temperature=temperature,
        metadata=bundle.metadata(description.classes, preprocess, genotype, temperature),
    )
    found = onnx.parity(model, model_file, batches(packed), channels=description.channels)
    folder.write_json(work / "parity.json", found)
    verdicts, int8 = precision.try_precisions(config.export.precisions, model_file, packed, description.classes)
    extras = {bundle.REFERENCE: reference.build(packed, validation, temperature).to_json()}
    extras |= {bundle.PRECISION: (json.dumps(verdicts, indent=2) + "\n").encode()} if verdicts else {}
    extras |= {bundle.INT8: int8} if int8 else {}
    training = json.loads((winner / "metrics.json").read_text())
    facts = _facts(config, packed, evaluated, description, training, temperature, verdicts)
    target = work / "bundle"
    if target.exists():  # of an interrupted run
        for file in target.iterdir():
            file.unlink()
    written = bundle.write(
        target,
        model=model_file,
        weights=winner / "model.safetensors",
        genotype=genotype,
        preprocess=preprocess,
        labels=description.classes,
        calibration=bundle.Calibration(temperature, detector),
        card=card.model_card(facts),
        extras=extras,
    )
    model_file.unlink()
    metrics = {
        "model": description.name,
        "bundle_version": written.version,
        "onnx_mib": written.model.stat().st_size / 2**20,
        "parity_max_abs_logits": found["max_abs_logits"],
        "parity_max_abs_cam": found["max_abs_cam"],
        "parity_argmax_equal": int(found["argmax_equal"]),
        "temperature": temperature,
        "novelty_threshold": detector.threshold,
    }
    metrics |= {f"{name}_accepted": int(verdict["accepted"]) for name, verdict in verdicts.items()}
    folder.write_json(work / "metrics.json", metrics)
    return metrics


def batches(packed: packed_data.Packed) -> list[np.ndarray]:
    """Validation scans as ``uint8 (B, 1, D, H, W)`` of several batch sizes."""
    scans = packed.scans[packed.split("validation")[: sum(BATCHES)]]
    parts = np.split(scans, np.cumsum(BATCHES)[:-1])
    return [np.ascontiguousarray(part[:, None]) for part in parts if len(part)]


def _facts(
    config: Config,
    packed: packed_data.Packed,
    evaluated: Path,
    description: saved.Description,
    training: dict[str, Any],
    temperature: float,
    verdicts: Mapping[str, Mapping[str, Any]],
) -> card.Facts:
    results = json.loads((evaluated / "results.json").read_text())
    patients = {split: len({packed.rows[i].patient_id for i in packed.split(split)}) for split in packed.count()}
    told = folder.provenance(evaluated)
    return card.Facts(
        name=description.name,
        classes=description.classes,
        size=description.size,
        parameters=training["parameters"],
        size_mib=training["size_mib"],
        macs=training["macs"],
        source=config.data.source,
        scans=packed.count(),
        patients=patients,
        metrics=results["metrics"][description.name],
        intervals=results["intervals"][description.name],
        confidence=told["parameters"]["evaluate"]["confidence"],
        temperature=temperature,
        false_alarm_rate=config.export.false_alarm_rate,
        precisions=verdicts,
        versions=told["versions"],
    )
