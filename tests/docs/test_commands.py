"""Every command that README and docs show is one that the programs take: verbs, options and values are parsed, not run."""

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.main import get_command

from covidnet import config
from covidnet.cli import app as covidnet
from docs.generate.commands import commands
from pipelines.__main__ import app as pipelines

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
VERBS: dict[str, Any] = {
    **dict(commands(get_command(covidnet), "covidnet")),
    **dict(commands(get_command(pipelines), "python -m pipelines")),
}
TARGETS = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
ENDS = re.compile(r"\s(?:&&?|\|\|?|;|>|2>|#)(?:\s|$)")


class Shown(NamedTuple):
    """A command line of a page."""

    page: str
    text: str


def shown() -> Iterator[Shown]:
    """The command lines of all code blocks, fenced or indented, with lines that go on joined."""
    for page in PAGES:
        text = re.sub(r"\\\n\s*", "", page.read_text())
        fenced = re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", text, re.M | re.S)
        indented = re.findall(r"^ {4,}(\S.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
        for line in [*(line for block in fenced for line in block.splitlines()), *indented]:
            bare = re.sub(r"^(?:[A-Z_]+=\S+ )+|^for .*; do ", "", line.strip().removeprefix("$ "))
            yield Shown(str(page.relative_to(ROOT)), ENDS.split(bare, maxsplit=1)[0].strip())


LINES = list(dict.fromkeys(shown()))


def of(*programs: str) -> list[Any]:
    chosen = [line for line in LINES if line.text.startswith(programs)]
    return [pytest.param(line.text, id=f"{line.page}: {line.text}"[:120]) for line in chosen]


def verb_of(words: list[str]) -> tuple[str, list[str]]:
    """The longest verb that the words begin with, and the rest."""
    for count in (4, 3, 2):
        if (name := " ".join(words[:count])) in VERBS:
            return name, words[count:]
    raise AssertionError(f"no such verb: {' '.join(words[:4])}")


@pytest.mark.parametrize("text", of("covidnet ", "python -m pipelines "))
def test_a_command_is_parsed_and_its_parameters_exist(text: str) -> None:
    name, rest = verb_of(shlex.split(text))
    context = VERBS[name].make_context(name, rest)
    if overrides := context.params.get("overrides"):
        config.load(ROOT / "params.yaml", overrides)


@pytest.mark.parametrize("text", of("python -m "))
def test_a_module_that_is_run_exists(text: str) -> None:
    module = shlex.split(text)[2]
    assert find_spec(module) is not None


@pytest.mark.parametrize("text", of("make "))
def test_a_make_target_exists(text: str) -> None:
    assert {word for word in shlex.split(text)[1:] if "=" not in word} <= TARGETS


def test_options_named_in_running_text_exist() -> None:
    """Between backticks, where it is no whole command."""
    for page in PAGES:
        for text in re.findall(r"`((?:covidnet|python -m pipelines) [^`\n]+)`", page.read_text()):
            words = text.split()
            if "VERB" in words:
                continue
            name, rest = verb_of(words)
            known = {option for param in VERBS[name].params for option in [*param.opts, *param.secondary_opts]}
            assert {word for word in rest if re.fullmatch(r"-S|--[a-z-]+", word)} <= known | {"--help"}, (
                f"{page}: {text}"
            )


def test_many_commands_were_found() -> None:
    assert len(of("covidnet ", "python -m pipelines ")) > 40
