import pytest

from covidnet.errors import CovidnetError
from covidnet.export.card import Facts, blank, model_card


@pytest.fixture
def facts() -> Facts:
    return {
        "name": "covidnet3d-s",
        "classes": ["NCP", "CP", "Normal"],
        "size": [16, 64, 64],
        "parameters": 1_000_000,
        "size_mib": 3.81,
        "macs": 250_000_000,
        "source": "nifti",
        "scans": {"train": {"NCP": 5, "CP": 6, "Normal": 7}, "test": {"NCP": 2, "CP": 0}},
        "patients": {"train": 17, "test": 2},
        "metrics": {"accuracy": 0.9, "f1": None, "roc_auc": 0.95, "kappa": 0.8},
        "intervals": {"accuracy": (0.8, 0.95), "f1": None, "roc_auc": None},
        "confidence": 0.95,
        "temperature": 1.25,
        "false_alarm_rate": 0.05,
        "precisions": {},
        "versions": {"torch": "2.13.0", "covidnet": "0.1.0"},
    }


def test_card_states_the_facts_and_the_limits(facts: Facts) -> None:
    card = model_card(facts)
    for line in (
        "# covidnet3d-s: NCP, CP, Normal from chest CT",
        "| parameters | 1,000,000 (3.81 MiB as float32) |",
        "| multiply-accumulates per scan | 0.25 GMAC |",
        "| train | 17 | 18 | NCP 5, CP 6, Normal 7 |",
        "| test | 2 | 2 | NCP 2, CP 0, Normal 0 |",
        "| figure | value | 95 % interval |",
        "| accuracy | 0.900 | 0.800 to 0.950 |",
        "| f1 | undefined | none |",
        "| roc auc | 0.950 | too few |",
        "| versions | covidnet 0.1.0, torch 2.13.0 |",
        "Source: nifti.",
    ):
        assert line in card.splitlines()
    for heading in ("Intended use", "Data", "Figures on the test split", "Calibration", "Limits"):
        assert f"## {heading}" in card.splitlines()
    assert "No output of this model is a diagnosis" in card
    assert "phantom" not in card


def test_card_says_which_precisions_may_run(facts: Facts) -> None:
    assert "Lower precision" not in model_card(facts)
    figures = {"scans": 240, "changed": 1, "accuracy_difference": -1 / 240, "accuracy_interval": [-0.0125, 0.0]}
    hits = {"cam_hit_rate": 0.8, "cam_hit_rate_float32": 0.81}
    facts["precisions"] = {
        "int8": {"accepted": False, "reason": "maps miss", **figures, **hits},
        "float16": {"accepted": True, "reason": "", **figures, "cam_hit_rate": None, "cam_hit_rate_float32": None},
        "bfloat16": {"accepted": False, "reason": "not tried: this CPU has none"},
    }
    lines = model_card(facts).splitlines()
    assert "| int8 | refused: maps miss | 1 | -0.4 points (-1.2 to +0.0) | 80.0%, 81.0% |" in lines
    assert "| float16 | accepted | 1 | -0.4 points (-1.2 to +0.0) | no masks, no masks |" in lines
    assert "| bfloat16 | refused: not tried: this CPU has none | | | |" in lines
    assert any("Tried on the 240 validation scans" in line for line in lines)


def test_figures_of_phantoms_say_that_they_mean_nothing_for_patients(facts: Facts) -> None:
    facts["source"] = "phantom"
    assert "Trained on synthetic phantoms" in model_card(facts)


def test_two_classes_have_figures_of_the_positive_one(facts: Facts) -> None:
    facts["classes"] = ["NCP", "Normal"]
    assert "ROC AUC are those of the positive class." in model_card(facts)


def test_a_missing_fact_is_named(facts: Facts) -> None:
    del facts["patients"]  # type: ignore[misc]
    with pytest.raises(CovidnetError, match=r"missing \['patients'\]"):
        model_card(facts)


def test_the_template_has_a_blank_for_every_fact_and_is_else_the_card(facts: Facts) -> None:
    template = blank()
    for name in ("name", "classes", "size", "splits", "figures", "temperature"):
        assert f"<{name}>" in template
    assert "{" not in template
    headings = [line for line in model_card(facts).splitlines() if line.startswith("## ")]
    assert [line for line in template.splitlines() if line.startswith("## ")] == headings
