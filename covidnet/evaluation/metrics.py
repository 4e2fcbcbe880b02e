"""Classification metrics of a model's predictions, for one set of scans or for thousands of resamples at once.

One implementation serves both: every figure is computed from scan weights. A resample is a row of weights that counts
how often each scan was drawn; the figures of the set itself are those of weight one. The tests hold each figure to
scikit-learn's at 1e-9.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax

from covidnet.errors import CovidnetError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_LOGIT = "logit_"


@dataclass(frozen=True, slots=True)
class Predictions:
    """What one model says of one set of scans.

    Args:
        scan_ids: unique per scan.
        patients: patient of each scan; the unit of resampling.
        labels: ``int64 (N,)``, index into ``classes``.
        logits: ``float64 (N, K)``.
        classes: names, in the order of the logits.

    Raises:
        CovidnetError: lengths differ, a scan occurs twice or has no patient, a label is outside of the classes, or logits
            are not finite.
    """

    scan_ids: tuple[str, ...]
    patients: tuple[str, ...]
    labels: IntArray
    logits: FloatArray
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", np.asarray(self.labels, dtype=np.int64))
        object.__setattr__(self, "logits", np.asarray(self.logits, dtype=np.float64))
        scans, outputs = len(self.scan_ids), len(self.classes)
        shapes = (len(self.patients), self.labels.shape, self.logits.shape)
        if scans == 0 or shapes != (scans, (scans,), (scans, outputs)):
            raise CovidnetError(
                f"predictions: expected at least one scan, each with a patient, a label and {outputs} logits; found "
                f"{scans} scans, {shapes[0]} patients, labels {shapes[1]}, logits {shapes[2]}"
            )
        if repeated := scans - len(set(self.scan_ids)):
            raise CovidnetError(f"predictions: {repeated} scans occur more than once; each scan is predicted once")
        if unnamed := sum(not patient for patient in self.patients):
            raise CovidnetError(
                f"predictions: {unnamed} of {scans} scans have no patient, by whom intervals are drawn; fill in patient_id, "
                "with the scan's own id where every scan is of another patient"
            )
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise CovidnetError(
                f"predictions: expected labels 0 to {outputs - 1}, indices of the classes {list(self.classes)}; "
                f"found {self.labels.min()} to {self.labels.max()}"
            )
        if broken := int((~np.isfinite(self.logits)).any(axis=1).sum()):
            raise CovidnetError(
                f"predictions: {broken} of {scans} scans have logits that are NaN or infinite: the model diverged or "
                "its input is broken; train again with a lower training.lr"
            )

    def __len__(self) -> int:
        return len(self.scan_ids)

    @property
    def predicted(self) -> IntArray:
        """Class index with the largest logit, ``int64 (N,)``."""
        index: IntArray = self.logits.argmax(axis=1)
        return index

    def probabilities(self, temperature: float = 1.0) -> FloatArray:
        """Softmax of ``logits / temperature``, ``float64 (N, K)``."""
        scaled: FloatArray = softmax(self.logits / temperature, axis=1)
        return scaled

    def by_patient(self, temperature: float = 1.0) -> "Predictions":
        """One prediction per patient: the mean probability of the scans; its logarithm stands in for logits.

        Patients whose scans have different labels are left out: no single answer about them could be right.

        Raises:
            CovidnetError: there is no other patient.
        """
        index: dict[str, list[int]] = {}
        for i, patient in enumerate(self.patients):
            index.setdefault(patient, []).append(i)
        agreed = {patient: scans for patient, scans in index.items() if len(set(self.labels[scans])) == 1}
        if not agreed:
            raise CovidnetError("no patient's scans agree in their label; patient-level figures need one label each")
        means = np.stack([self.probabilities(temperature)[scans].mean(axis=0) for scans in agreed.values()])
        labels = np.array([self.labels[scans[0]] for scans in agreed.values()])
        logits = np.log(np.maximum(means, np.finfo(float).tiny))
        return Predictions(tuple(agreed), tuple(agreed), labels, logits, self.classes)

    def save(self, path: Path) -> None:
        """Write CSV: ``scan_id, patient_id, label`` (class name), ``logit_<class>`` per class, to full precision."""
        with path.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["scan_id", "patient_id", "label", *(_LOGIT + name for name in self.classes)])
            rows = zip(self.scan_ids, self.patients, self.labels, self.logits.tolist(), strict=True)
            for scan, patient, label, logits in rows:
                writer.writerow([scan, patient, self.classes[label], *(repr(value) for value in logits)])

    @classmethod
    def load(cls, path: Path) -> "Predictions":
        """Read what `save` wrote.

        Raises:
            CovidnetError: the file is missing, not of this form, or has values that make no valid predictions.
        """
        try:
            with path.open(newline="") as stream:
                header, *rows = list(csv.reader(stream))
            classes = tuple(name.removeprefix(_LOGIT) for name in header[3:])
            if header != ["scan_id", "patient_id", "label", *(_LOGIT + name for name in classes)]:
                raise ValueError(f"found columns {header}")
            if ragged := sum(len(row) != len(header) for row in rows):
                raise ValueError(f"{ragged} rows have another number of columns than the header")
            if unknown := sum(row[2] not in classes for row in rows):
                raise ValueError(f"{unknown} labels are not among the classes {list(classes)}")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise CovidnetError(
                f"{path}: expected predictions with columns scan_id, patient_id, label, logit_<class>...: {reason}"
            ) from None
        labels = np.array([classes.index(row[2]) for row in rows], dtype=np.int64)
        logits = np.array([[_number(value) for value in row[3:]] for row in rows], dtype=np.float64)
        return cls(tuple(row[0] for row in rows), tuple(row[1] for row in rows), labels, logits, classes)


def classification(
    labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str], positive: str
) -> dict[str, float]:
    """All figures of one set of scans, by flat names.

    ``accuracy``, ``balanced_accuracy``, ``kappa`` (Cohen), then ``roc_auc``, ``pr_auc`` (average precision),
    ``precision``, ``sensitivity``, ``specificity`` and ``f1`` as the paper gives them: of the positive class where
    there are two classes, else the mean over classes, each against the rest (He et al., AAAI 2021, §4). Each of these
    six also as ``<name>_macro`` and ``<name>_<class>``. ``sensitivity_at_90_specificity`` and ``..._95_...`` are the
    positive class's: the best sensitivity of any threshold that keeps to that specificity.

    An undefined figure is NaN, never 0: sensitivity of a class that doesn't occur, precision of one never predicted,
    and any mean over such a class.

    Args:
        labels: ``int (N,)``, class indices.
        probabilities: ``float (N, K)``.
        classes: K names.
        positive: the class of the binary figures.
    """
    weights = np.ones((1, len(np.asarray(labels))))
    return {k: float(v[0]) for k, v in weighted(labels, probabilities, classes, positive, weights).items()}


def weighted(
    labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str], positive: str, weights: FloatArray
) -> dict[str, FloatArray]:
    """The figures of `classification` for each row of scan weights ``(R, N)``; values are ``float64 (R,)``."""
    y, p = np.asarray(labels, dtype=np.int64), np.asarray(probabilities, dtype=np.float64)
    index = list(classes).index(positive)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0/0 is the NaN that stands for undefined
        counts = _confusion(y, p.argmax(axis=1), len(classes), weights)
        per_class = _per_class(counts)
        curves = [_Curve(y == k, p[:, k], weights) for k in range(len(classes))]
        per_class["roc_auc"] = np.stack([curve.roc_auc() for curve in curves], axis=1)
        per_class["pr_auc"] = np.stack([curve.average_precision() for curve in curves], axis=1)
        figures = _overall(counts, per_class["sensitivity"])
        for name, values in per_class.items():  # (R, K)
            figures[name] = values[:, index] if len(classes) == 2 else values.mean(axis=1)
            figures[f"{name}_macro"] = values.mean(axis=1)
            figures.update({f"{name}_{label}": values[:, k] for k, label in enumerate(classes)})
        for percent in (90, 95):
            figures[f"sensitivity_at_{percent}_specificity"] = curves[index].sensitivity_at(percent / 100)
    return figures


def confusion(labels: ArrayLike, predicted: ArrayLike, classes: int) -> IntArray:
    """Counts ``int64 (K, K)``: row the true class, column the predicted one."""
    y, z = np.asarray(labels, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    counts: IntArray = np.bincount(y * classes + z, minlength=classes * classes).reshape(classes, classes)
    return counts


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan  # counted and refused with the other broken logits; the text itself might identify a patient


def _confusion(labels: IntArray, predicted: IntArray, classes: int, weights: FloatArray) -> FloatArray:
    cells = np.eye(classes * classes)[labels * classes + predicted]  # (N, K*K)
    counts: FloatArray = (weights @ cells).reshape(-1, classes, classes)  # (R, true, predicted)
    return counts


def _overall(counts: FloatArray, sensitivity: FloatArray) -> dict[str, FloatArray]:
    """Figures of the whole confusion matrix ``(R, K, K)``."""
    total = counts.sum(axis=(1, 2))
    accuracy = np.trace(counts, axis1=1, axis2=2) / total
    chance = (counts.sum(axis=1) * counts.sum(axis=2)).sum(axis=1) / total**2
    kappa = (accuracy - chance) / (1 - chance)
    return {"accuracy": accuracy, "balanced_accuracy": sensitivity.mean(axis=1), "kappa": kappa}


def _per_class(counts: FloatArray) -> dict[str, FloatArray]:
    """Figures of each class against the rest, ``(R, K)``, from counts ``(R, K, K)``."""
    hits = np.diagonal(counts, axis1=1, axis2=2)  # (R, K)
    actual, called = counts.sum(axis=2), counts.sum(axis=1)
    others = counts.sum(axis=(1, 2))[:, None] - actual
    return {
        "precision": hits / called,
        "sensitivity": hits / actual,
        "specificity": (others - (called - hits)) / others,
        "f1": np.where(actual > 0, 2 * hits / (actual + called), np.nan),
    }


class _Curve:
    """One class against the rest: the weight of positives and negatives at or above each distinct score."""

    def __init__(self, target: NDArray[np.bool_], score: FloatArray, weights: FloatArray) -> None:
        order = np.argsort(-score, kind="stable")
        starts = np.flatnonzero(np.diff(score[order], prepend=np.inf))  # tied scores pass a threshold together
        mass = weights[:, order]
        self.positive = np.add.reduceat(mass * target[order], starts, axis=1)  # (R, distinct scores)
        self.true = np.cumsum(self.positive, axis=1)
        negative = np.add.reduceat(mass * ~target[order], starts, axis=1)
        self.false = np.cumsum(negative, axis=1)
        self.positives, self.negatives = self.true[:, -1], self.false[:, -1]
        self.middle = self.false - negative / 2

    def roc_auc(self) -> FloatArray:
        """Probability that a positive scores above a negative, ties counted half."""
        pairs: FloatArray = self.positives * self.negatives
        area: FloatArray = 1 - (self.positive * self.middle).sum(axis=1) / pairs
        return area

    def average_precision(self) -> FloatArray:
        """Precision averaged over steps in recall, without interpolation."""
        called = np.maximum(self.true + self.false, np.finfo(float).tiny)
        average: FloatArray = (self.positive * self.true / called).sum(axis=1) / self.positives
        return average

    def sensitivity_at(self, specificity: float) -> FloatArray:
        """The largest sensitivity of the thresholds whose specificity is at least the given one; 0 where none is."""
        kept = self.false <= (1 - specificity) * self.negatives[:, None] + 1e-9
        best = np.where(kept, self.true, 0.0).max(axis=1) / self.positives
        return np.where(self.negatives > 0, best, np.nan)
