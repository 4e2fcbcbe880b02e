"""What verbs share: the application, options, and how a result is told."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from covidnet.errors import UsageError

app = typer.Typer(
    name="covidnet",
    help="Design, train, explain and export a small 3D classifier for your own chest CTs. "
    "Research software: no output is a diagnosis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Whole pipeline on one machine: [bold]dvc repro[/]. One verb: [bold]covidnet VERB --help[/] shows an example.",
)

Params = Annotated[Path | None, typer.Option("--params", help="Configuration file; default: params.yaml here.")]
Override = Annotated[
    list[str] | None,
    typer.Option("-S", "--set", metavar="KEY=VALUE", help="Override a parameter, e.g. -S search.steps=200."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder to write; default: under `results` of params.yaml.")]


def example(*lines: str) -> str:
    """A verb's examples, the end of its help."""
    return "[bold]Examples[/]\n\n" + "\n\n".join(f"  $ {line}" for line in lines)


def configuration(params: Path | None, overrides: list[str] | None) -> Any:
    """The `Config` of a parameter file and the command line's overrides."""
    from covidnet.config import load

    return load(params, overrides)


def say(result: dict[str, Any], out: Path, as_json: bool) -> None:
    """End of a stage: its numbers and where the results lie."""
    if as_json:
        print(json.dumps({"out": str(out), "metrics": result}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in result.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    console = Console()
    console.print(table)
    console.print(f"Results: {out}")


def paths_of(path: Path | None) -> list[Path]:
    """The scans that a file names, one per line."""
    if path is None:
        return []
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text()
    except OSError as error:
        raise UsageError(f"--list {path}: {error.strerror}") from None
    return [Path(line) for line in text.splitlines() if line.strip()]


def numbers_of(text: str, option: str) -> list[int]:
    """``1,4``."""
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise UsageError(f"{option} {text}: expected numbers separated by commas, e.g. 1,4")
    return [int(part) for part in text.split(",")]


def shard_of(text: str) -> tuple[int, int]:
    """``I/N``."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError(f"--shard {text}: expected I/N with I from 1 to N, e.g. 1/4")
    return int(number), int(count)


def strides_of(text: str) -> tuple[int, ...]:
    """Six strides, ``2,2,1,1,1,1``."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 6 or not set(parts) <= {"1", "2"}:
        raise UsageError(f"--strides {text}: expected six numbers of 1 or 2, e.g. 2,2,1,1,1,1")
    return tuple(int(part) for part in parts)


def size_of(text: str) -> tuple[int, int, int]:
    """``D,H,W``."""
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise UsageError(f"--input {text}: expected D,H,W, e.g. 16,64,64")
    depth, height, width = (int(part) for part in parts)
    return depth, height, width
