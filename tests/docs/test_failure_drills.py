"""Every drill of the page is done by tests that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DRILLS = dict(
    re.findall(r"^## (.+?)\n(.+?)(?=^## |\Z)", (ROOT / "docs/failure-drills.md").read_text(), re.M | re.S)
)  # fmt: skip
ASKED = (
    "kill -9",
    "SIGTERM",
    "Ctrl-C",
    "Full disk",
    "Read-only",
    "dataset",
    "cache",
    "bundle",
    "S3",
    "memory",
    "Clock",
)


@pytest.mark.parametrize("drill", DRILLS)
def test_a_drill_shows_what_to_do_and_what_is_seen_and_names_tests_that_exist(drill: str) -> None:
    text = DRILLS[drill]
    assert re.search(r"^    \S", text, re.M)
    assert "```text\n" in text
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert named
    for file, name in named:
        assert re.search(rf"^(async )?(def|class) {name}\b", (ROOT / file).read_text(), re.M), f"{file} has no {name}"


def test_there_is_a_drill_for_every_failure() -> None:
    for failure in ASKED:
        assert [title for title in DRILLS if failure in title], failure
