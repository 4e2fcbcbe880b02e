"""What is planted, and that a test that looks notices it."""

from pathlib import Path

import pytest

from benchmarks.mutation import EQUIVALENT, ROOT, mutants, score, survives, why_equivalent

SOURCE = """\
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

DRAW = lambda: np.random.default_rng(0)
FOREST = lambda: RandomForestClassifier(random_state=0)

def clipped(value: int = 3) -> "tuple[int, 4]":
    if not value < 7 and value:
        return value + 1
    return 7
"""


def test_every_kind_of_mistake_is_planted_once_and_annotations_and_seeds_are_left_alone() -> None:
    planted = {(mutant.line, mutant.was, mutant.becomes) for mutant in mutants(SOURCE)}
    assert planted == {
        (9, "3", "4"),
        (10, "not value < 7 and value", "not value < 7 or value"),
        (10, "not value < 7", "not not value < 7"),
        (10, "value < 7", "value <= 7"),
        (10, "7", "8"),
        (11, "return value + 1", "return None"),
        (11, "value + 1", "value - 1"),
        (11, "1", "2"),
        (12, "7", "8"),
    }
    for mutant in mutants(SOURCE):
        compile(mutant.source, "mutant", "exec")


@pytest.mark.parametrize(("looks", "lives"), [("clipped(9) == 10", False), ("True", True)])
def test_a_mutant_lives_where_no_test_looks(tmp_path: Path, looks: str, lives: bool) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "clip.py").write_text(SOURCE)
    (tmp_path / "tests" / "test_it.py").write_text(f"from clip import clipped\n\ndef test_it():\n    assert {looks}\n")
    mutant = next(mutant for mutant in mutants(SOURCE) if mutant.becomes == "value - 1")
    assert survives("clip.py", mutant.source, tmp_path, "tests", 60) is lives
    assert (tmp_path / "clip.py").read_text() == SOURCE


def test_tests_that_cannot_run_kill_nothing(tmp_path: Path) -> None:
    (tmp_path / "clip.py").write_text(SOURCE)
    with pytest.raises(RuntimeError, match=r"no_such_file\.py .* did not run"):
        survives("clip.py", SOURCE, tmp_path, "no_such_file.py", 60)
    assert (tmp_path / "clip.py").read_text() == SOURCE


def test_the_score_leaves_out_survivors_that_mean_the_same() -> None:
    groups = [{"planted": 10, "killed": 7, "equivalent": 2}, {"planted": 10, "killed": 9, "equivalent": 0}]
    assert score(groups) == pytest.approx(16 / 18)


def test_every_mutant_that_is_said_to_mean_the_same_is_still_there() -> None:
    for module, piece, was, becomes in EQUIVALENT:
        source = (ROOT / module).read_text()
        found = [m for m in mutants(source) if (m.was, m.becomes) == (was, becomes) and why_equivalent(module, m)]
        assert found, f"{module}: {piece}"
