"""How surely and how falsely the drift test speaks, by simulation with the code that serves.

    python -m benchmarks.monitoring results          # `results` of a finished demo; minutes on one core

Streams of scans pass through `serving.monitoring.drift.Drift`. False alarms: streams that follow the reference's own
distribution, 10,000 scans each, in which every look above the limit after one below is an alarm; from uniform numbers,
for which the test's guarantee holds whatever the feature, and from the demo's scans. Power: 200 ordinary scans fill the
window, then the change comes; found is what is seen before 200 changed scans have passed. The network's answers are
those of the demo's bundle.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import zoom
from scipy.special import softmax
from scipy.stats import binomtest

from covidnet.data import packed as packed_data
from covidnet.data.preprocess import Spec, prepare
from covidnet.data.scan import Scan
from covidnet.data.sources import phantom
from covidnet.evaluation.calibration import energy
from covidnet.evaluation.metrics import Predictions
from covidnet.export import reference
from covidnet.export.bundle import Bundle
from covidnet.export.reference import Feature, Reference
from covidnet.inference import engine
from serving.monitoring.drift import Drift

STREAM = 10_000  # scans without a change
RUNS = {"uniform": 40, "demo": 20, "power": 300}
WITHIN = 200  # scans that a change may go unseen
OTHER_SCANNER = {"noise_hu": 60.0, "finer": 1.4}  # in-plane pixels that much smaller
OTHER_SCANNER_SCANS = 40  # per class
OVERCONFIDENT = 2.0  # times the logits
PREVALENCE = {"before": 0.3, "after": 0.6}  # of the first class
RESULTS = Path(__file__).parent / "results" / "monitoring.json"


Seen = tuple[Mapping[str, float], str]  # features of a scan, and its predicted class


@dataclass(frozen=True)
class Pool:
    """Scans to draw streams from.

    Args:
        truth: true class of each scan, ``(N,)``.
        logits: ``(N, K)``.
        features: of each scan's input.
        classes: names, in the order of the logits.
        temperature: of the bundle.
    """

    truth: np.ndarray
    logits: np.ndarray
    features: list[dict[str, float]]
    classes: tuple[str, ...]
    temperature: float

    @cached_property
    def seen(self) -> list[Seen]:
        """What the drift test gets of each scan."""
        probabilities = softmax(self.logits / self.temperature, axis=1)
        scores = energy(self.logits, self.temperature)
        rows = zip(self.features, probabilities, scores, strict=True)
        return [
            ({**features, **reference.of_prediction(float(p.max()), float(score))}, self.classes[int(p.argmax())])
            for features, p, score in rows
        ]

    def draw(self, scans: int, share: float, rng: np.random.Generator) -> Iterator[Seen]:
        """Scans with replacement; each is of the first class with the given probability."""
        first, others = np.flatnonzero(self.truth == 0), np.flatnonzero(self.truth != 0)
        chosen = np.where(rng.random(scans) < share, rng.choice(first, scans), rng.choice(others, scans))
        return (self.seen[i] for i in chosen)

    def without(self, *names: str) -> "Pool":
        """The same scans, for which these features are unknown."""
        kept = [{k: value for k, value in row.items() if k not in names} for row in self.features]
        return replace(self, features=kept)


@dataclass(frozen=True)
class Demo:
    """What the demo gives.

    Args:
        told: the reference.
        test: scans that no part of the reference was made from.
        changes: share of the first class before, scans after, share of the first class after.
    """

    told: Reference
    test: Pool
    changes: dict[str, tuple[float, Pool, float]]


def main() -> None:
    """Print both tables and write them as JSON."""
    results = Path(sys.argv[1] if len(sys.argv) > 1 else "results")
    started = time.time()
    false_alarms = {"uniform, reference of 100,000": uniform_alarms(100_000, 100_000)}
    false_alarms["uniform, reference of 1,400 and 240"] = uniform_alarms(1_400, 240)
    found_in = demo(results)
    false_alarms["the demo's scans"] = demo_alarms(found_in.test)
    print("\nfalse alarms in streams of 10,000 scans without a change")
    for name, alarms in false_alarms.items():
        print(f"{name:>36} | {np.mean(alarms):6.3f} per stream, at most {max(alarms)}, {len(alarms)} streams")
    print(f"\nchange seen within {WITHIN} scans\n{'change':>36} | {'share':>6} | 95 % interval  | median scans | by")
    found = {
        name: power(found_in.told, found_in.test, before, pool, after)
        for name, (before, pool, after) in found_in.changes.items()
    }
    for name, row in found.items():
        low, high = row["interval"]
        print(f"{name:>36} | {row['share']:6.3f} | {low:.3f} to {high:.3f} | {row['median_scans']:12.0f} | {row['by']}")
    RESULTS.parent.mkdir(exist_ok=True)
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("numpy", "scipy", "openvino")},
        "seconds": round(time.time() - started),
    }
    alarms_of = {name: {"mean": float(np.mean(n)), "streams": len(n)} for name, n in false_alarms.items()}
    RESULTS.write_text(json.dumps({**facts, "false_alarms_per_10000": alarms_of, "power": found}, indent=1) + "\n")


def uniform_alarms(inputs: int, outputs: int) -> list[int]:
    """Alarms per stream of nine independent features and three classes, from references of so many scans."""
    counts, share = [], np.full(3, 1 / 3)
    for seed in range(RUNS["uniform"]):
        rng = np.random.default_rng([seed, inputs])
        features = {}
        for k in range(9):
            scans = inputs if k < 7 else outputs
            values = reference.profile(rng.random(min(scans, 20_000)).tolist()).values
            features[f"feature {k}"] = Feature(scans, values)
        told = Reference(features, dict(zip("abc", rng.multinomial(outputs, share).tolist(), strict=True)))
        rows = zip(rng.random((STREAM, 9)).tolist(), rng.choice(list("abc"), STREAM), strict=True)
        counts.append(alarms(Drift(told, seed), ((dict(zip(features, row, strict=True)), str(c)) for row, c in rows)))
    return counts


def demo_alarms(pool: Pool) -> list[int]:
    """Alarms per stream where the reference and the stream are both drawn from the demo's unseen scans."""
    seen, counts = pool.seen, []
    for seed in range(RUNS["demo"]):
        rng = np.random.default_rng(seed)
        told = profiled([seen[i] for i in rng.integers(len(seen), size=1_400)], outputs=240)
        counts.append(alarms(Drift(told, seed), (seen[i] for i in rng.integers(len(seen), size=STREAM))))
    return counts


