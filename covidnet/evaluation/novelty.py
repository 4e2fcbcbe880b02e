"""Whether a scan looks like those that the network learned from: Mahalanobis distance of its coarse picture.

    detector = fit(train, validation, false_alarm_rate=0.05)
    detector.score(volume) > 0        # unlike the training data

The features are those of the prepared volume itself: mean and standard deviation of 4x2x4 cells and the roughness along
each axis. `python -m benchmarks.ood` compares them with the network's own: the energy of the logits ranks shuffled or
inverted scans *below* good ones, and the pooled last map can't tell an abdomen from a chest, since both were trained to
throw away all but the classes. So every engine, TorchServe included, flags the same scans. Needs numpy only to score.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from covidnet.errors import CovidnetError
from covidnet.evaluation.metrics import FloatArray

CELLS = (4, 2, 4)  # along (D, H, W): the order of the slices, front and back, both lungs
FEATURES = 2 * int(np.prod(CELLS)) + 3
FOLDS = 5
DIGITS = 6  # of the numbers in calibration.json


@dataclass(frozen=True, slots=True)
class Detector:
    """Tells scans unlike the training data.

    Args:
        mean: of the features, ``(F,)``.
        whitening: ``(F, F)``; the distance of a scan is the norm of ``whitening @ (features - mean)``.
        threshold: distance above which a scan is flagged.
        false_alarm_rate: share of scans like the training data that lie above it.
    """

    mean: FloatArray
    whitening: FloatArray
    threshold: float
    false_alarm_rate: float

    def score(self, volume: np.ndarray) -> float:
        """Logarithm of the distance in units of the threshold: flagged where above 0.

        Args:
            volume: ``uint8 (D, H, W)``, prepared as the training data.
        """
        return float(self.scores(volume[None])[0])

    def scores(self, volumes: np.ndarray) -> FloatArray:
        """As `score`, ``(N,)`` of ``uint8 (N, D, H, W)``."""
        distances = np.linalg.norm((features(volumes) - self.mean) @ self.whitening.T, axis=1)
        logarithms: FloatArray = np.log(np.maximum(distances, 1e-12) / self.threshold)
        return logarithms

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `from_dict` reads them back."""
        return {**asdict(self), "mean": self.mean.tolist(), "whitening": self.whitening.tolist()}

    @classmethod
    def from_dict(cls, tree: Any) -> "Detector":
        """Read what `to_dict` gave.

        Raises:
            CovidnetError: keys, shapes or values aren't those of a detector.
        """
        try:
            mean, whitening = (np.asarray(tree[name], dtype=np.float64) for name in ("mean", "whitening"))
            threshold, rate = float(tree["threshold"]), float(tree["false_alarm_rate"])
        except (KeyError, TypeError, ValueError) as error:
            raise CovidnetError(
                f"novelty: expected mean, whitening, threshold and false_alarm_rate ({type(error).__name__})"
            ) from None
        finite = np.isfinite(mean).all() and np.isfinite(whitening).all()
        shapes = mean.shape == (FEATURES,) and whitening.shape == (FEATURES, FEATURES)
        if not (shapes and finite and threshold > 0 and 0 < rate < 1 and len(tree) == 4):
            raise CovidnetError(
                f"novelty: expected {FEATURES} finite means, a whitening matrix of that size, a positive threshold and a "
                f"rate in 0..1; found shapes {mean.shape} and {whitening.shape}, threshold {threshold}, rate {rate}"
            )
        return cls(mean, whitening, threshold, rate)


def features(volumes: np.ndarray) -> FloatArray:
    """Mean and standard deviation of each cell, then the mean step along D, H and W, of ``uint8 (N, D, H, W)``.

    Returns:
        ``float64 (N, FEATURES)``, grey levels.
    """
    return np.stack([_features(volume) for volume in volumes])


