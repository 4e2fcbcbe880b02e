"""The page at `/status`: the few numbers and plots that tell whether the server and its model are well, without Grafana."""

import math
from collections import deque
from html import escape
from importlib import resources
from string import Template
from typing import NamedTuple

from prometheus_client import REGISTRY

from serving import metrics
from serving.monitoring.observer import JUDGED_SCANS, Observer
from serving.monitoring.performance import Estimate

SAMPLE_S = 10.0
MINUTES = 30
_TRACK = '<rect class="track" width="100" height="10"/>'


class Sample(NamedTuple):
    """Counters at one time."""

    answered: float
    failed: float


class History:
    """Requests of the last half hour, for one small curve; of fixed size."""

    def __init__(self) -> None:
        self._samples = deque[Sample](maxlen=int(MINUTES * 60 / SAMPLE_S) + 1)

    def sample(self) -> None:
        """Take the counters of now."""
        outcomes = _sums("covidnet_requests_total", "outcome")
        failed = outcomes.pop("failed", 0.0) + outcomes.pop("busy", 0.0)
        self._samples.append(Sample(sum(outcomes.values()), failed))

    def curve(self) -> str:
        """SVG of requests per minute."""
        per_minute = 60 / SAMPLE_S
        pairs = zip(list(self._samples), list(self._samples)[1:], strict=False)
        rates = [
            (after.answered + after.failed - before.answered - before.failed) * per_minute for before, after in pairs
        ]
        if len(rates) < 2:
            return '<p class="faint">The curve begins after half a minute.</p>'
        top = max(1.0, *rates)
        room = self._samples.maxlen or 1
        points = " ".join(
            f"{600 * (room - len(rates) + i) / (room - 1):.1f},{76 - 70 * rate / top:.1f}"
            for i, rate in enumerate(rates)
        )
        return (
            f'<svg viewBox="0 0 600 80" preserveAspectRatio="none" role="img" aria-label="Requests per minute">'
            f'<line x1="0" y1="76" x2="600" y2="76"/><polyline points="{points}"/></svg>'
            f'<p class="faint axis"><span>{MINUTES} minutes ago</span><span>most: {top:.0f} per minute</span>'
            f"<span>now: {rates[-1]:.0f}</span></p>"
        )


def render(observer: Observer, history: History) -> str:
    """The page as HTML."""
    page = Template(resources.files("serving.monitoring").joinpath("status.html").read_text())
    outcomes = _sums("covidnet_requests_total", "outcome")
    failed = outcomes.get("failed", 0.0) + outcomes.get("busy", 0.0)
    total = sum(outcomes.values())
    predictions = _sums("covidnet_predictions_total", "label")
    scans, foreign = sum(predictions.values()), metrics.OUT_OF_DISTRIBUTION._value.get()
    worst = max(observer.drift_ratios.values(), default=0.0)
    return page.substitute(
        version=escape(observer.bundle.version),
        verdict=_verdict(observer, worst, failed, total),
        tiles="".join(
            [
                _tile("requests", f"{total:,.0f}", "since the start"),
                _tile("failed or full", _percent(failed, total), "promised: 0.5 % at most", bad=failed > 0.005 * total),
                _tile("answers within", _seconds(_quantile(0.95)), "95 % of them; promised: 2.5 s"),
                _tile("scans", f"{scans:,.0f}", "classified"),
                _tile("unlike training", _percent(foreign, scans), "of the scans", bad=foreign > 0.2 * scans > 4),
            ]
        ),
        requests=history.curve(),
        phases="".join(_phase_rows()),
        classes="".join(_class_rows(observer, predictions, scans)) or _nothing("No scan yet."),
        drift="".join(_drift_rows(observer)) or _nothing(_no_drift(observer)),
        window=str(observer.drift_scans),
        truth="".join(_truth_rows(observer))
        or _nothing("No feedback yet: POST /v1/feedback when a diagnosis is known."),
        judged=str(observer.performance.scans),
        most_judged=str(JUDGED_SCANS),
    )


def _verdict(observer: Observer, worst: float, failed: float, total: float) -> str:
    drifting = [name for name, ratio in observer.drift_ratios.items() if ratio > 1]
    if total and failed > 0.005 * total:
        return f'<p class="verdict bad">{_percent(failed, total)} of the requests failed or found the server full.</p>'
    if drifting:
        names = escape(", ".join(sorted(drifting)).replace("_", " "))
        return f'<p class="verdict bad">Drift: unlike the training data in {names}.</p>'
    if not worst:
        return '<p class="verdict">Running. Too few scans yet to compare with the training data.</p>'
    return '<p class="verdict good">Running, and the last scans are like the training data.</p>'


