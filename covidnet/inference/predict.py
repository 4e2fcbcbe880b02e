"""Classify scans with a bundle: one dictionary per scan, in order, the next scan decoded while this one is computed.

    for result in predict([Path("scan.nii.gz")], Path("results/export/bundle")):
        print(result["label"], result["probabilities"], result["flags"])

Nothing here imports torch: a cold start takes well under two seconds. `covidnet.inference.many` keeps the answers.
"""

import os
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from covidnet.data.preprocess import NO_LUNGS, Prepared, Spec, box_to_scan, prepare
from covidnet.data.scan import Scan
from covidnet.data.sources import read_scan
from covidnet.errors import CovidnetError, ScanError, UsageError
from covidnet.evaluation.calibration import energy
from covidnet.export.bundle import Bundle
from covidnet.inference import maps
from covidnet.inference.engine import Device, Engine, Name, Outputs, Precision
from covidnet.inference.engine import prepare as prepare_engine

OUT_OF_DISTRIBUTION, NO_LUNGS_FOUND = "out-of-distribution", "no-lungs-found"
# Threads, so scans in memory beside the current one. Decompressing and resampling run outside of Python's lock.
DECODERS = min(8, max(2, len(os.sched_getaffinity(0))))
MEASURE_FROM = 1000  # scans: comparing the engines takes a second or two, in which fewer are half done


@dataclass(frozen=True, slots=True)
class _Decoded:
    """A scan ready for the network; the scan itself is kept only where it will be drawn."""

    prepared: Prepared
    scan: Scan | None
    seconds: dict[str, float]


def predict(
    paths: Iterable[Path],
    bundle: Path,
    explain: Path | None = None,
    *,
    formats: Sequence[str] = ("png",),
    ordinals: Iterable[int] | None = None,
    device: Device = "auto",
    engine: Name = "auto",
    precision: Precision = "float32",
    threads: int = 0,
) -> Iterator[dict[str, Any]]:
    """Classify scans in their order; several are decoded beside the one that the network works on.

    Args:
        paths: scans as `covidnet.data.sources.read_scan` takes them, or prepared volumes: ``.npy`` of uint8 and of the
            bundle's size, as a row of a packed dataset's `scans.npy` is.
        bundle: folder that `covidnet export` wrote.
        explain: folder for the predicted class's map of each scan, ``<ordinal>_<label>.png`` or of another format. File
            names hold nothing of the scan's own name.
        formats: of `covidnet.inference.maps`.
        ordinals: number of each scan in answers and file names; 1, 2, 3 and so on where not given.
        device: as ``engine``, ``precision`` and ``threads``: see `covidnet.inference.engine.load`.

    Yields:
        per scan its number ``scan`` (of ``ordinals``; a path may carry a patient's name), what `interpret` says,
        ``seconds`` of ``decode``, ``preprocess`` and ``inference``, the version of the ``bundle``, its ``precision`` if not
        float32, and where asked for ``overlays`` (format to file) and ``overlay`` (the PNG), or ``explain_error`` where
        the scan has no map in such a format. A scan that can't be read: ``scan`` and ``error``.

    Raises:
        CovidnetError: the bundle is damaged, or the engine refuses it.
        UsageError: the engine or the GPU isn't there.
    """
    opened = Bundle.load(Path(bundle))
    spec = Spec.from_dict(opened.preprocess)
    maps.require(formats)
    many = isinstance(paths, Sequence) and len(paths) >= MEASURE_FROM
    # imported before the decoders start, beside which it was seen to hang; opened while they are at work
    open_network = prepare_engine(opened, device, engine, threads, precision, measure=many)
    numbers = iter(ordinals) if ordinals is not None else count(1)
    pool = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
    try:
        decoding = _DecodeAhead(pool, map(Path, paths), spec, keep_scan=explain is not None)
        network = open_network()
        for group in decoding.groups(network.batch):
            for path, decoded, outputs in _run(network, group, alone=not decoding.waiting):
                ordinal = next(numbers)
                if isinstance(decoded, str):
                    yield {"scan": ordinal, "error": decoded}
                    continue
                result = {
                    "scan": ordinal,
                    **interpret(outputs.logits[0], outputs.probabilities[0], decoded.prepared, opened),
                    "seconds": {stage: round(value, 4) for stage, value in decoded.seconds.items()},
                    "bundle": opened.version,
                } | ({"precision": precision} if precision != "float32" else {})
                if explain is not None:
                    name = f"{ordinal:04d}_{re.sub(r'[^A-Za-z0-9.-]+', '_', result['label'])}"
                    explained = _explained(path, decoded, outputs, result, opened, spec)
                    try:
                        result["overlays"] = maps.write(explain, name, formats, explained)
                        result |= {"overlay": result["overlays"]["png"]} if "png" in formats else {}
                    except CovidnetError as error:
                        result["explain_error"] = str(error)
                yield result
    finally:  # of an interrupted run too: what is being decoded ends, what waits isn't begun
        pool.shutdown(wait=False, cancel_futures=True)


def interpret(logits: np.ndarray, probabilities: np.ndarray, prepared: Prepared, bundle: Bundle) -> dict[str, Any]:
    """What a network's answer for one scan means, JSON-ready; serving says the same.

    Args:
        logits: ``(K,)``.
        probabilities: ``(K,)``, calibrated.
        prepared: the scan.
        bundle: the one that answered.

    Returns:
        ``label``, ``probabilities`` by class, ``flags`` (``out-of-distribution`` where the novelty lies above 0,
        ``no-lungs-found``, then what the reader remarked), ``novelty`` (see `Detector.score`) and ``energy``, which is
        for monitoring.
    """
    score = bundle.calibration.novelty.score(prepared.volume)
    unlike = [OUT_OF_DISTRIBUTION] if score > 0 else []
    remarks = [NO_LUNGS_FOUND if warning == NO_LUNGS else warning for warning in prepared.warnings]
    return {
        "label": bundle.labels[int(probabilities.argmax())],
        "probabilities": {name: float(p) for name, p in zip(bundle.labels, probabilities, strict=True)},
        "flags": [*unlike, *sorted(remarks, key=lambda flag: flag != NO_LUNGS_FOUND)],
        "novelty": score,
        "energy": float(energy(logits[None], bundle.calibration.temperature)[0]),
    }


