"""Can the class be told without looking at a lung? Then the labels follow the scanner or the hospital.

A small model sees nothing of a scan but its spacing, its number of slices, its file format or its outermost voxels, and
predicts the class of patients it hasn't seen (five folds). DeGrave et al., Nature Machine Intelligence 3, 2021, show what
networks do with such shortcuts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covidnet.data.packed import Packed

FLAGGED_ABOVE = 0.65  # of the interval's lower end; 0.5 is chance
MIN_PATIENTS = 25  # per class: below, an AUC says nothing
MAX_SCANS = 5000  # sampled beyond: the interval is narrow enough
FOLDS, RESAMPLES = 5, 200


@dataclass(frozen=True, slots=True)
class Shortcut:
    """How well one kind of scan property tells the class.

    Args:
        source: what the trivial model saw.
        auc: ROC AUC of unseen patients, each class against the rest, averaged.
        low: lower end of its 95 % interval (patients resampled).
        high: upper end.
        flagged: ``low`` is above `FLAGGED_ABOVE`.
    """

    source: str
    auc: float
    low: float
    high: float
    flagged: bool


def find(dataset: Packed) -> tuple[Shortcut, ...]:
    """Measure every shortcut on a sample of the scans; empty where there are too few patients, or a single class."""
    patients: dict[str, set[str]] = {}
    for row in dataset.rows:
        patients.setdefault(row.label, set()).add(row.patient_id)
    usable = {label for label, members in patients.items() if len(members) >= MIN_PATIENTS}
    rows = np.array([i for i, row in enumerate(dataset.rows) if row.label in usable], np.int64)
    if len(usable) < 2:
        return ()
    chosen = np.sort(np.random.default_rng(0).permutation(rows)[:MAX_SCANS])
    sample = [dataset.rows[i] for i in chosen]
    formats = sorted({row.source for row in sample})
    properties = {
        "spacing": np.array([row.spacing_mm for row in sample]),
        "slice count": np.array([[row.slices] for row in sample], np.float64),
        "file format": np.array([[row.source == name for name in formats] for row in sample], np.float64),
        "border pixels": np.array([_border(dataset.scans[i]) for i in chosen]),
    }
    labels = np.array([row.label for row in sample])
    groups = np.unique([row.patient_id for row in sample], return_inverse=True)[1]
    return tuple(_measure(name, features, labels, groups) for name, features in properties.items())


def _measure(source: str, features: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> Shortcut:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    if np.ptp(features, axis=0).max() == 0:  # the same for all scans: nothing to tell a class by
        return Shortcut(source, 0.5, 0.5, 0.5, False)
    model = RandomForestClassifier(100, min_samples_leaf=5, max_depth=8, class_weight="balanced", random_state=0)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    scores = cross_val_predict(model, features, labels, groups=patients, cv=folds, method="predict_proba")
    classes, targets = np.unique(labels, return_inverse=True)
    rng = np.random.default_rng(0)
    scans_of = np.split(np.argsort(patients, kind="stable"), np.cumsum(np.bincount(patients))[:-1])
    resampled = []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([scans_of[i] for i in rng.integers(0, len(scans_of), len(scans_of))])
        if len(np.unique(targets[drawn])) == len(classes):
            resampled.append(_auc(targets[drawn], scores[drawn]))
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Shortcut(source, _auc(targets, scores), float(low), float(high), bool(low > FLAGGED_ABOVE))


def _auc(targets: np.ndarray, scores: np.ndarray) -> float:
    """Mean over classes of the Mann-Whitney AUC of each against the rest."""
    from scipy.stats import rankdata

    areas = []
    for label in range(scores.shape[1]):
        inside = targets == label
        ranks = rankdata(scores[:, label])
        positives, negatives = inside.sum(), (~inside).sum()
        areas.append((ranks[inside].sum() - positives * (positives + 1) / 2) / (positives * negatives))
    return float(np.mean(areas))


def _border(volume: np.ndarray) -> list[float]:
    """Mean and spread of the outermost voxels of each of the six faces, and the share that is black or white."""
    found: list[float] = []
    for axis in range(3):
        for end in (0, -1):
            face = np.take(volume, end, axis=axis)
            found += [float(face.mean()), float(face.std()), float((face == 0).mean()), float((face == 255).mean())]
    return found


def flags(found: Sequence[Shortcut]) -> list[str]:
    """A sentence for every shortcut over the threshold."""
    return [
        f"{item.source} alone predicts the class: AUC {item.auc:.2f} ({item.low:.2f} to {item.high:.2f}), flagged above "
        f"{FLAGGED_ABOVE}; a network may learn the scanner and not the disease"
        for item in found
        if item.flagged
    ]
