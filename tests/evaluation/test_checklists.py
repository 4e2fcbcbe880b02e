"""Checklists answer from facts and leave the rest open."""

from dataclasses import replace
from pathlib import Path

import pytest
from test_report import full, minimal

from covidnet.evaluation import checklists
from covidnet.evaluation.subgroups import Subgroup


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


def test_facts_are_those_of_the_winner() -> None:
    context = full()
    winner, known = context.candidates[0], checklists.facts(context)
    low, high = winner.intervals["accuracy"] or (0, 0)
    assert known["performance"].startswith(f"accuracy {winner.test['accuracy']:.3f} ({low:.3f} to {high:.3f});")
    assert known["technology"].startswith("deep learning: CovidNet3D-S,")
    assert known["model"].startswith("CovidNet3D-S: 917,504 parameters (3.50 MiB), 1e+09")
    assert known["goal"].endswith("(NCP, CP, Normal) and comparison with 1 other models")
    assert known["calibration"].endswith("T = 1.30")
    assert known["internal"].startswith("90 test scans, read with 0 set(s) of models")
    assert known["statistics"].startswith("95% percentile intervals")
    assert known["numbers"].endswith("test: 6 scans of 6 patients; left out on reading: 2 scans")
    assert known["exclusion"].endswith(": 2 x too few slices")
    assert known["software"] == "numpy 2.0"
    assert known["availability"].endswith("revision abc")


def test_facts_that_need_two_things_are_open_where_one_is_missing() -> None:
    context = full()
    assert context.dataset is not None

    def with_facts(**facts: str) -> dict[str, str]:
        return checklists.facts(replace(context, dataset=replace(context.dataset, facts=facts)))

    both = with_facts(volume="8 x 16 x 16 voxels", window="-1000 to 400 HU")
    assert both["preprocessing"].endswith("resized to 8 x 16 x 16 voxels, window -1000 to 400 HU")
    assert "preprocessing" not in with_facts(volume="8 x 16 x 16 voxels")
    assert "preprocessing" not in with_facts(window="-1000 to 400 HU")
    assert "source" not in both


def test_an_audit_that_found_nothing_is_an_answer_and_none_is_none() -> None:
    assert "disjoint" not in checklists.facts(replace(full(), audit=None))
    assert checklists.facts(replace(full(), audit=[]))["disjoint"] == "patients (audited); the audit found nothing"
    assert checklists.facts(replace(full(), audit=["a leak"]))["disjoint"] == "patients (audited); a leak"


def test_a_withheld_interval_and_nothing_left_out_are_said() -> None:
    context = full()
    assert context.dataset is not None
    bare = replace(context.candidates[0], intervals={})
    known = checklists.facts(
        replace(context, candidates=[bare, context.candidates[1]], dataset=replace(context.dataset, rejected={}))
    )
    assert "(too few patients for an interval)" in known["performance"]
    assert known["exclusion"].endswith("none was left out")


def test_training_tells_its_settings_and_the_seed_and_subgroups_their_columns(tmp_path: Path) -> None:
    groups = [Subgroup(name, value, 5, 5, 1.0, None, 1.0, None) for name in ("site", "source") for value in "ab"]
    context = replace(full(), provenance={"parameters": {"training": {"lr": 0.1}, "seed": 7}}, subgroups=groups)
    known = checklists.facts(context)
    assert known["training"].endswith("lr 0.1; seed 7")
    assert known["subgroups"] == "by site, source: see the report's table"
    checklists.write(tmp_path, context)
    for name in ("CLAIM.md", "TRIPOD-AI.md"):
        text = (tmp_path / name).read_text()
        answered = sum(answer != checklists.OPEN for answer in rows(text).values())
        assert f"{answered} of {len(rows(text))} items are answered" in text
