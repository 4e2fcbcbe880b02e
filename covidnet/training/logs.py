"""Figures of a run as it goes, for those who watch with DVCLive or TensorBoard: ``-S log=[tensorboard]``.

They lie beside the stages' outputs, under ``results/logs``: with their times in them they would make two equal runs differ.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from covidnet.errors import UsageError
from covidnet.progress import first_process


class Log(Protocol):
    def __call__(self, step: int, figures: Mapping[str, float]) -> None: ...


def silent(step: int, figures: Mapping[str, float]) -> None:
    """Log nothing."""


@contextmanager
def opened(names: Sequence[str], folder: Path) -> Iterator[Log]:
    """Log to a folder of each name under ``folder``; a run that goes on adds to what is there.

    Args:
        names: of ``dvclive`` and ``tensorboard``.

    Raises:
        UsageError: one of them isn't installed.
    """
    openers = {"dvclive": _dvclive, "tensorboard": _tensorboard}
    with ExitStack() as stack:
        logs = [stack.enter_context(openers[name](folder / name)) for name in names if first_process()]

        def log(step: int, figures: Mapping[str, float]) -> None:
            for each in logs:
                each(step, figures)

        yield log


@contextmanager
def _dvclive(folder: Path) -> Iterator[Log]:
    try:
        from dvclive import Live
    except ModuleNotFoundError:
        raise _missing("dvclive") from None
    with Live(str(folder), resume=True, save_dvc_exp=False, dvcyaml=None) as live:

        def log(step: int, figures: Mapping[str, float]) -> None:
            live.step = step
            for name, value in figures.items():
                live.log_metric(name, value)
            live.make_summary()

        yield log


@contextmanager
def _tensorboard(folder: Path) -> Iterator[Log]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        raise _missing("tensorboard") from None
    with SummaryWriter(str(folder)) as writer:

        def log(step: int, figures: Mapping[str, float]) -> None:
            for name, value in figures.items():
                writer.add_scalar(name, value, step)

        yield log


def _missing(name: str) -> UsageError:
    return UsageError(
        f"log: {name} is not installed; pip install 'covidnet3d[logs]', or take it out of params.yaml's log"
    )
