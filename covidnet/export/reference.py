"""What the training data look like, in the bundle's `reference.json`, so that serving can tell when its input changes.

The profile holds order statistics of each feature for itself and counts of predicted classes: no scan can be read
back from it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from covidnet.data.packed import Packed, Row
from covidnet.errors import CovidnetError
from covidnet.evaluation.calibration import energy
from covidnet.evaluation.metrics import Predictions

MOST_VALUES = 512  # per feature; more of them would only sharpen what the window's 200 scans blur
SAMPLED = 16  # slices and rows that `describe` looks at: a sample is enough for a distribution


@dataclass(frozen=True, slots=True)
class Feature:
    """One number per scan, over many scans.

    Args:
        scans: how many it was measured on.
        values: ascending, float64 ``(n,)``: all of them, or `MOST_VALUES` evenly spaced order statistics.
    """

    scans: int
    values: np.ndarray


@dataclass(frozen=True, slots=True)
class Reference:
    """Profile of the data that a model was made from.

    Args:
        features: of the training scans by name; ``confidence`` and ``energy`` of the validation scans.
        predictions: validation scans by predicted class.
    """

    features: Mapping[str, Feature]
    predictions: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        features = {
            name: {"scans": feature.scans, "values": feature.values.tolist()} for name, feature in self.features.items()
        }
        return {"features": features, "predictions": dict(self.predictions)}

    def to_json(self) -> bytes:
        """Content of `reference.json`."""
        return json.dumps(self.to_dict()).encode() + b"\n"

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "Reference":
        """Read what `to_dict` gave.

        Raises:
            CovidnetError: not of that form.
        """
        try:
            features = {
                str(name): Feature(int(found["scans"]), np.array(found["values"], np.float64))
                for name, found in tree["features"].items()
            }
            predictions = {str(name): int(count) for name, count in tree["predictions"].items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise CovidnetError("reference.json: expected features and predictions; export the bundle again") from None
        for name, feature in features.items():
            values = feature.values
            if values.ndim != 1 or not 1 <= len(values) <= feature.scans or not (np.diff(values) >= 0).all():
                raise CovidnetError(f"reference.json: {name}: expected ascending values; export the bundle again")
        return cls(features, predictions)


def describe(volume: np.ndarray) -> dict[str, float]:
    """Features of what the network sees, whichever way it came: ``volume_{mean,p05,p95,roughness}``, in grey levels.

    Args:
        volume: ``uint8 (D, H, W)``, prepared.
    """
    depth, height, _ = volume.shape
    sample = volume[:: -(-depth // SAMPLED), :: -(-height // SAMPLED)]
    share = np.cumsum(np.bincount(sample.ravel(), minlength=256)) / sample.size
    p05, p95 = np.searchsorted(share, (0.05, 0.95))
    steps = np.abs(sample[:, :, 1:].astype(np.int16) - sample[:, :, :-1])  # noise and edges between neighbours
    return {
        "volume_mean": float(255 - share[:-1].sum()),  # the sum over levels of the share above each
        "volume_p05": float(p05),
        "volume_p95": float(p95),
        "volume_roughness": float(steps.mean()),
    }


def of_prediction(confidence: float, score: float) -> dict[str, float]:
    """Features of an answer: probability of the predicted class, and energy."""
    return {"confidence": confidence, "energy": score}


def build(packed: Packed, validation: Predictions, temperature: float) -> Reference:
    """Profile of the training split's input and of the validation split's predictions.

    The training split's own predictions are surer of themselves than those for new scans, so they are no reference.

    Args:
        packed: the dataset that the model was trained on.
        validation: predictions of the exported model.
        temperature: its calibration.
    """
    columns: dict[str, list[float]] = {}
    for i in packed.split("train"):
        for name, value in {**geometry(packed.rows[i]), **describe(packed.scans[i])}.items():
            columns.setdefault(name, []).append(value)
    scores = energy(validation.logits, temperature)
    for probabilities, score in zip(validation.probabilities(temperature), scores, strict=True):
        for name, value in of_prediction(float(probabilities.max()), float(score)).items():
            columns.setdefault(name, []).append(value)
    counts = np.bincount(validation.predicted, minlength=len(validation.classes))
    predictions = dict(zip(validation.classes, counts.tolist(), strict=True))
    return Reference({name: profile(values) for name, values in columns.items()}, predictions)


def profile(values: Sequence[float]) -> Feature:
    """Order statistics of one feature, to 6 digits."""
    ascending = np.sort([float(f"{value:.6g}") for value in values])
    if len(ascending) > MOST_VALUES:
        ascending = np.quantile(ascending, (np.arange(MOST_VALUES) + 0.5) / MOST_VALUES, method="inverted_cdf")
    return Feature(len(values), ascending)


def geometry(row: Row) -> dict[str, float]:
    """Slices, and spacing where the source knows it; the names are those of `Prepared.features`."""
    spacing = [float(mm) for mm in row.spacing.split(";")] if row.spacing else [0.0]
    known = {f"spacing_{axis}_mm": mm for axis, mm in zip("zy", spacing, strict=False)} if min(spacing) > 0 else {}
    return {"slices": float(row.slices), **known}
