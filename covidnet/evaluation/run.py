"""The one reading of the test split: winner by validation, figures with intervals, explanations, report."""

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from covidnet import folder
from covidnet.config import Config
from covidnet.data import packed as packed_data
from covidnet.data.audit import findings_of
from covidnet.evaluation import (
    bootstrap,
    calibration,
    checklists,
    context,
    curves,
    decisions,
    explanations,
    metrics,
    novelty,
    seal,
    subgroups,
)
from covidnet.evaluation.candidates import Candidate, choose, metrics_of, predict, title, volumes_of
from covidnet.evaluation.context import Comparison, Dataset, Foreign, ReportContext, SearchResult
from covidnet.evaluation.report import render, summary
from covidnet.models.blocks import Classifier
from covidnet.models.covidnet3d import Genotype
from covidnet.progress import progress

REPORTED = (
    "accuracy",
    "balanced_accuracy",
    "precision",
    "sensitivity",
    "specificity",
    "f1",
    "roc_auc",
    "pr_auc",
    "kappa",
)


def run(
    config: Config, dataset: Path, candidates: Sequence[Path], device: torch.device, work: Path, log: Path
) -> dict[str, Any]:
    """Evaluate all candidates and write `results.json`, `metrics.json`, `report.html`, overlays and plot data.

    Args:
        candidates: folders of trained models.
        work: output folder.
        log: of the test split's uses, see `seal`.
    """
    packed = packed_data.read(dataset)
    digests = {f"{path.parent.name}/{path.name}": folder.digest(path) for path in candidates}
    uses, _ = seal.open_seal(log, folder.digest(dataset), digests)
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
    maps = explanations.explain(models[winner.name], test.scans)
    examples = explanations.draw_examples(maps, winner, packed, config)
    shown = ReportContext(
        candidates=[_row(c, figures[c.name], ranges[c.name].values, config) for c in judged],
        winner=title(winner.name),
        reason=reason,
        positive=config.evaluate.positive,
        confidence=config.evaluate.confidence,
        comparisons=comparisons,
        searches=_searches(candidates),
        examples=examples,
        localisations=_localisations(models, judged, winner, maps, test.scans, packed),
        sanity=explanations.sanity(models[winner.name], maps, winner.test.logits, test.scans, config.seed),
        foreign=_foreign(config, packed),
        by_patient=_by_patient(winner, config),
        subgroups=_subgroups(winner, dataset, config),
        uses=uses,
        audit=[finding.message for finding in findings_of(dataset)],
        dataset=_dataset(config, dataset, packed),
        provenance={
            "versions": folder.versions(),
            "git_revision": folder.git_revision() or "unknown",
            "parameters": config.model_dump(mode="json"),
        },
        warnings=[
            *_budget_note(config),
            *_cutmix_note(config),
            *_use_note(uses),
            *(f"{title(winner.name)}: {warning}" for warning in ranges[winner.name].warnings),
        ],
        notes=[f"{title(c.name)}: {w}" for c in judged if c is not winner for w in ranges[c.name].warnings],
    )
    (work / "report.html").write_text(render(shown))
    (work / "summary.md").write_text(summary(shown))
    (work / "overlays").mkdir(exist_ok=True)
    for number, example in enumerate(examples, start=1):
        (work / "overlays" / f"{number:02d}-{'right' if example.correct else 'wrong'}.png").write_bytes(example.png)
    for c in judged:
        c.test.save(work / f"test-{c.name}.csv")
    curves.write(work / "plots", winner.test, winner.temperature, config.evaluate.positive)
    checklists.write(work, shown)
    results = {
        "winner": {"name": winner.name, "folder": winner.folder, "reason": reason, "temperature": winner.temperature},
        "metrics": figures,
        "intervals": {name: found.values for name, found in ranges.items()},
        "by_patient": shown.by_patient,
        "comparisons": [asdict(comparison) for comparison in comparisons],
        "calibration": _calibration(winner),
        "abstention": _abstention(winner, shown.foreign),
        "localisation": [asdict(found) for found in shown.localisations],
        "sanity": asdict(shown.sanity) if shown.sanity else None,
        "subgroups": [asdict(group) for group in shown.subgroups],
        "test_uses": [asdict(use) for use in uses],
    }
    flat = _flat(judged, figures, results, shown)
    folder.write_json(work / "results.json", folder.finite(results))
    folder.write_json(work / "metrics.json", folder.finite(flat))
    return {"winner": winner.name, "reason": reason, **folder.finite(flat)}


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


