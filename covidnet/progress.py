"""Progress of long work: a bar with the time left on a terminal, plain lines elsewhere. Always on stderr."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    def __call__(self, steps: int = 1, note: str = "") -> None: ...


def first_process() -> bool:
    """Whether this is the process that speaks, where `torchrun` started several."""
    return os.environ.get("RANK", "0") == "0"


def tell(message: str) -> None:
    """A line for the user beside the progress, once however many processes there are."""
    if first_process():
        print(message, file=sys.stderr, flush=True)


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Show progress of ``total`` steps, ``done`` of them finished in an earlier run.

    Yields:
        a function to call after each step, with a short note (the current loss, say).
    """
    if not first_process():
        yield lambda steps=1, note="": None
    elif sys.stderr.isatty():
        with _bar(title, total, done) as advance:
            yield advance
    else:
        yield _lines(title, total, done)


@contextmanager
def _bar(title: str, total: int, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")

        def advance(steps: int = 1, note: str = "") -> None:
            bar.update(task, advance=steps, note=note)

        yield advance


def _lines(title: str, total: int, done: int) -> Advance:
    """A line at the start, then at most one every ten seconds and one at the end."""
    start = last = time.monotonic()
    first = done
    print(f"{title}: {done}/{total}", file=sys.stderr, flush=True)

    def advance(steps: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += steps
        now = time.monotonic()
        if now - last < 10 and done < total:
            return
        last = now
        left = (now - start) / max(done - first, 1) * (total - done)
        text = f"{title}: {done}/{total}, {now - start:.0f} s, {left:.0f} s left"
        print(text + (f", {note}" if note else ""), file=sys.stderr, flush=True)

    return advance
