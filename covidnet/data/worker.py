"""One scan at a time in processes of their own: a crash, a hang or a blow-up of a decoder costs that scan and no other.

Nothing that a decoder prints is shown (it quotes file names and header values), and what a zip unpacks lies in a folder
that goes away with the run, however the process ends.
"""

import multiprocessing
import os
import resource
import signal
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from pebble import ProcessExpired, ProcessPool

from covidnet import memory
from covidnet.config import Config
from covidnet.data.preprocess import Prepared, Spec, crop_and_resize, prepare
from covidnet.data.sources import ScanRef, read_scan
from covidnet.errors import ScanError, UsageError

KEPT_BYTES = 2**30  # of freed memory, at most: the next scan is as large, and read in a twelfth less time


@dataclass(frozen=True, slots=True)
class Ingested:
    """One scan as a worker hands it back; ``reason`` is set where it was rejected."""

    reason: str = ""
    prepared: Prepared | None = None
    lesions: np.ndarray | None = None
    source: str = ""
    slices: int = 0
    spacing_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)


def run(
    tasks: Iterable[tuple[int, ScanRef]], config: Config, spec: Spec, scratch: Path
) -> Iterator[tuple[int, Ingested]]:
    """Read and prepare scans, as many at once as there are workers; results come as they are ready.

    Args:
        tasks: index (of phantoms: what they are drawn from) and scan.
        scratch: folder for what is unpacked.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers fill the cores; BLAS threads of their own would fight
    data = config.data
    count = data.workers or os.cpu_count() or 1
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    limits = (str(scratch), int(data.memory_gib * 2**30))
    waiting, running = iter(tasks), dict[Future[Ingested], int]()
    pool = ProcessPool(count, initializer=_confine, initargs=limits, context=context)
    try:
        while True:
            for index, ref in islice(waiting, 2 * count - len(running)):
                task = pool.schedule(load, args=(index, ref, config, spec), timeout=data.seconds_per_scan)
                running[task] = index
            if not running:
                break
            for ended in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(ended), _outcome(ended, config)
    finally:
        pool.stop()
        pool.join()


def _outcome(task: Future[Ingested], config: Config) -> Ingested:
    try:
        return task.result()
    except TimeoutError:
        return Ingested(
            f"not read within {config.data.seconds_per_scan:g} s (data.seconds_per_scan); damaged or too large"
        )
    except MemoryError:
        return Ingested(
            f"needs more than {config.data.memory_gib:g} GiB of memory (data.memory_gib); damaged or too large"
        )
    except ProcessExpired as death:
        number = -(death.exitcode or 0)
        name = signal.Signals(number).name if number in set(signal.Signals) else f"exit code {death.exitcode}"
        return Ingested(f"the process that read it died ({name}): a decoder crashed or memory ran out; export it again")


def _confine(scratch: str, memory_bytes: int) -> None:
    """Start of a worker: no output, no core dump (it would hold patient data), a limit on memory."""
    memory.keep_freed(trim_bytes=KEPT_BYTES, mmap_bytes=KEPT_BYTES)
    tempfile.tempdir = scratch
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def load(index: int, ref: ScanRef, config: Config, spec: Spec) -> Ingested:
    """Read and prepare one scan; a scan that can't be used comes back with a reason."""
    try:
        return _load(index, ref, config, spec)
    except (ScanError, UsageError) as error:  # a UsageError here: the path went away since it was listed
        return Ingested(str(error))


def _load(index: int, ref: ScanRef, config: Config, spec: Spec) -> Ingested:
    data = config.data
    if data.source == "phantom":
        from covidnet.data.sources import phantom  # a third of a worker's imports, for phantoms alone

        made = phantom.generate(
            ref.label, seed=config.seed, index=index, difficulty=data.phantom.difficulty, detail=data.phantom.detail
        )
        scan, mask = made.scan, made.lesions
    else:
        if not ref.path.resolve().is_relative_to(Path(str(data.root)).resolve()):
            raise ScanError("lies outside of data.root (through a symbolic link or ..); copy the scan into it")
        scan, mask = read_scan(ref.path), None
    if scan.shape[0] < data.min_slices:
        raise ScanError(f"expected at least {data.min_slices} slices (data.min_slices), found {scan.shape[0]}")
    prepared = prepare(scan, spec)
    lesions = None
    if mask is not None:
        # a lesion smaller than a voxel of the packed volume still has to be there to be hit
        lesions = (crop_and_resize(mask.astype(np.float32), prepared.box, data.size) > 0.25).astype(np.uint8)
    return Ingested("", prepared, lesions, scan.format, scan.shape[0], scan.spacing_mm)
