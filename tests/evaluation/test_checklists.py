"""Checklists answer from facts and leave the rest open."""

from pathlib import Path

import pytest
from test_report import full, minimal

from covidnet.evaluation import checklists


def rows(text: str) -> dict[str, str]:
    cells = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and not line.startswith("| item")]
    return {cell[0].removeprefix("| "): cell[2].removesuffix(" |") for cell in cells}


def test_every_item_is_there_and_what_nobody_told_is_open(tmp_path: Path) -> None:
    checklists.write(tmp_path, full())
    claim, tripod = rows((tmp_path / "CLAIM.md").read_text()), rows((tmp_path / "TRIPOD-AI.md").read_text())
    assert list(claim) == [str(n) for n in range(1, 45)]
    assert {item.rstrip("abcdefg") for item in tripod} == {str(n) for n in range(1, 28)}
    for item in ("5", "11", "14", "34", "44"):
        assert claim[item] == checklists.OPEN
    assert claim["7"] == "phantom"
    assert claim["35"].startswith("train: 33 scans of 33 patients")
    assert tripod["17"] == checklists.OPEN


def test_fewer_facts_leave_more_open() -> None:
    few, more = checklists.facts(minimal()), checklists.facts(full())
    assert set(few) < set(more)
    assert "source" not in few


@pytest.mark.parametrize("items", [checklists.CLAIM, checklists.TRIPOD])
def test_every_key_is_one_that_can_be_answered(items: tuple[checklists.Item, ...]) -> None:
    answered = set(checklists.facts(full())) | {"preprocessing", "training", "subgroups", "disjoint"}
    assert {key for _, _, key in items if key} <= answered
