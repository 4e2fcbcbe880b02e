"""The drift test against numbers from elsewhere, and in the real server."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
from scipy.stats import kstest
from toy_volumes import volumes

from covidnet.export import reference
from covidnet.export.reference import Reference
from serving.monitoring import drift
from serving.monitoring.drift import Drift

if TYPE_CHECKING:
    from conftest import Server

PREDICTIONS = {"NCP": 80, "CP": 80, "Normal": 80}


def told(values: np.ndarray) -> Reference:
    return Reference({"slices": reference.profile(values.tolist())}, PREDICTIONS)


def labels(count: int, seed: int = 0) -> list[str]:
    return np.random.default_rng(seed).choice(list(PREDICTIONS), count).tolist()


def test_the_statistic_is_kolmogorovs() -> None:
    ranks = np.sort(np.random.default_rng(0).random(137))
    assert drift._kolmogorov(ranks) == pytest.approx(kstest(ranks, "uniform").statistic)


@pytest.mark.parametrize("draw", ["normal", "few_values", "constant"])
def test_scans_like_the_training_data_have_uniform_ranks_ties_or_not(draw: str) -> None:
    rng = np.random.default_rng(1)
    sources = {
        "normal": lambda n: rng.normal(size=n),
        "few_values": lambda n: rng.choice([1.0, 1.25, 5.0], n, p=[0.7, 0.2, 0.1]),
        "constant": lambda n: np.full(n, 1.25),
    }
    watched = Drift(told(sources[draw](2_000)))
    ranks = [watched._rank("slices", float(value)) for value in sources[draw](2_000)]
    assert kstest(ranks, "uniform").pvalue > 1e-3


def test_a_shift_is_seen_within_the_window_and_forgotten_after_it() -> None:
    rng = np.random.default_rng(2)
    watched = Drift(told(rng.normal(size=1_000)))
    streams = {"before": 0.0, "shifted": 1.0, "after": 0.0}
    highest = {}
    for name, mean in streams.items():
        seen = []
        for value, label in zip(rng.normal(mean, 1.0, 400), labels(400), strict=True):
            watched.add({"slices": value}, label)
            seen.append(watched.ratios.get("slices", 0.0))
        highest[name] = seen
    assert max(highest["before"]) < 1
    assert max(highest["shifted"][:200]) > 1
    assert highest["after"][-1] < 1


def test_a_doubled_prevalence_is_seen() -> None:
    watched = Drift(told(np.zeros(240)))
    rng = np.random.default_rng(3)
    for label in rng.choice(list(PREDICTIONS), 200, p=[0.6, 0.2, 0.2]):
        watched.add({}, str(label))
    assert watched.ratios[drift.PREVALENCE] > 1


def test_too_few_scans_say_nothing_and_unknown_features_are_left_alone() -> None:
    watched = Drift(told(np.zeros(240)))
    for _ in range(drift.LEAST - 1):
        watched.add({"slices": 9.0, "weather": 1.0}, "NCP")
    assert watched.ratios == {}


def test_memory_is_bounded() -> None:
    watched = Drift(told(np.arange(1_000.0)))
    for value, label in zip(np.arange(5_000.0), labels(5_000), strict=True):
        watched.add({"slices": float(value)}, label)
    assert watched.scans == drift.WINDOW
    assert len(watched._ranks["slices"]) == drift.WINDOW


def infer(server: "Server", batch: np.ndarray) -> None:
    for start in range(0, len(batch), 20):
        part = batch[start : start + 20]
        head = {"name": "volume", "shape": list(part.shape), "datatype": "UINT8", "data": part.ravel().tolist()}
        answer = httpx.post(f"{server.http}/v2/models/covidnet/infer", json={"inputs": [head]}, timeout=60)
        assert answer.status_code == 200


def test_the_server_flags_inverted_scans_and_still_does_after_a_restart(
    start: Callable[..., "Server"], tmp_path: Path
) -> None:
    server = start(state=tmp_path)
    infer(server, volumes(100, seed=5))
    assert 0 < server.metric("covidnet_drift_ratio", feature="volume_mean") < 1
    infer(server, 255 - volumes(100, seed=6))
    assert server.metric("covidnet_drift_ratio", feature="volume_mean") > 1
    assert server.metric("covidnet_drift_alarms_total", feature="volume_mean") == 1
    server.stop()
    again = start(state=tmp_path)
    assert again.metric("covidnet_drift_window_scans") == drift.WINDOW
    assert again.metric("covidnet_drift_ratio", feature="volume_mean") > 1