def profiled(rows: list[Seen], outputs: int) -> Reference:
    """A reference of such scans, the answers' part from the first ``outputs`` of them."""
    answers = ("confidence", "energy")
    features = {
        name: reference.profile([found[name] for found, _ in (rows[:outputs] if name in answers else rows)])
        for name in rows[0][0]
    }
    labels = [label for _, label in rows[:outputs]]
    return Reference(features, {label: labels.count(label) for label in sorted(set(labels))})


def alarms(drift: Drift, stream: Iterator[Seen]) -> int:
    """How often a feature's ratio rises above 1."""
    count, before = 0, set[str]()
    for features, label in stream:
        drift.add(features, label)
        above = {name for name, ratio in drift.ratios.items() if ratio > 1}
        count += len(above - before)
        before = above
    return count


def demo(results: Path) -> Demo:
    """The demo's unseen scans, planted changes, and the reference that its export writes."""
    packed, bundle = packed_data.read(results / "dataset"), Bundle.load(results / "export" / "bundle")
    network, temperature, classes = engine.load(bundle), bundle.calibration.temperature, bundle.labels
    labels = packed.labels(classes)

    def pool(truth: np.ndarray, volumes: np.ndarray, geometry: list[dict[str, float]]) -> Pool:
        logits = np.concatenate([network.run(volume[None, None]).logits for volume in volumes])
        features = [{**row, **reference.describe(volume)} for row, volume in zip(geometry, volumes, strict=True)]
        return Pool(truth, logits, features, classes, temperature)

    def split(name: str) -> tuple[np.ndarray, np.ndarray, list[dict[str, float]]]:
        chosen = packed.split(name)
        return labels[chosen], packed.scans[chosen], [reference.geometry(packed.rows[i]) for i in chosen]

    validation, (truth, volumes, geometry) = pool(*split("validation")), split("test")
    ids = tuple(packed.rows[i].scan_id for i in packed.split("validation"))
    told = reference.build(packed, Predictions(ids, ids, validation.truth, validation.logits, classes), temperature)
    test = pool(truth, volumes, geometry)
    scanned = [(k, other_scanner(label, i)) for k, label in enumerate(classes) for i in range(OTHER_SCANNER_SCANS)]
    prepared = [prepare(scan, Spec.from_dict(bundle.preprocess)) for _, scan in scanned]
    elsewhere = pool(
        np.array([k for k, _ in scanned]),
        np.stack([found.volume for found in prepared]),
        [dict(found.features) for found in prepared],
    )
    even, more = 1 / len(classes), PREVALENCE["after"]
    changes = {
        "another scanner, noise and spacing": (even, elsewhere, even),
        "another scanner, noise alone": (even, elsewhere.without("slices", "spacing_z_mm", "spacing_y_mm"), even),
        "inverted intensities": (even, pool(truth, 255 - volumes, geometry), even),
        f"prevalence {PREVALENCE['before']} to {more}": (PREVALENCE["before"], test, more),
        "overconfident model": (even, replace(test, logits=test.logits * OVERCONFIDENT), even),
    }
    return Demo(told, test, changes)


def other_scanner(label: str, index: int) -> Scan:
    """A phantom as a scanner with finer pixels and more noise sees it."""
    scan = phantom.generate(label, seed=1, index=index).scan
    finer, rng = OTHER_SCANNER["finer"], np.random.default_rng(index)
    voxels = zoom(scan.voxels.astype(np.float32), (1, finer, finer), order=1)
    voxels += rng.normal(0, OTHER_SCANNER["noise_hu"], voxels.shape)
    z, y, x = scan.spacing_mm
    return Scan(np.rint(voxels).clip(-1024, 3071).astype(np.int16), (z, y / finer, x / finer))


def power(told: Reference, ordinary: Pool, before: float, changed: Pool, after: float) -> dict[str, Any]:
    """Share of runs in which a change is seen in time, and after how many scans."""
    delays, by = [], dict[str, int]()
    for seed in range(RUNS["power"]):
        drift, rng = Drift(told, seed), np.random.default_rng(seed)
        for row in ordinary.draw(WITHIN, before, rng):
            drift.add(*row)
        for position, row in enumerate(changed.draw(WITHIN, after, rng), start=1):
            drift.add(*row)
            name = max(drift.ratios, key=drift.ratios.__getitem__)
            if drift.ratios[name] > 1:
                delays.append(position)
                by[name] = by.get(name, 0) + 1
                break
    interval = binomtest(len(delays), RUNS["power"]).proportion_ci(method="wilson")
    return {
        "share": len(delays) / RUNS["power"],
        "interval": [interval.low, interval.high],
        "median_scans": float(np.median(delays)) if delays else float("nan"),
        "by": max(by, key=by.__getitem__) if by else "nothing",
        "runs": RUNS["power"],
    }


if __name__ == "__main__":
    main()
