"""Bytes of unknown origin to a prepared scan, in a process of its own.

DICOM and NIfTI decoders are large C libraries. Here one may crash, hang or ask for all memory, and the server answers
that the file can't be read; everything of the patient that the process held ends with it.
"""

import multiprocessing
import os
import resource
import tempfile
import time
import zipfile
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from covidnet.data.preprocess import Box, Prepared, Spec, prepare
from covidnet.data.scan import Scan
from covidnet.data.sources import read_scan
from covidnet.errors import ScanError
from serving.errors import UnknownFormat, Unreadable

DEADLINE_S = 60
MEMORY_BYTES = 6 * 2**30  # address space; a series of 1,000 slices takes 2 GiB
PICTURE_SIDE = 256  # pixels, at least; a 512 x 512 scan is halved
HEAD_BYTES = 352  # of a NIfTI-1 header, the longest that `suffix` looks at
# MetaImage and NRRD headers may name other files to read, which must not be the server's own.
REFERRING = (".mha", ".mhd", ".nhdr", ".nrrd")

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["covidnet.data.preprocess", "covidnet.data.sources"])


@dataclass(frozen=True, slots=True)
class Picture:
    """A scan as a person looks at it, no larger than a screen needs.

    Args:
        grey: ``uint8 (D, H, W)``, windowed.
        box: what the network sees of it, ``((z0, z1), (y0, y1), (x0, x1))``.
    """

    grey: np.ndarray
    box: Box


@dataclass(frozen=True, slots=True)
class Decoded:
    """A scan ready for the network.

    Args:
        prepared: what the network sees.
        picture: the scan's slices, where they shall be drawn.
        decode_s: seconds from file to voxels.
        preprocess_s: seconds from voxels to ``prepared``.
    """

    prepared: Prepared
    picture: Picture | None
    decode_s: float
    preprocess_s: float


def suffix(head: bytes) -> str:
    """The file ending that belongs to the first bytes of an upload: the client's file name is never used.

    Raises:
        UnknownFormat: neither NIfTI, nor zip, nor DICOM.
    """
    if head[:2] == b"\x1f\x8b":
        return ".nii.gz"
    if head[:4] == b"PK\x03\x04":
        return ".zip"
    if head[128:132] == b"DICM":
        return ".dcm"
    if head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] == b"n+2\0":
        return ".nii"
    raise UnknownFormat("expected the bytes of a NIfTI file (.nii, .nii.gz) or of a zip of one DICOM series")


def prepared(scan: Scan, spec: Spec, *, draw: bool, decode_s: float = 0.0) -> Decoded:
    """Prepare a scan that is in memory already.

    Raises:
        Unreadable: it can't be prepared.
    """
    start = time.perf_counter()
    try:
        ready = prepare(scan, spec)
    except ScanError as error:
        raise Unreadable(str(error)) from None
    preprocess_s = time.perf_counter() - start
    return Decoded(ready, _picture(scan, ready.box, spec) if draw else None, decode_s, preprocess_s)


def read(path: Path, spec: Spec, *, draw: bool) -> Decoded:
    """Decode and prepare a file in a fresh process; blocks, so call it from a thread.

    Args:
        path: alone in a folder, which the process may use for temporary files, and which the caller removes.
        spec: the bundle's preprocessing.
        draw: whether a picture is wanted.

    Raises:
        Unreadable: no usable chest CT, or the decoder crashed, took too long or too much memory.
    """
    receiver, sender = _processes.Pipe(duplex=False)
    process = _processes.Process(target=_decode, args=(sender, path, spec, draw), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(DEADLINE_S):
            raise Unreadable(f"decoding took longer than {DEADLINE_S} s; send a smaller series")
        answer: Decoded | str = receiver.recv()
    except (EOFError, OSError):
        raise Unreadable("the decoder crashed on this file; it is damaged or not a chest CT") from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if isinstance(answer, str):
        raise Unreadable(answer)
    return answer


def _decode(sender: Connection, path: Path, spec: Spec, draw: bool) -> None:
    """Body of the decoding process: sends a `Decoded`, or the reason why there is none."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold patient data
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # decoders print what they find odd in a header, which would end up in the server's log
        os.dup2(nowhere, stream)
    tempfile.tempdir = str(path.parent)  # what a killed process leaves there, the caller removes
    start = time.perf_counter()
    try:
        _refuse_references(path)
        scan = read_scan(path)
        answer: Decoded | str = prepared(scan, spec, draw=draw, decode_s=time.perf_counter() - start)
    except (ScanError, Unreadable) as error:
        answer = str(error)
    except MemoryError:
        answer = f"the scan needs more than {MEMORY_BYTES // 2**30} GiB to decode; send a smaller series"
    except Exception as error:  # decoders raise anything, and their texts may quote the file
        answer = f"the file can't be decoded ({type(error).__name__}); it is damaged or not a chest CT"
    sender.send(answer)


def _picture(scan: Scan, box: Box, spec: Spec) -> Picture:
    """Windowed, and averaged over blocks of k x k pixels where slices are larger than a screen needs."""
    height, width = scan.shape[1:]
    k = max(1, max(height, width) // PICTURE_SIDE)
    rows, columns = height // k, width // k
    total = np.zeros((scan.shape[0], rows, columns), np.int32)
    for i in range(k):
        for j in range(k):
            total += scan.voxels[:, i : rows * k : k, j : columns * k : k]
    low, high = spec.window_hu if scan.intensity == "hu" else (0.0, 255.0)
    grey = np.rint(np.clip((total / (k * k) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    return Picture(grey, (box[0], _shrunk(box[1], k, rows), _shrunk(box[2], k, columns)))


def _shrunk(side: tuple[int, int], k: int, size: int) -> tuple[int, int]:
    start = min(side[0] // k, size - 1)
    return start, max(start + 1, min(side[1] // k, size))


def _refuse_references(path: Path) -> None:
    """Refuse a zip with a format whose header may point outside of the zip.

    Raises:
        ScanError: it has such a member, or isn't a zip.
    """
    if path.suffix != ".zip":
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        raise ScanError("the zip can't be read; pack the series again") from None
    if any(name.lower().endswith(REFERRING) for name in names):
        raise ScanError("the zip has a MetaImage or NRRD file, which is not taken here; send NIfTI or DICOM")
