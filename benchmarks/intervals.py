"""Do 95 % intervals cover 95 %, and do tests at 5 % err in 5 %? Simulated patients with several scans each.

python -m benchmarks.intervals [--repetitions 4000] [--out benchmarks/results/intervals.json]
"""

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.machine import facts
from covidnet.evaluation.bootstrap import intervals, paired_difference
from covidnet.evaluation.metrics import Predictions

CLASSES = ("NCP", "Normal")
PATIENTS, RESAMPLES, TRUTH = 150, 500, 0.8


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Patient of each scan, one to three a patient, and each scan's probability of a right answer, 0.8 on average.

    Patients differ in difficulty (beta), so the scans of one are alike: their intraclass correlation is 1/6.
    """
    patient = np.repeat(np.arange(PATIENTS), rng.integers(1, 4, PATIENTS))
    return patient, rng.beta(4, 1, PATIENTS)[patient]


def answers(right: np.ndarray, patient: np.ndarray) -> Predictions:
    labels = patient % 2
    called = np.where(right, labels, 1 - labels)
    ids = tuple(f"scan{i}" for i in range(len(right)))
    return Predictions(ids, tuple(map(str, patient)), labels, 2.0 * np.eye(2)[called], CLASSES)


def coverage(repetitions: int, clustered: bool) -> float:
    """Share of intervals of accuracy that hold the truth; by scan instead of by patient where not clustered."""
    rng, hits = np.random.default_rng(7), 0
    for seed in range(repetitions):
        patient, difficulty = draw(rng)
        found = answers(rng.random(len(patient)) < difficulty, patient)
        if not clustered:
            found = Predictions(found.scan_ids, found.scan_ids, found.labels, found.logits, CLASSES)
        interval = intervals(found, "NCP", resamples=RESAMPLES, seed=seed).values["accuracy"]
        hits += interval is not None and interval[0] <= TRUTH <= interval[1]
    return hits / repetitions


def false_positives(repetitions: int) -> float:
    """Share of paired tests of two equally good models that find a difference at 5 %."""
    rng, found = np.random.default_rng(11), 0
    for seed in range(repetitions):
        patient, difficulty = draw(rng)
        a, b = (answers(rng.random(len(patient)) < difficulty, patient) for _ in range(2))
        found += paired_difference(a, b, resamples=RESAMPLES, seed=seed).p_value < 0.05
    return found / repetitions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/intervals.json"))
    options = parser.parse_args()
    n = options.repetitions
    results = {
        "repetitions": n,
        "coverage_by_patient": coverage(n, clustered=True),
        "coverage_by_scan": coverage(n, clustered=False),
        "false_positives": false_positives(n),
    }
    error = 1.96 * np.sqrt(0.05 * 0.95 / n)
    print(f"{n} repetitions of {PATIENTS} patients; +-{error:.1%} is chance")
    for name, target in (
        ("coverage_by_patient", "93 to 97 %"),
        ("coverage_by_scan", "-"),
        ("false_positives", "4 to 6 %"),
    ):
        print(f"{name:<22}{results[name]:>8.1%}   expected {target}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**facts(), **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
