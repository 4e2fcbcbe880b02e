"""`python -m serving --bundle DIR`: `covidnet serve`, as the image runs it."""

from functools import wraps
from typing import Any

import typer

from covidnet.cli.use import serve
from covidnet.errors import CovidnetError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@wraps(serve)
def main(**options: Any) -> None:
    try:
        serve(**options)
    except CovidnetError as error:
        typer.echo(f"covidnet: {error}", err=True)
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    app()