def _no_drift(observer: Observer) -> str:
    if observer.bundle.reference is None:
        return "This bundle has no reference profile; export it again to have drift told."
    return "Fewer than 50 scans yet."


def _phase_rows() -> list[str]:
    seconds = _sums("covidnet_phase_seconds_sum", "phase")
    counts = _sums("covidnet_phase_seconds_count", "phase")
    means = {name: seconds[name] / counts[name] for name in metrics.PHASES if counts.get(name)}
    longest = max(means.values(), default=1.0)
    return [_row(name, mean / longest, _seconds(mean)) for name, mean in means.items()] or [_nothing("No scan yet.")]


def _class_rows(observer: Observer, predictions: dict[str, float], scans: float) -> list[str]:
    expected = (observer.bundle.reference or {}).get("predictions", {})
    total = sum(expected.values()) or 1
    rows = []
    for label in observer.bundle.labels if scans else ():
        share = predictions.get(label, 0.0) / scans
        mark = expected[label] / total if label in expected else None
        rows.append(_row(label, share, f"{share:.0%}", mark=mark))
    return rows


def _drift_rows(observer: Observer) -> list[str]:
    ratios = sorted(observer.drift_ratios.items(), key=lambda item: -item[1])
    return [_row(name.replace("_", " "), ratio / 2, f"{ratio:.2f}", mark=0.5, bad=ratio > 1) for name, ratio in ratios]


def _truth_rows(observer: Observer) -> list[str]:
    found = observer.performance
    rows = []
    for label in observer.bundle.labels:
        rows.append(_interval(f"{label} sensitivity", found.sensitivity[label]))
        rows.append(_interval(f"{label} specificity", found.specificity[label]))
    if found.scans:
        gap = found.calibration_gap
        text = f"{gap.value:+.0%} ({gap.low:+.0%} to {gap.high:+.0%})"
        rows.append(f'<div class="row wide"><span>confidence minus accuracy</span><b>{text}</b></div>')
    return [row for row in rows if row]


def _row(name: str, share: float, text: str, *, mark: float | None = None, bad: bool = False) -> str:
    width, kind = 100 * min(max(share, 0.0), 1.0), " bad" if bad else ""
    line = "" if mark is None else f'<line x1="{100 * mark:.1f}" y1="-2" x2="{100 * mark:.1f}" y2="12"/>'
    bar = (
        f'<rect class="track" width="100" height="10"/><rect class="fill{kind}" width="{width:.1f}" height="10"/>{line}'
    )
    svg = f'<svg viewBox="0 -2 100 14" preserveAspectRatio="none" aria-hidden="true">{bar}</svg>'
    return f'<div class="row"><span>{escape(name)}</span>{svg}<b>{escape(text)}</b></div>'


def _interval(name: str, estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return ""
    low, high = 100 * estimate.low, 100 * estimate.high
    inside = f'<rect class="fill" x="{low:.1f}" width="{high - low:.1f}" height="10"/>'
    mark = f'<line x1="{100 * estimate.value:.1f}" y1="-2" x2="{100 * estimate.value:.1f}" y2="12"/>'
    svg = f'<svg viewBox="0 -2 100 14" preserveAspectRatio="none" aria-hidden="true">{_TRACK}{inside}{mark}</svg>'
    return f'<div class="row"><span>{escape(name)}</span>{svg}<b>{low:.0f} to {high:.0f} %</b></div>'


def _tile(name: str, value: str, note: str, *, bad: bool = False) -> str:
    return f'<div class="tile{" bad" if bad else ""}"><span>{name}</span><b>{value}</b><small>{note}</small></div>'


def _nothing(text: str) -> str:
    return f'<p class="faint">{escape(text)}</p>'


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none yet"


def _seconds(seconds: float) -> str:
    if math.isnan(seconds):
        return "none yet"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"


def _quantile(q: float) -> float:
    """Upper end of the bucket in which the quantile of the time to the answer lies."""
    buckets: dict[float, float] = {}
    for family in REGISTRY.collect():
        if family.name == "covidnet_request_seconds":
            for sample in family.samples:
                if sample.name.endswith("_bucket"):
                    bound = float(sample.labels["le"])
                    buckets[bound] = buckets.get(bound, 0.0) + sample.value
    total = buckets.get(math.inf, 0.0)
    return next((bound for bound, count in sorted(buckets.items()) if total and count >= q * total), math.nan)


def _sums(name: str, label: str) -> dict[str, float]:
    """A metric's samples by one label, added over the others."""
    sums: dict[str, float] = {}
    for family in REGISTRY.collect():
        if name.startswith(family.name):
            for sample in family.samples:
                if sample.name == name:
                    sums[sample.labels[label]] = sums.get(sample.labels[label], 0.0) + sample.value
    return sums