_Group = list[tuple[Path, "Future[_Decoded]"]]


class _DecodeAhead:
    """Scans that are being decoded from now on, in their order.

    As many prepared volumes wait as are being decoded, so that a slow scan at the head of the line doesn't idle the other
    decoders; scans that keep their voxels don't wait, for memory's sake.
    """

    def __init__(self, pool: ThreadPoolExecutor, paths: Iterator[Path], spec: Spec, *, keep_scan: bool) -> None:
        self._begun = ((path, pool.submit(_decode, path, spec, keep_scan)) for path in paths)
        self._ahead = DECODERS if keep_scan else 2 * DECODERS
        self.waiting = deque(islice(self._begun, self._ahead))

    def groups(self, batch: int) -> Iterator[_Group]:
        """Up to ``batch`` scans each: the next one, which may still be decoded, and those that are ready."""
        waiting = self.waiting
        waiting.extend(islice(self._begun, max(0, batch + 1 - self._ahead)))  # one more than a run takes
        while waiting:
            waiting[0][1].exception()  # waits
            group = [waiting.popleft()]
            while waiting and len(group) < batch and waiting[0][1].done():
                group.append(waiting.popleft())
            waiting.extend(islice(self._begun, len(group)))
            yield group


def _run(network: Engine, group: _Group, *, alone: bool) -> Iterator[tuple[Path, _Decoded | str, Outputs]]:
    """One run of the network for the scans of a group that could be read; a message in the place of the others.

    Not ``alone`` means that others are being decoded on the same cores meanwhile.
    """
    decoded: list[_Decoded | str] = []
    for _, future in group:
        try:
            decoded.append(future.result())
        except (CovidnetError, OSError) as error:
            decoded.append(_message(error))
    ready = [item for item in decoded if isinstance(item, _Decoded)]
    outputs = Outputs(*(np.empty(0, np.float32),) * 3)
    if ready:
        started = time.perf_counter()
        volumes = np.stack([item.prepared.volume for item in ready])[:, None]  # (B, 1, D, H, W)
        outputs = network.run(volumes, alone)
        seconds = (time.perf_counter() - started) / len(ready)
    row = 0
    for (path, _), item in zip(group, decoded, strict=True):
        if isinstance(item, _Decoded):
            item.seconds["inference"] = seconds
            part = slice(row, row + 1)
            yield path, item, Outputs(outputs.logits[part], outputs.probabilities[part], outputs.cam[part])
            row += 1
        else:
            yield path, item, outputs


def _decode(path: Path, spec: Spec, keep_scan: bool) -> _Decoded:
    started = time.perf_counter()
    if path.suffix == ".npy":
        scan, prepared = _read_prepared(path, spec)
        return _Decoded(prepared, scan, {"decode": time.perf_counter() - started, "preprocess": 0.0})
    scan = read_scan(path)
    read = time.perf_counter()
    prepared = prepare(scan, spec)
    seconds = {"decode": read - started, "preprocess": time.perf_counter() - read}
    return _Decoded(prepared, scan if keep_scan else None, seconds)


def _read_prepared(path: Path, spec: Spec) -> tuple[Scan, Prepared]:
    """A volume that is prepared already."""
    if not path.is_file():
        raise UsageError(f"no such file; expected a prepared volume of uint8 {spec.size}")
    try:
        volume = np.load(path, allow_pickle=False)
    except (ValueError, EOFError):
        raise ScanError("the .npy file can't be read; it is damaged, or holds Python objects") from None
    if not isinstance(volume, np.ndarray) or volume.dtype != np.uint8 or volume.shape != spec.size:
        found = f"{volume.dtype} {volume.shape}" if isinstance(volume, np.ndarray) else "several arrays"
        raise ScanError(f"expected a prepared volume of uint8 {spec.size} in the .npy file, found {found}")
    depth, height, width = spec.size
    scan = Scan(volume.astype(np.int16), (0.0, 0.0, 0.0), "display", "prepared", "assumed")
    return scan, Prepared(volume, ((0, depth), (0, height), (0, width)), {}, ())


def _explained(
    path: Path, decoded: _Decoded, outputs: Outputs, result: dict[str, Any], bundle: Bundle, spec: Spec
) -> maps.Explained:
    """The scan as it was read, with the map of the predicted class on its grid."""
    scan, label = decoded.scan, result["label"]
    if scan is None:
        raise ValueError("expected a decoded scan with its voxels kept")
    heat = box_to_scan(outputs.cam[0, bundle.labels.index(label)], decoded.prepared.box, scan.shape)  # (D, H, W)
    title = f"Predicted {label} ({result['probabilities'][label]:.2f})"
    if OUT_OF_DISTRIBUTION in result["flags"]:
        title += ", unlike the training data"
    return maps.Explained(path, scan, heat, label, title, spec.window_hu)


def _message(error: CovidnetError | OSError) -> str:
    """An error without the names of single files, which can identify a patient."""
    if isinstance(error, CovidnetError):
        return str(error)
    return f"the scan can't be read: {error.strerror or type(error).__name__}"
