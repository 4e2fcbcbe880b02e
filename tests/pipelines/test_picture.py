"""The picture of the graph shows the compiled graph."""

import re
from pathlib import Path

import pytest
import yaml

from pipelines.picture import Box, _frame, draw, waits

STAGES = {"ingest", "baseline", "search", "retrain", "evaluate", "export"}


@pytest.fixture(scope="module")
def spec(repository: Path):
    return next(iter(yaml.safe_load_all((repository / "pipelines" / "covidnet3d.yaml").read_text())))


def boxes(frame: Box):
    for box in frame.inside.values():
        yield box
        yield from boxes(box)


def test_the_committed_picture_is_that_of_the_committed_graph(repository: Path) -> None:
    drawn = draw(repository / "pipelines" / "covidnet3d.yaml", STAGES)
    assert (repository / "docs" / "images" / "pipeline.svg").read_text() == drawn, (
        "run `python -m pipelines compile --picture docs/images/pipeline.svg` and commit"
    )


def test_every_task_is_drawn_once_and_the_stages_of_dvc_are_filled(repository: Path, spec) -> None:
    svg = (repository / "docs" / "images" / "pipeline.svg").read_text()
    tasks = [name.removeprefix("exec-") for name in spec["deploymentSpec"]["executors"]]
    texts = re.findall(r'text-anchor="middle">([^<]+)<', svg)
    assert sorted(texts) == sorted(tasks)
    stages = set(yaml.safe_load((repository / "dvc.yaml").read_text())["stages"])
    assert set(re.findall(r'stroke="#3f8fc4"/><text [^>]+>([^<]+)<', svg)) == stages | {
        "also a stage of dvc.yaml, and the same code"
    }


def test_no_box_lies_over_another_and_every_arrow_goes_down(spec) -> None:
    whole = _frame("", spec["root"]["dag"], spec)
    for frame in [whole, *boxes(whole)]:
        inside = list(frame.inside.values())
        for i, one in enumerate(inside):
            assert one.x >= 0
            assert one.y >= 0
            assert one.x + one.width <= frame.width
            assert one.y + one.height <= frame.height
            for other in inside[i + 1 :]:
                apart = one.x + one.width < other.x or other.x + other.width < one.x
                assert apart or one.y + one.height < other.y or other.y + other.height < one.y
        for one, other in frame.arrows:
            assert frame.inside[one].y + frame.inside[one].height < frame.inside[other].y


def test_what_follows_from_other_arrows_is_left_out() -> None:
    dag = {"tasks": {"a": {}, "b": {"dependentTasks": ["a"]}, "c": {"dependentTasks": ["a", "b"]}}}
    assert waits(dag) == {"a": set(), "b": {"a"}, "c": {"b"}}