def _flat(
    judged: Sequence[Candidate], figures: Mapping[str, Mapping[str, float]], results: Any, shown: ReportContext
) -> dict[str, float]:
    """What `dvc metrics` shows."""
    flat = {f"{c.name}.{metric}": figures[c.name][metric] for c in judged for metric in REPORTED}
    flat |= {name: results["calibration"][name] for name in ("ece_before", "ece_after", "brier_after")}
    flat |= {"aurc": results["abstention"]["aurc"], "foreign.false_alarms": results["abstention"]["false_alarms"]}
    if shown.localisations:
        ours = shown.localisations[0]
        flat |= {"cam.hit_rate": ours.hit_rate, "cam.centre_hit_rate": ours.centre_hit_rate}
    return flat


def _localisations(
    models: Mapping[str, Classifier],
    judged: Sequence[Candidate],
    winner: Candidate,
    maps: np.ndarray,
    scans: torch.Tensor,
    packed: packed_data.Packed,
) -> list[context.Localisation]:
    """The winner's maps, all and by class, and Grad-CAM of the best baseline (on validation) beside them."""
    baselines = [c for c in judged if c.folder.startswith("baseline") and c is not winner]
    found = explanations.localise(maps, winner, packed)
    if baselines:
        best = max(baselines, key=lambda c: float((c.validation.predicted == c.validation.labels).mean()))
        by_gradient = explanations.localise_by_gradient(models[best.name], best, scans, packed, title(best.name))
        found += [by_gradient] if by_gradient else []
    return found


def _row(
    c: Candidate, figures: dict[str, float], ranges: dict[str, bootstrap.Interval | None], config: Config
) -> context.Candidate:
    return context.Candidate(
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


def _abstention(winner: Candidate, foreign: Foreign | None) -> dict[str, float]:
    curve = decisions.risk_coverage(winner.test.labels, winner.test.probabilities(winner.temperature))
    return {
        "aurc": curve.area,
        **{f"risk_at_{percent}_coverage": curve.risk_at(percent / 100) for percent in (70, 80, 90, 100)},
        "stated_false_alarms": foreign.stated_rate if foreign else math.nan,
        "false_alarms": foreign.flagged if foreign else math.nan,
    }


def _foreign(config: Config, packed: packed_data.Packed) -> Foreign | None:
    """The bundle's out-of-distribution flag on the test scans; None with too few scans to set it."""
    train, validation, test = (packed.scans[packed.split(split)] for split in packed_data.SPLITS)
    if len(train) < 2 * novelty.FOLDS or not len(validation):
        return None
    detector = novelty.fit(train, validation, config.export.false_alarm_rate)
    return Foreign(config.export.false_alarm_rate, float((detector.scores(test) > 0).mean()))


def _by_patient(winner: Candidate, config: Config) -> dict[str, float]:
    """Figures per patient; empty where each has one scan, and they would repeat the figures per scan."""
    if len(set(winner.test.patients)) == len(winner.test):
        return {}
    grouped = winner.test.by_patient(winner.temperature)
    return metrics.classification(grouped.labels, grouped.probabilities(), grouped.classes, config.evaluate.positive)


def _subgroups(winner: Candidate, dataset: Path, config: Config) -> list[subgroups.Subgroup]:
    settings = config.evaluate
    columns = subgroups.read_columns(dataset / "manifest.csv", winner.test.scan_ids)
    return subgroups.subgroups(
        winner.test,
        columns,
        settings.positive,
        resamples=settings.bootstrap,
        confidence=settings.confidence,
        seed=config.seed,
    )


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
        f"Every model was trained with the same compute, {settings.tmacs:g} trillion forward multiply-accumulates, not for "
        "the same number of passes: a network that costs more per scan saw fewer scans. The column of scans seen says how "
        "many. The profile for the paper trains all models for equal epochs."
    ]


def _cutmix_note(config: Config) -> list[str]:
    if not config.training.cutmix:
        return []
    return [
        "The found networks were trained with CutMix (a box of another scan, and each part answers for its own label), "
        "which costs some accuracy and makes their maps point at the disease; the baselines were trained without."
    ]


def _use_note(uses: Sequence[seal.Use]) -> list[str]:
    if len(uses) < 2:
        return []
    return [
        f"This test split has been read with {len(uses)} sets of models. Whoever chose this set after seeing the figures "
        "of an earlier one has chosen on the test split, and the figures flatter: see the list of its uses below."
    ]
