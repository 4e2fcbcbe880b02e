"""Curves of the winner as CSV, for `dvc plots` and whoever draws their own."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from covidnet.evaluation import calibration
from covidnet.evaluation.decisions import THRESHOLDS, net_benefit, risk_coverage
from covidnet.evaluation.metrics import Predictions


def write(plots: Path, test: Predictions, temperature: float, positive: str) -> None:
    """ROC, confusion, reliability, decision and risk-coverage data of the test split.

    Args:
        plots: folder to write into.
        temperature: of the probabilities.
        positive: class of the decision curve.
    """
    from sklearn.metrics import roc_curve

    plots.mkdir(exist_ok=True)
    p = test.probabilities(temperature)
    roc = [
        (name, x, y, min(float(t), 1.0))  # the first threshold is infinite: nobody is called positive
        for k, name in enumerate(test.classes)
        if 0 < (test.labels == k).sum() < len(test)  # without the class, or without another, there is no curve
        for x, y, t in zip(*roc_curve(test.labels == k, p[:, k]), strict=True)
    ]
    _write(plots / "roc.csv", ("class", "false_positive_rate", "sensitivity", "threshold"), roc)
    pairs = zip(test.labels, test.predicted, strict=True)
    _write(plots / "confusion.csv", ("actual", "predicted"), ((test.classes[a], test.classes[b]) for a, b in pairs))
    bins = [
        (when, *point)
        for when, probabilities in (("before", test.probabilities()), ("after", p))
        for points in [calibration.reliability(test.labels, probabilities)]
        for point in zip(points.confidence, points.accuracy, strict=True)
    ]
    _write(plots / "reliability.csv", ("scaling", "confidence", "accuracy"), bins)
    k = test.classes.index(positive)
    benefits = {"model": net_benefit(test.labels == k, p[:, k])}
    benefits["everybody"] = net_benefit(test.labels == k, np.ones(len(test)))
    benefit_rows = [(name, t, b) for name, all_ in benefits.items() for t, b in zip(THRESHOLDS, all_, strict=True)]
    _write(plots / "decision.csv", ("act_on", "threshold", "net_benefit"), benefit_rows)
    curve = risk_coverage(test.labels, p)
    _write(plots / "risk_coverage.csv", ("coverage", "risk"), zip(curve.coverage, curve.risk, strict=True))


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        for row in rows:
            writer.writerow([f"{value:.6f}" if isinstance(value, float) else value for value in row])
