"""The committed table of benchmarks says what the committed results say."""

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as headlines
from benchmarks import scaling


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(headlines, "RESULTS", tmp_path)
    monkeypatch.setattr(headlines, "_committed", lambda _: None)
    return tmp_path


def test_the_page_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headlines, "_committed", lambda _: None)
    page = headlines.PAGE.read_text()
    assert headlines.with_table(page, headlines.table()) == page, "run `python -m benchmarks --write`"
    slopes = headlines.SCALING.read_text()
    assert headlines.with_table(slopes, scaling.table(headlines.RESULTS)) == slopes, (
        "run `python -m benchmarks --write`"
    )


def test_what_is_missed_and_what_was_not_measured_is_said(results: Path) -> None:
    machine = {"processor": "P", "cores": 2}
    found = {"machine": machine, "date": "2026-01-02", "coverage_by_patient": 0.95, "false_positives": 0.09}
    (results / "intervals.json").write_text(json.dumps(found))
    rows = [line for line in headlines.table().splitlines() if "`intervals`" in line]
    assert "| 0.95 | 0.93 to 0.97 |" in rows[0]
    assert "| 0.09 **missed** | 0.04 to 0.06 |" in rows[1]
    assert all(row.endswith("| 2 cores of P, 2026-01-02 |") for row in rows)
    assert "not measured" in next(line for line in headlines.table().splitlines() if "`audit`" in line)


def test_every_benchmark_with_a_target_is_a_module() -> None:
    folder = Path(headlines.__file__).parent
    assert {h.source for h in headlines.HEADLINES} <= {path.stem for path in folder.glob("*.py")}
