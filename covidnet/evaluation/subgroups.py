"""Figures by subgroup: every column of the manifest that says something about a scan, large numbers in thirds."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from covidnet.errors import CovidnetError
from covidnet.evaluation.bootstrap import Interval, share_interval
from covidnet.evaluation.metrics import Predictions

IDENTIFYING = {"scan_id", "patient_id", "sha256", "path", "label", "split"}
MOST_GROUPS = 8  # a column with more values is cut into thirds where it is numeric, left out where it isn't


@dataclass(frozen=True, slots=True)
class Subgroup:
    """The scans that share a value of a column.

    Args:
        column: of the manifest.
        value: text; for numbers a range.
        scans: number of them.
        patients: of these scans.
        accuracy: share predicted rightly.
        accuracy_interval: None with fewer than ten patients.
        sensitivity: of the positive class; NaN where none of them has it.
        sensitivity_interval: None with fewer than ten patients of that class.
    """

    column: str
    value: str
    scans: int
    patients: int
    accuracy: float
    accuracy_interval: Interval | None
    sensitivity: float
    sensitivity_interval: Interval | None


def read_columns(manifest: Path, scan_ids: Sequence[str]) -> dict[str, list[str]]:
    """All columns of a `manifest.csv` that don't identify a scan, in the order of the given scans.

    ``spacing`` (z;y;x) becomes ``slice distance, mm`` and ``pixel size, mm``; ``warnings`` says whether there is one.

    Raises:
        CovidnetError: a scan is not in the manifest.
    """
    with manifest.open(newline="") as stream:
        rows = {row["scan_id"]: row for row in csv.DictReader(stream)}
    if missing := sum(scan not in rows for scan in scan_ids):
        raise CovidnetError(f"{manifest}: {missing} scans that were predicted are missing; ingest the dataset again")
    chosen = [rows[scan] for scan in scan_ids]
    columns = {name: [row[name] or "unknown" for row in chosen] for name in chosen[0] if name not in IDENTIFYING}
    if spacing := columns.pop("spacing", None):
        parts = [(*text.split(";"), "", "", "")[:3] for text in spacing]
        columns |= {"slice distance, mm": [p[0] for p in parts], "pixel size, mm": [p[2] for p in parts]}
    if "warnings" in columns:
        columns["warnings"] = ["none" if text == "unknown" else "some" for text in columns["warnings"]]
    return columns


def subgroups(
    predictions: Predictions,
    columns: Mapping[str, Sequence[str]],
    positive: str,
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> list[Subgroup]:
    """Accuracy and sensitivity for every value of every column that takes more than one.

    Args:
        columns: name to one text per scan.
        positive: class of the sensitivity.
        resamples: of the patients.
        confidence: of the intervals.
    """
    right = predictions.predicted == predictions.labels
    ill = predictions.labels == predictions.classes.index(positive)
    patients = np.asarray(predictions.patients)

    def share(members: np.ndarray) -> tuple[float, Interval | None]:
        if not members.any():
            return float("nan"), None
        return share_interval(right[members], patients[members], resamples, confidence, seed)

    found = []
    for column, texts in columns.items():
        for value, members in _groups(texts).items():
            counts = int(members.sum()), len(set(patients[members]))
            found.append(Subgroup(column, value, *counts, *share(members), *share(members & ill)))
    return found


def _groups(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Value to the members' mask; empty where the column has one value, or many that are no numbers."""
    values = np.asarray(texts)
    distinct = sorted(set(texts))
    if len(distinct) == 1:
        return {}
    if len(distinct) <= MOST_GROUPS:
        return {value: values == value for value in distinct}
    numbers = np.array([_number(text) for text in texts])
    if not np.isfinite(numbers).any() or len({text for text in distinct if np.isnan(_number(text))}) > 1:
        return {}
    known = np.isfinite(numbers)
    edges = np.unique(np.quantile(numbers[known], (0, 1 / 3, 2 / 3, 1)))
    group = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, len(edges) - 2)
    found = {
        f"{numbers[known & (group == k)].min():.4g} to {numbers[known & (group == k)].max():.4g}": known & (group == k)
        for k in range(len(edges) - 1)
        if (known & (group == k)).any()
    }
    return found | ({"unknown": ~known} if not known.all() else {})


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
