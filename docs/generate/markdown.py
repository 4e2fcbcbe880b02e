"""Tables and code of a generated page."""

from collections.abc import Iterable, Sequence

NOTE = "<!-- written by `make reference`; don't edit -->\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; `|` in cells is escaped."""
    lines = [list(head), ["---"] * len(head), *(list(row) for row in rows)]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def code(text: str, language: str = "bash") -> str:
    """A fenced block."""
    return f"```{language}\n{text}\n```\n"


def explained(names: Iterable[str], about: dict[str, str]) -> list[tuple[str, str]]:
    """Each name of the code with what is said of it.

    Raises:
        KeyError: the code has a name that nothing is said of, or something is said of a name that it hasn't.
    """
    names = list(names)
    if missing := set(names) ^ set(about):
        raise KeyError(f"docs/generate: explain these, or drop them: {sorted(missing)}")
    return [(f"`{name}`", about[name]) for name in names]
