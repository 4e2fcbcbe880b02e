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
from covidnet.data.scan import Intensity, Scan
from covidnet.data.sources import read_scan
from covidnet.errors import ScanError, fault_of_machine
from serving.errors import UnknownFormat, Unreadable

DEADLINE_S = 60
PROCESSES = 2  # at once
MEMORY_BYTES = 6 * 2**30  # address space of one process; a series of 1,000 slices takes 2 GiB
SERVER_BYTES = 2**30  # of a container's memory, what is left to the server itself
CGROUP_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
PICTURE_SIDE, PICTURE_VOXELS = 256, 2**24  # about what a screen shows, and at most what a browser is sent
HEAD_BYTES = 352  # of a NIfTI-1 header, the longest that `suffix` looks at
# MetaImage and NRRD headers may name other files to read, which must not be the server's own.
REFERRING = (".mha", ".mhd", ".nhdr", ".nrrd")

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["covidnet.data.preprocess", "covidnet.data.sources"])


@dataclass(frozen=True, slots=True)
class Picture:
    """A scan as a person looks at it, no larger than a screen needs.

    Args:
        voxels: ``int16 (D, H, W)``, Hounsfield units, or grey levels 0..255 where ``intensity`` is ``"display"``.
        spacing_mm: ``(z, y, x)``.
        intensity: of `Scan`.
        box: what the network sees of it, ``((z0, z1), (y0, y1), (x0, x1))``.
    """

    voxels: np.ndarray
    spacing_mm: tuple[float, float, float]
    intensity: Intensity
    box: Box


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the scan's voxels lie; the fields are those of `Scan`."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    orientation: str
    affine: np.ndarray | None


@dataclass(frozen=True, slots=True)
class Decoded:
    """A scan ready for the network.

    Args:
        prepared: what the network sees.
        geometry: of the whole scan.
        picture: the scan itself, where it shall be drawn.
        decode_s: seconds from file to voxels.
        preprocess_s: seconds from voxels to ``prepared``.
    """

    prepared: Prepared
    geometry: Geometry
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
    geometry = Geometry(scan.shape, scan.spacing_mm, scan.orientation, scan.affine)
    return Decoded(ready, geometry, _picture(scan, ready.box) if draw else None, decode_s, preprocess_s)


def ready(volume: np.ndarray) -> Decoded:
    """A volume ``uint8 (D, H, W)`` that was prepared elsewhere: the scan it came from isn't known."""
    depth, height, width = volume.shape
    prepared = Prepared(volume, ((0, depth), (0, height), (0, width)), {}, ())
    return Decoded(prepared, Geometry((depth, height, width), (0.0, 0.0, 0.0), "assumed", None), None, 0.0, 0.0)


def warm() -> None:
    """Start the server that decoding processes are forked from, which takes a second that no caller should wait for."""
    process = _processes.Process(target=os.getpid)
    process.start()
    process.join()


class Decoding:
    """Decodes and prepares one file in a fresh process.

    Args:
        path: alone in a folder, which the process may use for temporary files, and which the caller removes.
        spec: the bundle's preprocessing.
        draw: whether a picture is wanted.
    """

    def __init__(self, path: Path, spec: Spec, *, draw: bool) -> None:
        self._receiver, self._sender = _processes.Pipe(duplex=False)
        self._process = _processes.Process(target=_decode, args=(self._sender, path, spec, draw), daemon=True)
        self._given_up = False

    def run(self) -> Decoded:
        """Wait for the result; blocks, so call it from a thread.

        Raises:
            Unreadable: no usable chest CT, or the decoder crashed, took too long or too much memory.
            OSError: what a zip holds can't be written to disk, see `serving.errors.laying_down`.
        """
        if self._given_up:
            raise Unreadable("the request was given up before its file was read")
        self._process.start()
        self._sender.close()
        try:
            if not self._receiver.poll(DEADLINE_S):
                raise Unreadable(f"decoding took longer than {DEADLINE_S} s; send a smaller series")
            answer: Decoded | Exception = self._receiver.recv()
        except (EOFError, OSError):
            raise Unreadable("the decoder crashed on this file; it is damaged or not a chest CT") from None
        finally:
            self._process.kill()
            self._process.join()
            self._receiver.close()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stop(self) -> None:
        """End the process, from another thread, once nobody waits for the result any more."""
        self._given_up = True
        if self._process.pid is not None:
            self._process.kill()


def memory_limit(limit: Path = CGROUP_MEMORY_LIMIT) -> int:
    """Bytes of address space for one process: `MEMORY_BYTES`, or its share of the container's memory if that is less."""
    try:
        available = int(limit.read_text())
    except (OSError, ValueError):  # no cgroup, or "max"
        return MEMORY_BYTES
    return min(MEMORY_BYTES, max(2**30, (available - SERVER_BYTES) // PROCESSES))


def _decode(sender: Connection, path: Path, spec: Spec, draw: bool) -> None:
    """Body of the decoding process: sends a `Decoded`, or why there is none."""
    most_bytes = memory_limit()
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold patient data
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # decoders print what they find odd in a header, which would end up in the server's log
        os.dup2(nowhere, stream)
    tempfile.tempdir = str(path.parent)  # what a killed process leaves there, the caller removes
    start = time.perf_counter()
    try:
        _refuse_references(path)
        scan = read_scan(path)
        answer: Decoded | Exception = prepared(scan, spec, draw=draw, decode_s=time.perf_counter() - start)
    except (ScanError, Unreadable) as error:
        answer = Unreadable(str(error))
    except MemoryError:
        answer = Unreadable(f"the scan needs more than {most_bytes / 2**30:.1f} GiB to decode; send a smaller series")
    except Exception as error:  # decoders raise anything, and their texts may quote the file
        disk = isinstance(error, OSError) and fault_of_machine(error)
        reason = f"the file can't be decoded ({type(error).__name__}); it is damaged or not a chest CT"
        answer = error if disk else Unreadable(reason)
    sender.send(answer)


def _picture(scan: Scan, box: Box) -> Picture:
    """The mean of blocks of voxels, where the scan has more of them than a screen."""
    depth, height, width = scan.shape
    side = max(1, round(max(height, width) / PICTURE_SIDE))
    k = (-(-depth * (height // side) * (width // side) // PICTURE_VOXELS), side, side)
    shape = tuple(size // step for size, step in zip(scan.shape, k, strict=True))
    whole = scan.voxels[tuple(slice(0, size * step) for size, step in zip(shape, k, strict=True))]
    voxels = np.empty(shape, np.int16)
    for z in range(shape[0]):  # one at a time, since the sums take twice the memory
        blocks = whole[z * k[0] : (z + 1) * k[0]].reshape(k[0], shape[1], side, shape[2], side)
        voxels[z] = np.rint(blocks.mean((0, 2, 4), dtype=np.float32))
    spacing_mm = tuple(mm * step for mm, step in zip(scan.spacing_mm, k, strict=True))
    shrunk = (_shrunk(part, step, size) for part, step, size in zip(box, k, shape, strict=True))
    return Picture(voxels, spacing_mm, scan.intensity, tuple(shrunk))  # type: ignore[arg-type]


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
