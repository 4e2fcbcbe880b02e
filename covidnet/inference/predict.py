"""Classify scans with a bundle: one dictionary per scan, in order, the next scan decoded while this one is computed.

    for result in predict([Path("scan.nii.gz")], Path("results/export/bundle")):
        print(result["label"], result["probabilities"], result["flags"])

Nothing here imports torch: a cold start takes well under two seconds.
"""

import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from covidnet.data.preprocess import NO_LUNGS, Prepared, Spec, box_to_scan, prepare
from covidnet.data.scan import Scan
from covidnet.data.sources import read_scan
from covidnet.errors import CovidnetError
from covidnet.evaluation.calibration import energy
from covidnet.export.bundle import Bundle
from covidnet.inference import maps
from covidnet.inference.engine import Device, Name, Outputs, load

OUT_OF_DISTRIBUTION, NO_LUNGS_FOUND = "out-of-distribution", "no-lungs-found"
DECODERS = 2  # threads, so scans in memory beside the current one


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
    device: Device = "auto",
    engine: Name = "auto",
) -> Iterator[dict[str, Any]]:
    """Classify scans, one after the other.

    Args:
        paths: scans as `covidnet.data.sources.read_scan` takes them.
        bundle: folder that `covidnet export` wrote.
        explain: folder for the predicted class's map of each scan, ``<ordinal>_<label>.png`` or of another format. File
            names hold nothing of the scan's own name.
        formats: of `covidnet.inference.maps`.
        device: see `covidnet.inference.engine.load`.
        engine: see `covidnet.inference.engine.load`.

    Yields:
        per scan its number ``scan`` among ``paths`` (from 1; a path may carry a patient's name), what `interpret` says,
        ``seconds`` of ``decode``, ``preprocess`` and ``inference``, the version of the ``bundle``, and where asked for
        ``overlays`` (format to file) and ``overlay`` (the PNG), or ``explain_error`` where the scan has no map in such a
        format. A scan that can't be read: ``scan`` and ``error``.

    Raises:
        CovidnetError: the bundle is damaged, or the engine refuses it.
        UsageError: the engine or the GPU isn't there.
    """
    opened = Bundle.load(Path(bundle))
    spec = Spec.from_dict(opened.preprocess)
    maps.require(formats)
    network = load(
        opened, device, engine
    )  # before the decoders start: importing an engine beside them was seen to hang
    with ThreadPoolExecutor(DECODERS, thread_name_prefix="decode") as pool:
        decoding = _decode_ahead(pool, map(Path, paths), spec, keep_scan=explain is not None)
        for ordinal, (path, future) in enumerate(decoding, start=1):
            try:
                decoded = future.result()
            except (CovidnetError, OSError) as error:
                yield {"scan": ordinal, "error": _message(error)}
                continue
            started = time.perf_counter()
            outputs = network.run(decoded.prepared.volume[None, None])  # (1, 1, D, H, W)
            seconds = {**decoded.seconds, "inference": time.perf_counter() - started}
            result = {
                "scan": ordinal,
                **interpret(outputs.logits[0], outputs.probabilities[0], decoded.prepared, opened),
                "seconds": {stage: round(value, 4) for stage, value in seconds.items()},
                "bundle": opened.version,
            }
            if explain is not None:
                name = f"{ordinal:04d}_{re.sub(r'[^A-Za-z0-9.-]+', '_', result['label'])}"
                explained = _explained(path, decoded, outputs, result, opened, spec)
                try:
                    result["overlays"] = maps.write(explain, name, formats, explained)
                    result |= {"overlay": result["overlays"]["png"]} if "png" in formats else {}
                except CovidnetError as error:
                    result["explain_error"] = str(error)
            yield result


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


def _decode_ahead(
    pool: ThreadPoolExecutor, paths: Iterator[Path], spec: Spec, *, keep_scan: bool
) -> Iterator[tuple[Path, Future[_Decoded]]]:
    """Start decoding at once, in order, never more than `DECODERS` scans beside the one handed out."""

    def submitted(count: int) -> Iterator[tuple[Path, Future[_Decoded]]]:
        return ((path, pool.submit(_decode, path, spec, keep_scan)) for path in islice(paths, count))

    waiting = deque(submitted(DECODERS))

    def handed_out() -> Iterator[tuple[Path, Future[_Decoded]]]:
        while waiting:
            yield waiting.popleft()
            waiting.extend(submitted(1))

    return handed_out()


def _decode(path: Path, spec: Spec, keep_scan: bool) -> _Decoded:
    started = time.perf_counter()
    scan = read_scan(path)
    read = time.perf_counter()
    prepared = prepare(scan, spec)
    seconds = {"decode": read - started, "preprocess": time.perf_counter() - read}
    return _Decoded(prepared, scan if keep_scan else None, seconds)


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