def fit(train: np.ndarray, validation: np.ndarray, false_alarm_rate: float) -> Detector:
    """The detector of a dataset.

    Mean and covariance (shrunk after Ledoit and Wolf, 2004) come from the training split. The threshold is the quantile
    of the validation scans' distances and of the training scans', each measured by a detector that was fitted without
    it: the network has no part in the features, so scans that it has seen are as good as those it hasn't.

    Args:
        train: ``uint8 (N, D, H, W)``.
        validation: likewise; never test scans.
        false_alarm_rate: share of such scans that may be flagged, 0..1.

    Raises:
        CovidnetError: fewer than ten training scans, training scans that are all alike, or no validation scan.
    """
    if len(train) < 2 * FOLDS or not len(validation):
        raise CovidnetError(
            f"novelty: expected at least {2 * FOLDS} training scans and a validation scan, found {len(train)} and "
            f"{len(validation)}; ingest more scans"
        )
    known = features(train)
    folds = np.arange(len(known)) % FOLDS
    if any(not known[folds != k].std(axis=0).any() for k in range(FOLDS)):
        raise CovidnetError("novelty: the training scans are all alike, so nothing can be told apart from them")
    held_out = [_distances(known[folds == k], *_normal(known[folds != k])) for k in range(FOLDS)]
    mean, whitening = (np.array([float(f"{value:.{DIGITS}g}") for value in part.ravel()]).reshape(part.shape)
                       for part in _normal(known))  # fmt: skip
    distances = np.concatenate([*held_out, _distances(features(validation), mean, whitening)])
    threshold = float(np.quantile(distances, 1 - false_alarm_rate, method="inverted_cdf"))
    return Detector(mean, whitening, threshold, false_alarm_rate)


def _features(volume: np.ndarray) -> FloatArray:
    grey = volume.astype(np.float32)
    mean = _cells(grey)
    spread = np.sqrt(np.maximum(_cells(np.square(grey)) - mean**2, 0))
    return np.concatenate([mean.ravel(), spread.ravel(), _steps(volume)])


def _cells(values: np.ndarray) -> FloatArray:
    """Means of the `CELLS` of ``(D, H, W)``.

    Exact, and a fraction of the time of float64, which every request would pay: float32 has all whole numbers below 2^24,
    the sum of 258 squares of a grey level, and the product with ones and zeros along W leaves little to add up.
    """
    edges = [_edges(side, cells) for side, cells in zip(values.shape, CELLS, strict=True)]
    sizes = [np.diff(ends) for ends in edges]
    along_width = values @ np.repeat(np.eye(CELLS[2], dtype=np.float32), sizes[2], axis=0)  # (D, H, cells)
    sums = np.add.reduceat(along_width.astype(np.float64), edges[1][:-1], axis=1)
    return np.asarray(np.add.reduceat(sums, edges[0][:-1], axis=0) / np.einsum("d,h,w->dhw", *sizes))


def _edges(length: int, cells: int) -> np.ndarray:
    return np.linspace(0, length, cells + 1).round().astype(int)


def _steps(volume: np.ndarray) -> FloatArray:
    """Mean step between neighbours along D, H and W; in bytes, for the same reason."""
    means = []
    for axis in range(3):
        along = np.moveaxis(volume, axis, 0)
        steps = np.maximum(along[1:], along[:-1])
        steps -= np.minimum(along[1:], along[:-1])
        planes = np.moveaxis(steps, 0, axis)
        whole = np.uint16 if len(planes) <= 257 else np.uint32  # 257 steps of 255 are below 2^16
        means.append(planes.sum(axis=0, dtype=whole).sum(dtype=np.uint64) / steps.size)
    return np.array(means)


def _normal(known: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean, and the matrix that makes the features independent with unit variance."""
    from sklearn.covariance import LedoitWolf  # training only: prediction reads what was fitted

    scale = known.std(axis=0) + 1e-3  # grey levels: a cell that never varies must not weigh without end
    normal = LedoitWolf().fit((known - known.mean(axis=0)) / scale)
    factor = np.linalg.cholesky(normal.precision_)  # precision = factor @ factor.T
    return known.mean(axis=0), factor.T / scale


def _distances(known: FloatArray, mean: FloatArray, whitening: FloatArray) -> FloatArray:
    distances: FloatArray = np.linalg.norm((known - mean) @ whitening.T, axis=1)
    return distances
