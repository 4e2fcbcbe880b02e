"""Atomic, pickle-free-to-load checkpoints, and interruptions that wait for the end of a step."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from covidnet import folder
from covidnet.errors import CovidnetError

Interrupted = Callable[[], bool]


class Checkpoint:
    """One file that always holds a whole state.

    Args:
        path: the file; written beside it and renamed.
        every_s: least seconds between saves, so that a gigabyte of optimiser state isn't written at each step.
    """

    def __init__(self, path: Path, every_s: float = 30.0) -> None:
        self.path = path
        self.every_s = every_s
        self._last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None where there is none.

        Raises:
            CovidnetError: the file is damaged.
        """
        if not self.path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises a different type for each kind of damage
            raise CovidnetError(f"{self.path} is damaged ({type(error).__name__}); delete it to start over") from None
        return state

    def due(self) -> bool:
        """Whether the last save is long enough ago."""
        return time.monotonic() - self._last >= self.every_s

    def save(self, state: dict[str, Any]) -> None:
        """Replace the saved state, or leave the old one."""
        with folder.replacing(self.path) as partial:
            torch.save(state, partial)
        self._last = time.monotonic()

    def remove(self) -> None:
        """Drop the file once the stage's result is written."""
        self.path.unlink(missing_ok=True)


@contextmanager
def graceful() -> Iterator[Interrupted]:
    """Turn Ctrl-C and SIGTERM into a question that the loop asks after each step; a second signal acts at once.

    Yields:
        a function that says whether to save and stop.
    """
    asked = False

    def ask(number: int, _: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def stop(what: str) -> CovidnetError:
    """The error with which an interrupted stage ends."""
    return CovidnetError(f"{what} was interrupted; its state is saved, run the same command again to go on from there")
