"""The errors a user meets: what was expected, what was found, how to mend it, and an exit code."""

import errno
import os
import re
from pathlib import Path

_DISK = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "the file system is read-only; mount it writable, or write elsewhere",
    errno.EIO: "the disk has input/output errors; look at it before anything is written again",
}
_MEMORY = re.compile(r"out of memory|(can't|[Ff]ailed to|[Uu]nable to) allocate|bad_alloc")


class CovidnetError(Exception):
    """A fault found in data, files or results; the CLI prints the message without a traceback and exits 1."""

    exit_code = 1


class UsageError(CovidnetError):
    """A wrong option, parameter or path given by the user; the CLI exits 2."""

    exit_code = 2


class ScanError(CovidnetError):
    """One scan can't be read or isn't a usable chest CT; `ingest` writes the message to `rejected.csv` and goes on.

    Messages never carry patient names, dates or UIDs.
    """


def fault_of_machine(error: BaseException, folder: Path | None = None) -> str | None:
    """What the machine lacked when ``error`` was raised, and what to do; None where the fault is another.

    Args:
        folder: written to at the time. torch, NumPy and safetensors lose the number of the system's error, so that a
            file system without a free block has to tell as much.
    """
    if isinstance(error, OSError) and error.errno in _DISK:
        return _DISK[error.errno]
    if os.strerror(errno.ENOSPC) in str(error) or (folder is not None and folder.is_dir() and _is_full(folder)):
        return _DISK[errno.ENOSPC]
    if isinstance(error, MemoryError) or _MEMORY.search(str(error)):
        return "memory ran out; lower the batch (training.batch, search.batch), or use a machine with more"
    return None


def _is_full(folder: Path) -> bool:
    return os.statvfs(folder).f_bavail == 0
