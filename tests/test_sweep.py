import json

import pytest

from covidnet import stages, sweep
from covidnet.config import Config, parse
from covidnet.errors import UsageError


@pytest.fixture
def found(monkeypatch):
    """Stages that have finished: accuracy and size by budget, and the budgets that they were asked for."""
    results = {2.5: (2.4, 0.80), 3.0: (2.9, 0.78), 4.0: (3.9, 0.85)}
    asked = []

    def search(config, dataset, out, variant):
        asked.append((config.search.budget.size_mib, config.search.steps, str(out)))
        return {"supernet_accuracy": 0.7, "random_accuracy_mean": 0.6}

    def retrain(config, dataset, searched, out, variant):
        size, accuracy = results[config.search.budget.size_mib]
        return {"size_mib": size, "macs": 1e8, "validation_accuracy": accuracy}

    monkeypatch.setattr(stages, "search", search)
    monkeypatch.setattr(stages, "retrain", retrain)
    monkeypatch.setattr(sweep, "_validation_scans", lambda dataset: 240)
    return asked


def test_a_sweep_changes_the_budget_alone_and_marks_what_nothing_smaller_equals(found, tmp_path):
    config = parse({"search": {"steps": 7, "budget": {"macs": 1e9}}})
    rows = sweep.sweep(config, tmp_path / "dataset", tmp_path, "S", [4.0, 2.5, 3.0, 3.0])
    assert found == [(size, 7, str(tmp_path / f"{size:g}/search/S")) for size in (2.5, 3.0, 4.0)]
    assert [row["front"] for row in rows] == [True, False, True]
    assert json.loads((tmp_path / "front.json").read_text())["rows"] == rows
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert config.search.budget.size_mib == Config().search.budget.size_mib


def test_sizes_are_positive_numbers():
    assert sweep.sizes("2.5, 3,4") == [2.5, 3.0, 4.0]
    for text in ("", "3,", "two", "0", "-1,2"):
        with pytest.raises(UsageError, match="expected sizes in MiB, separated by commas"):
            sweep.sizes(text)
