"""The one place that every answer passes: it is counted, compared with the training data, and kept for feedback."""

import asyncio
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from covidnet.data.preprocess import Prepared
from covidnet.export import reference
from covidnet.export.bundle import Bundle
from covidnet.export.reference import Reference
from covidnet.inference.predict import NO_LUNGS_FOUND, OUT_OF_DISTRIBUTION
from serving import metrics
from serving.errors import Invalid, StoreUnavailable
from serving.monitoring import drift, performance
from serving.monitoring.correlation import CURRENT, Correlation
from serving.monitoring.drift import Drift
from serving.monitoring.performance import Estimate, Performance
from serving.monitoring.store import Prediction, Store

if TYPE_CHECKING:
    from serving.answers import Answer

STATE = "COVIDNET_STATE"
DEFAULT_STATE = Path("~/.local/state/covidnet")
JUDGED_SCANS = 500  # of the last feedback, that live figures are from

_log = logging.getLogger(__name__)


class Observer:
    """Watches the answers of one bundle, for use in one event loop.

    What it must remember over a restart lies in the folder or database that the variable COVIDNET_STATE names.

    Args:
        bundle: the one that is served.
        engine: name of the engine that runs it.
    """

    def __init__(self, bundle: Bundle, engine: str) -> None:
        self.bundle = bundle
        self._store = Store(os.environ.get(STATE) or str(DEFAULT_STATE.expanduser()))
        self._drift = None if bundle.reference is None else Drift(Reference.from_dict(bundle.reference))
        model = str(bundle.genotype.get("space") or bundle.genotype.get("name") or "unknown")
        metrics.BUNDLE.labels(bundle.version, model, engine, ",".join(bundle.labels)).set(1)
        self.performance = performance.measure([], bundle.labels)
        self._start_from_zero()
        self._resume()

    def answered(self, answer: "Answer", prepared: Prepared) -> None:
        """Watch one answer.

        Args:
            answer: what the caller gets.
            prepared: what the network saw.
        """
        energy, confidence = answer.energy, answer.probabilities[answer.label]
        metrics.PREDICTIONS.labels(answer.label).inc()
        metrics.CONFIDENCE.observe(confidence)
        metrics.ENTROPY.observe(_entropy(answer.probabilities))
        metrics.OOD_SCORE.observe(answer.novelty)
        metrics.OUT_OF_DISTRIBUTION.inc(OUT_OF_DISTRIBUTION in answer.flags)
        metrics.NO_LUNGS.inc(NO_LUNGS_FOUND in answer.flags)
        _observe_input(prepared.features)
        described = reference.describe(prepared.volume)
        features = {**prepared.features, **described, **reference.of_prediction(confidence, energy)}
        self._compare(features, answer.label)
        request = CURRENT.get() or Correlation()
        self._store.add(Prediction(request.next_scan(), self.bundle.version, answer.probabilities, features))

    async def feedback(self, request_id: str, label: str) -> bool:
        """Keep the truth about an answered scan; on disk when this returns.

        Returns:
            False where the same was known already.

        Raises:
            Invalid: an unknown class.
            UnknownRequest, Conflict, StoreUnavailable: see `Store.feedback`.
        """
        if label not in self.bundle.labels:
            raise Invalid(f"label: expected one of {', '.join(self.bundle.labels)}")
        predicted = await asyncio.to_thread(self._store.feedback, request_id, label)
        if predicted is None:
            return False
        metrics.FEEDBACK.labels(label, predicted).inc()
        await asyncio.to_thread(self._measure)
        return True

    @property
    def drift_ratios(self) -> Mapping[str, float]:
        """Distance of the last scans to the training data over its limit, by feature; empty where it can't be told."""
        return {} if self._drift is None else self._drift.ratios

    @property
    def drift_scans(self) -> int:
        """Scans that drift is judged by."""
        return 0 if self._drift is None else self._drift.scans

    def close(self) -> None:
        """Write what waits."""
        self._store.close()

    def _start_from_zero(self) -> None:
        """All series are there before the first scan: a rate needs a first sample."""
        for label in self.bundle.labels:
            metrics.PREDICTIONS.labels(label)
            for predicted in self.bundle.labels:
                metrics.FEEDBACK.labels(label, predicted)
        if self._drift is None:
            return
        expected = self._drift.reference.predictions
        for label, count in expected.items():
            metrics.EXPECTED.labels(label).set(count / sum(expected.values()))
        for name in self._drift.reference.features:
            metrics.DRIFT_ALARMS.labels(name)
            for tenth in range(drift.TENTHS):
                metrics.TENTHS.labels(name, str(tenth))
        metrics.DRIFT_ALARMS.labels(drift.PREVALENCE)

    def _resume(self) -> None:
        """Fill the window and the live figures from what was kept; without a store, start anew."""
        try:
            for prediction in self._store.predictions(self.bundle.version, drift.WINDOW):
                label = max(prediction.probabilities, key=prediction.probabilities.__getitem__)
                if self._drift is not None:
                    self._drift.add(prediction.features, label)
            self._measure()
        except StoreUnavailable as error:
            _log.warning("%s; set %s to a folder that can be written. Feedback is refused until then", error, STATE)
        self._show_drift()

    def _compare(self, features: Mapping[str, float], label: str) -> None:
        if self._drift is None:
            return
        before = self._drift.ratios
        for name, tenth in self._drift.add(features, label).items():
            metrics.TENTHS.labels(name, str(tenth)).inc()
        if self._drift.ratios is not before:
            for name, ratio in self._drift.ratios.items():
                if ratio > 1 >= before.get(name, 0.0):
                    metrics.DRIFT_ALARMS.labels(name).inc()
                    _log.warning("drift of %s: %.2f of its limit", name, ratio)
            self._show_drift()

    def _show_drift(self) -> None:
        if self._drift is not None:
            metrics.DRIFT_SCANS.set(self._drift.scans)
            for name, ratio in self._drift.ratios.items():
                metrics.DRIFT.labels(name).set(ratio)

    def _measure(self) -> None:
        outcomes = self._store.outcomes(self.bundle.version, JUDGED_SCANS)
        self.performance = performance.measure(outcomes, self.bundle.labels)
        _show(self.performance)


def _show(found: Performance) -> None:
    metrics.JUDGED.set(found.scans)
    for label, estimate in found.sensitivity.items():
        for bound, value in _bounds(estimate):
            metrics.SENSITIVITY.labels(label, bound).set(value)
    for label, estimate in found.specificity.items():
        for bound, value in _bounds(estimate):
            metrics.SPECIFICITY.labels(label, bound).set(value)
    for bound, value in _bounds(found.calibration_gap):
        metrics.CALIBRATION.labels(bound).set(value)


def _bounds(estimate: Estimate) -> list[tuple[str, float]]:
    return [] if math.isnan(estimate.value) else list(zip(("value", "low", "high"), estimate, strict=True))


def _entropy(probabilities: Mapping[str, float]) -> float:
    """0 where one class is certain, 1 where all are alike."""
    return -sum(p * math.log(p) for p in probabilities.values() if p > 0) / math.log(len(probabilities))


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
