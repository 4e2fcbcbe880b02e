"""`covidnet <verb>`: load params.yaml, call one stage, say where the results lie.

Every heavy import sits inside its verb, so that `covidnet --help` answers at once.
"""

import os
import sys
from pathlib import Path

from covidnet.cli import bundle, data, design, use  # noqa: F401 - the verbs, in the order of the help
from covidnet.cli.options import app
from covidnet.errors import CovidnetError
from covidnet.progress import first_process

app.add_typer(bundle.app)

__all__ = ["app", "main"]


def main() -> None:
    """Entry point: faults a user can mend end with a message, never with a traceback."""
    if not first_process():
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process runs
    try:
        app()
    except CovidnetError as error:
        print(f"covidnet: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("covidnet: interrupted", file=sys.stderr)
        sys.exit(130)
