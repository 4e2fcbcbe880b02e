"""Finished scans on disk: what each raw scan became, so that none is read twice.

A folder with `.records.jsonl` (a line per scan) and `scans.npy` (and `lesions.npy`) in the order of the lines that kept
their scan. The unfinished folder of a running ingest, a shard and a packed dataset are all of this one form, so that
resuming, merging and adding are one look-up. Files are read and written by row and never mapped: memory stays flat.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from covidnet.errors import CovidnetError

RECORDS = ".records.jsonl"
ARRAYS = ("scans", "lesions")
Size = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Record:
    """What a raw scan became.

    Args:
        key: of the scan's place, file names and sizes, and of everything else that its volume depends on.
        changed: of its files' times of change; another one means that the scan must be read again.
        reason: why it was rejected; empty: it was kept, and the other fields describe it as `packed.Row` does.
    """

    key: str
    changed: str
    reason: str = ""
    source: str = ""
    sha256: str = ""
    spacing: str = ""
    slices: int = 0
    warnings: str = ""


class Finished:
    """The finished scans of a folder.

    Args:
        folder: made where it isn't there.
        size: ``(D, H, W)`` of a row; a folder with rows of another size is emptied when it may be written to, else has
            nothing to offer.
    """

    def __init__(self, folder: Path, size: Size, *, writable: bool = False) -> None:
        self.folder, self.size = folder, size
        self.found: dict[str, tuple[Record, int | None]] = {}  # by key, with the row of a scan that was kept
        self._rows = 0
        arrays = [folder / f"{name}.npy" for name in ARRAYS]
        fits = all(_data_offset(path, size) for path in arrays if path.exists())
        if writable and not fits:
            for path in (*arrays, folder / RECORDS):
                path.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        if fits:
            self._load(mend=writable)

    def look_up(self, key: str, changed: str | None) -> Record | None:
        """The record of a scan; None where it isn't finished, or changed since (``changed`` None: never mind)."""
        record, _ = self.found.get(key, (None, None))
        return record if record and changed in (None, record.changed) else None

    def add(self, record: Record, volumes: Iterable[np.ndarray]) -> None:
        """Append a scan, voxels first, so that a line without voxels can't be.

        Args:
            volumes: its ``uint8`` arrays of ``size`` in the order of `ARRAYS`; none for a rejected scan.
        """
        row = None if record.reason else self._rows
        for name, volume in zip(ARRAYS, volumes, strict=False):
            path = self.folder / f"{name}.npy"
            if not path.exists():
                with path.open("wb") as stream:
                    _write_header(stream, 0, self.size)
            with path.open("r+b") as stream:
                stream.seek(self._position(path, self._rows))
                stream.write(volume.tobytes())
        with (self.folder / RECORDS).open("a") as stream:
            stream.write(json.dumps(asdict(record)) + "\n")
        self.found[record.key] = (record, row)
        self._rows += row is not None

    def read(self, name: str, key: str) -> bytes:
        """Voxels of a kept scan from one of the `ARRAYS`.

        Raises:
            CovidnetError: the array is shorter than its records say.
        """
        path = self.folder / f"{name}.npy"
        with path.open("rb") as stream:
            stream.seek(self._position(path, self.found[key][1] or 0))
            voxels = stream.read(prod(self.size))
        if len(voxels) != prod(self.size):
            raise CovidnetError(f"{path} is shorter than its records say; remove {self.folder} and ingest again")
        return voxels

    def has(self, name: str) -> bool:
        return (self.folder / f"{name}.npy").exists()

    def _position(self, path: Path, row: int) -> int:
        return (_data_offset(path, self.size) or 0) + row * prod(self.size)

    def _load(self, mend: bool) -> None:
        """Read the lines; a run that was killed may have left half of one at the end."""
        path = self.folder / RECORDS
        text = path.read_bytes() if path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if mend and whole != text:
            os.truncate(path, len(whole))
        for line in whole.splitlines():
            record = Record(**json.loads(line))
            self.found[record.key] = (record, None if record.reason else self._rows)
            self._rows += not record.reason


def pack(out: Path, found: list[tuple[Record, Finished]], size: Size) -> None:
    """Write the finished scans of any folders into one, in the order given; equal scans give equal bytes."""
    kept = [(record, store) for record, store in found if not record.reason]
    for name in ARRAYS:
        if kept and all(store.has(name) for _, store in kept):
            with (out / f"{name}.npy").open("wb") as stream:
                _write_header(stream, len(kept), size)
                stream.writelines(store.read(name, record.key) for record, store in kept)
    with (out / RECORDS).open("w") as lines:
        lines.writelines(json.dumps(asdict(record)) + "\n" for record, _ in found)


def _write_header(stream: BinaryIO, count: int, size: Size) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *size)}
    np.lib.format.write_array_header_1_0(stream, header)


def _data_offset(path: Path, size: Size) -> int | None:
    """Where the rows begin; None for an array of another size."""
    with path.open("rb") as stream:
        np.lib.format.read_magic(stream)
        (_, *found), _, _ = np.lib.format.read_array_header_1_0(stream)
        return stream.tell() if tuple(found) == tuple(size) else None
