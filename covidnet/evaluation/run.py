"""The one reading of the test split: winner by validation, figures with intervals, explanations, report."""

import csv
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from covidnet import folder
from covidnet.config import Config
from covidnet.data import packed as packed_data
from covidnet.evaluation import bootstrap, calibration, cam, metrics, report
from covidnet.evaluation.metrics import Predictions
from covidnet.evaluation.report import Comparison, Dataset, Example, Localisation, ReportContext, SearchResult, render
from covidnet.models import saved
from covidnet.models.blocks import Classifier
from covidnet.models.covidnet3d import Genotype
from covidnet.progress import progress
from covidnet.training import loop
from covidnet.training.volumes import Volumes, select

REPORTED = ("accuracy", "balanced_accuracy", "precision", "sensitivity", "specificity", "f1", "roc_auc")
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
            parts.append(model.explain(loop.as_input(model, part))[1].float().cpu())
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


def run(config: Config, dataset: Path, candidates: Sequence[Path], device: torch.device, work: Path) -> dict[str, Any]:
    """Evaluate all candidates and write `results.json`, `metrics.json`, `report.html`, overlays and plot data.

    Args:
        candidates: folders of trained models.
        work: output folder.
    """
    packed = packed_data.read(dataset)
    judged: list[Candidate] = []
    models: dict[str, Classifier] = {}
    with progress("evaluate", len(candidates)) as advance:
        for path in candidates:
            candidate, models[candidate.name] = predict(config, packed, path, device)
            judged.append(candidate)
            advance(note=candidate.name)
    winner, reason = choose(judged, config)
    figures = {c.name: metrics_of(c.test, config, c.temperature) for c in judged}
    ranges = {c.name: _intervals(c, config) for c in judged}
    comparisons = compare(winner, [c for c in judged if c is not winner], config)
    test = volumes_of(config, packed, "test", device)
    maps = explain(models[winner.name], test.scans)
    localisation = localise(maps, winner, packed)
    examples = draw_examples(maps, winner, packed, config)
    context = ReportContext(
        candidates=[_row(c, figures[c.name], ranges[c.name].values, config) for c in judged],
        winner=title(winner.name),
        reason=reason,
        positive=config.evaluate.positive,
        confidence=config.evaluate.confidence,
        comparisons=comparisons,
        searches=_searches(candidates),
        examples=examples,
        localisation=localisation,
        dataset=_dataset(config, dataset, packed),
        provenance={
            "versions": folder.versions(),
            "git_revision": folder.git_revision() or "unknown",
            "parameters": config.model_dump(mode="json"),
        },
        warnings=[*_budget_note(config), *(f"{title(name)}: {w}" for name, r in ranges.items() for w in r.warnings)],
    )
    (work / "report.html").write_text(render(context))
    (work / "overlays").mkdir(exist_ok=True)
    for number, example in enumerate(examples, start=1):
        (work / "overlays" / f"{number:02d}-{'right' if example.correct else 'wrong'}.png").write_bytes(example.png)
    for c in judged:
        c.test.save(work / f"test-{c.name}.csv")
    write_curves(work, winner)
    flat = {f"{c.name}.{metric}": figures[c.name][metric] for c in judged for metric in REPORTED}
    if localisation is not None:
        flat |= {"cam.hit_rate": localisation.hit_rate, "cam.centre_hit_rate": localisation.centre_hit_rate}
    results = {
        "winner": {"name": winner.name, "folder": winner.folder, "reason": reason, "temperature": winner.temperature},
        "metrics": figures,
        "intervals": {name: found.values for name, found in ranges.items()},
        "comparisons": [asdict(comparison) for comparison in comparisons],
        "calibration": _calibration(winner),
    }
    folder.write_json(work / "results.json", finite(results))
    folder.write_json(work / "metrics.json", finite(flat))
    return {"winner": winner.name, "reason": reason, **finite(flat)}


def compare(winner: Candidate, others: Sequence[Candidate], config: Config) -> list[Comparison]:
    """The winner's test accuracy against each other model's, p-values corrected over all of them."""
    settings = config.evaluate
    paired = [
        bootstrap.paired_difference(
            winner.test, c.test, resamples=settings.bootstrap, confidence=settings.confidence, seed=config.seed
        )
        for c in others
    ]
    adjusted = bootstrap.holm([result.p_value for result in paired])
    return [
        Comparison(title(c.name), result, p, bootstrap.mcnemar(winner.test, c.test))
        for c, result, p in zip(others, paired, adjusted, strict=True)
    ]


def localise(maps: np.ndarray, winner: Candidate, packed: packed_data.Packed) -> Localisation | None:
    """How well the maps of right predictions point at the lesions; None where the dataset has no masks.

    Args:
        maps: ``(N, K, d, h, w)`` of the test split.
    """
    if packed.lesions is None:
        return None
    masks = packed.lesions[packed.split("test")].astype(bool)
    right = winner.test.predicted == winner.test.labels
    chosen = [i for i in range(len(masks)) if right[i] and masks[i].any()]
    if not chosen:
        return None
    grid = maps.shape[2:]
    prior = cam.centre_prior(masks.shape[1:])
    hits, centre_hits, inside, centre_inside = [], [], [], []
    for i in chosen:
        heat = maps[i, winner.test.labels[i]]
        hits.append(cam.lesion_hit(heat, masks[i]))
        centre_hits.append(cam.lesion_hit(prior, masks[i], grid))
        inside.append(cam.energy_inside(cam.upsample(heat, masks.shape[1:]), masks[i]))
        centre_inside.append(cam.energy_inside(prior, masks[i]))
    return Localisation(
        scans=len(chosen),
        hit_rate=float(np.mean(hits)),
        centre_hit_rate=float(np.mean(centre_hits)),
        energy_inside=float(np.nanmean(inside)),
        centre_energy_inside=float(np.nanmean(centre_inside)),
        grid=(grid[0], grid[1], grid[2]),
    )


