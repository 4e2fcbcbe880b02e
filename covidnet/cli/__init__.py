"""`covidnet <verb>`: load params.yaml, call one stage, say where the results lie.

Every heavy import sits inside its verb, so that `covidnet --help` answers at once.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

from covidnet.cli import bundle, data, design, use  # noqa: F401 - the verbs, in the order of the help
from covidnet.cli.options import app
from covidnet.errors import CovidnetError, fault_of_machine
from covidnet.progress import first_process

app.add_typer(bundle.app)

__all__ = ["app", "main"]


def main() -> None:
    """Entry point: faults a user can mend end with a message, never with a traceback."""
    interrupted_by = _interruptions()
    if not first_process():
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process runs
    try:
        app()
    except CovidnetError as error:
        print(f"covidnet: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (OSError, MemoryError) as error:
        reason = fault_of_machine(error)
        if reason is None:
            raise
        print(f"covidnet: {reason}", file=sys.stderr)
        sys.exit(1)
    except SystemExit:
        if not interrupted_by:
            raise
        print("covidnet: interrupted; results are whole or as they were, run the same command again", file=sys.stderr)
        sys.exit(128 + interrupted_by[0])


def _interruptions() -> list[int]:
    """Let SIGTERM, which schedulers send, end a verb as Ctrl-C does; the signals that came will be in the list."""
    came: list[int] = []

    def interrupt(number: int, _: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, interrupt)
    return came
