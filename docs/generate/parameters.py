"""params.md: every key of `params.yaml`, from its schema."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from covidnet import config
from docs.generate.markdown import NOTE, table

_PARAMS = Path(__file__).parents[2] / "params.yaml"
_BOUNDS = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}"}


def page() -> str:
    """The whole page.

    Raises:
        KeyError: a key has neither a description in the schema nor a comment in `params.yaml`.
    """
    schema, demo = config.Config.model_json_schema(), config.load(_PARAMS).model_dump(mode="json")
    paper = dict(_leaves(yaml.safe_load(_PARAMS.read_text())["profiles"]["paper"]))
    comments = dict(_comments(_PARAMS.read_text()))
    sections: dict[str, list[tuple[str, str, str, str, str]]] = {"": []}
    for key, part in _keys(schema, schema["$defs"]):
        section = key.partition(".")[0] if "." in key else ""
        default = _value(_at(demo, key))
        other = _value(paper[key]) if key in paper else ""
        row = (
            f"`{key}`",
            _type(part, schema["$defs"]),
            default,
            other,
            part.get("description") or comments.get(key, ""),
        )
        sections.setdefault(section, []).append(row)
    parts = [
        "# params.yaml\n",
        NOTE,
        "The only configuration. `-S key.sub=value` overrides any of it on every verb; `-S profile=paper` puts the column "
        "*paper* over the defaults. An unknown key is an error that names the nearest one.\n",
    ]
    for section, rows in sections.items():
        title = f"## {section}\n" if section else "## Top level\n"
        parts += [title, table(("key", "type", "default (demo)", "paper", "what"), rows)]
    return "\n".join(parts)


def _keys(
    schema: dict[str, Any], definitions: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every leaf with its dotted key."""
    for name, part in schema["properties"].items():
        inner = _resolved(part, definitions)
        if "properties" in inner:
            yield from _keys(inner, definitions, f"{prefix}{name}.")
        else:
            yield prefix + name, part


def _at(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree[name]
    return tree


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _comments(text: str) -> Iterator[tuple[str, str]]:
    """Key and comment of the lines that have both."""
    above: list[tuple[int, str]] = []
    for indent, name, comment in re.findall(r"^( *)(\w+):[^#\n]*(?:# (.*))?$", text, re.M):
        above = [*((depth, key) for depth, key in above if depth < len(indent)), (len(indent), name)]
        if comment:
            yield ".".join(key for _, key in above), comment


def _resolved(part: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in part:
        found: dict[str, Any] = definitions[part["$ref"].rpartition("/")[2]]
        return found
    return part


def _type(part: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A type in a few words: ``one of a, b``, ``integer ≥ 1``, ``list of number``."""
    part = _resolved(part, definitions)
    if "anyOf" in part:
        return " or ".join(_type(choice, definitions) for choice in part["anyOf"])
    if "enum" in part:
        return "one of " + ", ".join(f"`{choice}`" for choice in part["enum"])
    if "const" in part:
        return f"`{part['const']}`"
    if part.get("type") == "array":
        if "prefixItems" in part:
            return "[" + ", ".join(_type(item, definitions) for item in part["prefixItems"]) + "]"
        return "list of " + _type(part["items"], definitions)
    if part.get("type") == "object":
        return "map of " + _type(part["additionalProperties"], definitions)
    bounds = [text.format(f"{part[name]:g}") for name, text in _BOUNDS.items() if name in part]
    return " ".join([part.get("type", "any"), ", ".join(bounds)]).strip()


def _value(value: Any) -> str:
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list | tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`"
