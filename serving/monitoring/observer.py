"""The one place that every answer passes: it is counted here, and nowhere else in the request path."""

import math
from collections.abc import Mapping

from covidnet.export.bundle import Bundle
from covidnet.inference.predict import NO_LUNGS_FOUND, OUT_OF_DISTRIBUTION
from serving import metrics
from serving.protocol import Answer


class Observer:
    """Watches the answers of one bundle; cheap, and to be called in one thread only.

    Args:
        bundle: the one that is served.
        engine: name of the engine that runs it.
    """

    def __init__(self, bundle: Bundle, engine: str) -> None:
        self._bundle = bundle
        model = str(bundle.genotype.get("space") or bundle.genotype.get("name") or "unknown")
        metrics.BUNDLE.labels(bundle.version, model, engine, ",".join(bundle.labels)).set(1)
        for label in bundle.labels:
            metrics.PREDICTIONS.labels(label)

    def answered(self, answer: Answer, features: Mapping[str, float]) -> None:
        """Count one scan.

        Args:
            answer: what the caller gets.
            features: of `covidnet.data.preprocess.Prepared`; none for a volume that was prepared elsewhere.
        """
        probabilities = answer.probabilities.values()
        entropy = -sum(p * math.log(p) for p in probabilities if p > 0) / math.log(len(probabilities))
        metrics.PREDICTIONS.labels(answer.label).inc()
        metrics.CONFIDENCE.observe(answer.probabilities[answer.label])
        metrics.ENTROPY.observe(entropy)
        metrics.OOD_SCORE.observe(answer.novelty)
        metrics.OUT_OF_DISTRIBUTION.inc(OUT_OF_DISTRIBUTION in answer.flags)
        metrics.NO_LUNGS.inc(NO_LUNGS_FOUND in answer.flags)
        _observe_input(features)


def _observe_input(features: Mapping[str, float]) -> None:
    """Whatever a scan has of the features: spacing and Hounsfield units are unknown for some sources."""
    for name, value in features.items():
        if name == "slices":
            metrics.SLICES.observe(value)
        elif name.startswith("spacing_"):
            metrics.SPACING.labels(name[len("spacing_") : -len("_mm")]).observe(value / 1000)
        elif name.startswith("hu_"):
            metrics.HOUNSFIELD.labels(name[len("hu_") :]).observe(value)
        elif name == "lung_volume_ml":
            metrics.LUNG_VOLUME.observe(value / 1000)
        elif name == "lung_share":
            metrics.LUNG_SHARE.observe(value)