def draw_examples(maps: np.ndarray, winner: Candidate, packed: packed_data.Packed, config: Config) -> list[Example]:
    """Overlays of the surest right and the surest wrong predictions, classes taking turns."""
    probabilities = winner.test.probabilities(winner.temperature)
    predicted, labels = winner.test.predicted, winner.test.labels
    examples = []
    for correct in (True, False):
        members = np.flatnonzero((predicted == labels) == correct)
        for i in _taking_turns(members, labels, probabilities.max(axis=1))[: config.evaluate.overlays]:
            index = packed.split("test")[i]
            name, truth = config.classes[predicted[i]], config.classes[labels[i]]
            text = f"Predicted {name} ({probabilities[i].max():.2f}), true label {truth}"
            heat = cam.upsample(maps[i, predicted[i]], packed.scans.shape[1:])
            mask = None if packed.lesions is None else packed.lesions[index].astype(bool)
            image = cam.montage(packed.scans[index], heat, text, label=name, mask=mask)
            examples.append(Example(text, cam.png(image), correct))
    return examples


def _taking_turns(members: np.ndarray, labels: np.ndarray, confidence: np.ndarray) -> list[int]:
    """Members in rounds over the true classes, the surest of each class first."""
    rank: dict[int, int] = {}
    for label in np.unique(labels[members]):
        of_class = members[labels[members] == label]
        rank |= {int(i): place for place, i in enumerate(of_class[np.argsort(-confidence[of_class])])}
    return sorted(rank, key=lambda i: (rank[i], labels[i]))


def title(name: str) -> str:
    """A model's name as the paper prints it."""
    return TITLES.get(name, name)


def _row(
    c: Candidate, figures: dict[str, float], ranges: dict[str, bootstrap.Interval | None], config: Config
) -> report.Candidate:
    return report.Candidate(
        name=title(c.name),
        baseline=c.folder.startswith("baseline"),
        size_mib=c.training["size_mib"],
        parameters=c.training["parameters"],
        macs=c.training["macs"],
        scans_seen=c.training["scans_seen"],
        epochs=c.training["epochs"],
        validation=metrics_of(c.validation, config, c.temperature),
        test=figures,
        intervals=ranges,
        predictions=c.test,
        temperature=c.temperature,
    )


def _intervals(c: Candidate, config: Config) -> bootstrap.Intervals:
    settings = config.evaluate
    return bootstrap.intervals(
        c.test,
        settings.positive,
        temperature=c.temperature,
        resamples=settings.bootstrap,
        confidence=settings.confidence,
        seed=config.seed,
    )


def _calibration(winner: Candidate) -> dict[str, float]:
    before, after = winner.test.probabilities(), winner.test.probabilities(winner.temperature)
    labels = winner.test.labels
    return {
        "temperature": winner.temperature,
        "ece_before": calibration.expected_calibration_error(labels, before),
        "ece_after": calibration.expected_calibration_error(labels, after),
        "brier_before": calibration.brier(labels, before),
        "brier_after": calibration.brier(labels, after),
    }


def _searches(candidates: Sequence[Path]) -> list[SearchResult]:
    """What the searches behind the retrained candidates said."""
    found = []
    for path in candidates:
        searched = path.parent.parent / "search" / path.name
        if path.parent.name != "retrain" or not folder.is_complete(searched):
            continue
        genotype = Genotype.load(searched / "genotype.json")
        told = json.loads((searched / "search.json").read_text())
        summary = json.loads((searched / "metrics.json").read_text())
        found.append(
            SearchResult(
                genotype={
                    "variant": genotype.variant,
                    "widths": genotype.space.widths,
                    "strides": genotype.space.strides,
                    "blocks": genotype.blocks,
                },
                history=told["history"],
                chance=summary["chance"],
                found_accuracy=told["found"]["accuracy"],
                random_accuracies=[other["accuracy"] for other in told["random"]],
                warmup_accuracy=summary["warmup_accuracy"],
            )
        )
    return found


def _dataset(config: Config, path: Path, packed: packed_data.Packed) -> Dataset:
    with (path / "rejected.csv").open(newline="") as stream:
        rejected = Counter(row["reason"] for row in csv.DictReader(stream))
    facts = {
        "source": config.data.source,
        "volume": " x ".join(map(str, packed.scans.shape[1:])) + " voxels",
        "window": f"{config.data.window_hu[0]:.0f} to {config.data.window_hu[1]:.0f} HU",
    }
    if config.data.source == "phantom":
        facts["note"] = "synthetic scans: figures say how the method works, nothing about patients"
    return Dataset(
        facts=facts,
        scans=packed.count(),
        patients=packed.count(patients=True),
        rejected=rejected,
    )


def _budget_note(config: Config) -> list[str]:
    settings = config.training
    if settings.budget == "epochs":
        return []
    return [
        f"Every model was trained with the same compute, {settings.tmacs:g} x 10^12 forward multiply-accumulates, not for "
        "the same number of passes: a network that costs more per scan saw fewer scans. The column of scans seen says how "
        "many. Profile `paper` trains all models for equal epochs."
    ]
