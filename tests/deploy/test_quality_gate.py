"""What lets a winner out, and what keeps it in."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from covidnet.config import Config, Gate
from covidnet.data import packed
from covidnet.deploy.endpoint import EndpointError
from covidnet.deploy.gate import decide, foreign
from covidnet.evaluation.metrics import Predictions

CLASSES = ("NCP", "CP", "Normal")
SCANS = {"train": 60, "validation": 20, "test": 20}
CONFIG = Config(gate=Gate(margin=0.0, at_least={"accuracy": 0.5}, at_most={"ece_after": 0.15}, false_alarms=0.3))


def volumes(count: int, seed: int) -> np.ndarray:
    """Scans ``uint8 (count, 8, 32, 32)`` that are brighter below than above, each at a level of its own."""
    rng = np.random.default_rng(seed)
    level, rows = rng.normal(0, 8, (count, 1, 1, 1)), np.linspace(30, 190, 32)[:, None]
    return np.clip(level + rows + rng.normal(0, 10, (count, 8, 32, 32)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    splits = [split for split, count in SCANS.items() for _ in range(count)]
    np.save(folder / "scans.npy", volumes(len(splits), seed=1))
    rows = [
        packed.Row(f"s{i}", f"p{i}", CLASSES[i % 3], split, "phantom", "", "", 16, "") for i, split in enumerate(splits)
    ]
    packed.write_manifest(folder / "manifest.csv", rows)
    return folder


def model(folder: Path, right: int) -> Path:
    """A trained model's folder that has so many of the 20 validation scans right."""
    folder.mkdir()
    labels = np.arange(20) % 3
    told = np.where(np.arange(20) < right, labels, (labels + 1) % 3)
    names = tuple(f"s{i}" for i in range(20))
    Predictions(names, names, labels, np.eye(3)[told], CLASSES).save(folder / "validation.csv")
    return folder


def evaluated(folder: Path, **figures: float | None) -> Path:
    """What `evaluate` says of the winner on the test split."""
    figures = {"accuracy": 0.9, "ece_after": 0.05, **figures}
    calibration = {"ece_after": figures.pop("ece_after")}
    tree = {"winner": {"name": "found"}, "metrics": {"found": figures}, "calibration": calibration}
    (folder / "results.json").write_text(json.dumps(tree))
    return folder


def served(right: int, classes: int = 3) -> Any:
    """A deployed model that has so many of the validation scans right; it is asked in batches."""
    asked: list[int] = []

    def classify(batch: np.ndarray) -> Any:
        labels = (np.arange(sum(asked), sum(asked) + len(batch)) + SCANS["train"]) % 3
        told = np.where(np.arange(sum(asked), sum(asked) + len(batch)) < right, labels, (labels + 1) % 3)
        asked.append(len(batch))
        return SimpleNamespace(probabilities=np.eye(classes)[told])

    return SimpleNamespace(classify=classify)


def unmet(findings: Any) -> list[str]:
    return [text for met, text in findings.checks if not met]


def test_a_good_winner_passes_and_every_condition_is_told(dataset: Path, tmp_path: Path) -> None:
    winner, others = model(tmp_path / "w", 18), [model(tmp_path / "a", 17), model(tmp_path / "b", 5)]
    findings = decide(CONFIG, dataset, evaluated(tmp_path), winner, others, None)
    assert findings.passed, findings.markdown("", "")
    text = findings.markdown("out", "in")
    for part in ("+0.050 beside the best baseline", "accuracy 0.9", "ece_after 0.05", "of the test scans flagged"):
        assert part in text


def test_the_deployed_model_takes_the_place_of_the_baselines(dataset: Path, tmp_path: Path) -> None:
    winner, others = model(tmp_path / "w", 15), [model(tmp_path / "a", 20)]
    findings = decide(CONFIG, dataset, evaluated(tmp_path), winner, others, served(14))
    assert findings.passed, "a better baseline counts only where nothing is deployed"
    assert "+0.050 beside the deployed model" in findings.markdown("", "")
    findings = decide(CONFIG, dataset, evaluated(tmp_path), winner, others, served(16))
    assert unmet(findings) == ["validation accuracy -0.050 beside the deployed model (at least +0.000)"]


@pytest.mark.parametrize("told", ["4 classes", "no answer"])
def test_where_the_deployed_model_can_not_be_compared_with_the_baselines_are_and_it_is_said(
    dataset: Path, tmp_path: Path, told: str
) -> None:
    def fails(_: np.ndarray) -> None:
        raise EndpointError("no answer")

    deployed = served(20, classes=4) if told == "4 classes" else SimpleNamespace(classify=fails)
    winner, others = model(tmp_path / "w", 10), [model(tmp_path / "a", 10)]
    findings = decide(CONFIG, dataset, evaluated(tmp_path), winner, others, deployed)
    assert findings.passed
    (text,) = [text for _, text in findings.checks if "validation accuracy" in text]
    assert "beside the best baseline" in text
    assert "the deployed model can't be compared with: " in text
    assert told in text


@pytest.mark.parametrize(
    ("figures", "line"),
    [
        ({"accuracy": 0.4999}, "accuracy 0.4999 on the test split (at least 0.5)"),
        ({"ece_after": 0.2}, "ece_after 0.2 on the test split (at most 0.15)"),
        ({"accuracy": None}, "accuracy undefined on the test split (at least 0.5)"),
    ],
)
def test_a_figure_out_of_bounds_or_undefined_keeps_it_in(
    dataset: Path, tmp_path: Path, figures: dict[str, float | None], line: str
) -> None:
    winner, others = model(tmp_path / "w", 18), [model(tmp_path / "a", 5)]
    findings = decide(CONFIG, dataset, evaluated(tmp_path, **figures), winner, others, None)
    assert unmet(findings) == [line]


def test_a_bound_on_a_figure_that_is_not_there_is_not_met(dataset: Path, tmp_path: Path) -> None:
    asked = CONFIG.model_copy(update={"gate": CONFIG.gate.model_copy(update={"at_least": {"no_such": 0.0}})})
    winner, others = model(tmp_path / "w", 18), [model(tmp_path / "a", 5)]
    assert unmet(decide(asked, dataset, evaluated(tmp_path), winner, others, None)) == [
        "no_such undefined on the test split (at least 0.0)"
    ]


def test_a_flag_that_cries_at_everything_keeps_it_in(dataset: Path, tmp_path: Path) -> None:
    strict = CONFIG.model_copy(update={"gate": CONFIG.gate.model_copy(update={"false_alarms": 0.0})})
    loud = strict.model_copy(update={"export": strict.export.model_copy(update={"false_alarm_rate": 0.49})})
    winner, others = model(tmp_path / "w", 18), [model(tmp_path / "a", 5)]
    (line,) = unmet(decide(loud, dataset, evaluated(tmp_path), winner, others, None))
    assert "of the test scans flagged as out of distribution (at most 0.0%)" in line


def test_what_a_model_should_refuse_is_made_of_known_scans_and_unlike_them() -> None:
    scans = volumes(3, seed=2)
    made = foreign(scans)
    assert made.shape == (12, *scans.shape[1:])
    assert (made[:3] == 255 - scans).all()
    assert (made[3:6, :, ::-1] == scans).all()
    assert (np.sort(made[6:9].reshape(3, -1)) == np.sort(scans.reshape(3, -1))).all()
    assert not made[9:].any()
