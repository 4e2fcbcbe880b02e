"""Which engine is fastest for a bundle on this machine: measured once, recorded in the user's cache folder."""

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from covidnet.export.bundle import Bundle
from covidnet.inference import engine
from covidnet.inference.engine import Device, Name, Precision

RUNS = 5  # after one that warms up
PACKAGES = ("openvino", "onnxruntime-gpu", "onnxruntime", "tensorrt")


def recorded(bundle: Bundle, device: Device, precision: Precision, threads: int) -> dict[str, float] | None:
    """Milliseconds of one scan by engine, as `record` left them; None where nothing was measured yet."""
    path = _path(bundle, device, precision, threads)
    try:
        found = json.loads(path.read_text()) if path else None
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or not all(isinstance(ms, int | float) for ms in found.values()):
        return None
    return found


def record(bundle: Bundle, device: Device, precision: Precision, threads: int, times_ms: Mapping[str, float]) -> None:
    """Keep a measurement for `recorded`; does nothing where nothing can be written."""
    path = _path(bundle, device, precision, threads)
    if path is not None:
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(dict(times_ms)) + "\n")
        partial.replace(path)


def measure(
    bundle: Bundle, model: Path, device: Device, precision: Precision, threads: int, names: Sequence[Name]
) -> dict[str, float]:
    """Time one scan in each engine, taking turns, and record the medians in milliseconds."""
    loaded = {name: engine.open_model(model, device, name, threads, precision) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(1 + RUNS):
        for name, network in loaded.items():
            scan = np.zeros((1, 1, *network.size), np.uint8)
            started = time.perf_counter()
            network.run(scan)
            times[name].append((time.perf_counter() - started) * 1e3)
    medians = {name: float(np.median(values[1:])) for name, values in times.items()}
    record(bundle, device, precision, threads, medians)
    return medians


def _path(bundle: Bundle, device: Device, precision: Precision, threads: int) -> Path | None:
    """The record's file: another bundle, processor, thread count or engine version has another one."""
    folder = engine.cache_folder("engines")
    if folder is None:
        return None
    kind = "gpu" if device == "gpu" else "cpu"
    facts = [bundle.version, kind, precision, threads, len(os.sched_getaffinity(0)), processor(), versions()]
    return folder / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.json"


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
