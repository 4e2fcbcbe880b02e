"""cli.md: every verb of `covidnet` and `python -m pipelines`, from the programs themselves."""

import re
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from covidnet.cli import app as covidnet
from docs.generate.markdown import NOTE, code, table
from pipelines.__main__ import app as pipelines

_MARKUP = re.compile(r"\[/?[a-z ]*\]")


def page() -> str:
    """The whole page."""
    parts = [
        "# Command line\n",
        NOTE,
        "`covidnet` ends with exit code 0 on success, 1 for a fault that was found, 2 for wrong use. `--json` "
        "prints one JSON "
        "document on stdout and nothing else there. `--help` on any verb says what stands here.\n",
    ]
    for program, application in (("covidnet", covidnet), ("python -m pipelines", pipelines)):
        for name, command in commands(get_command(application), program):
            parts.append(_verb(name, command))
    return "\n".join(parts)


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every verb below a command with its full name, verbs of groups included."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for verb, inner in command.commands.items():
        yield from commands(inner, f"{name} {verb}")


def _verb(name: str, command: Any) -> str:
    context = command.make_context(name, [], resilient_parsing=True)
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option" and param.name != "help"]
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    parts = [f"## `{name}`\n", _plain(command.help or "") + "\n", code(usage, "text")]
    rows = [(f"`{argument.get_usage_pieces(context)[0]}`", _what(argument), "") for argument in arguments]
    rows += [(f"`{option.get_help_record(context)[0]}`", _what(option), _default(option)) for option in options]
    if rows:
        parts.append(table(("option", "what", "default"), rows))
    if examples := re.findall(r"^\s*\$ (.*)$", command.epilog or "", re.M):
        parts.append(code("\n".join(examples)))
    return "\n".join(parts)


def _what(param: Any) -> str:
    text = _plain(getattr(param, "help", None) or "")
    return f"{text} Required." if param.required and param.param_type_name == "option" else text


def _default(option: Any) -> str:
    if option.default in (None, "", (), []) or callable(option.default) or (option.is_flag and not option.default):
        return ""
    value = getattr(option.default, "value", option.default)
    text = str(value)
    return f"`{text.rpartition('/')[2]}`" if text.startswith("/") else f"`{text}`"


def _plain(text: str) -> str:
    return _MARKUP.sub("", text).strip()
