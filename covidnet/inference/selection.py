"""Which engine is fastest for a bundle on this machine: measured once, recorded in the user's cache folder."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from covidnet import folder
from covidnet.export.bundle import Bundle
from covidnet.inference import engine
from covidnet.inference.engine import Device, Name, Precision

RUNS = 5  # after one that warms up
REST_S = 0.05  # between engines that share the cores
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
        with folder.replacing(path, f".{os.getpid()}") as partly:
            partly.write_text(json.dumps(dict(times_ms)) + "\n")


def measure(
    bundle: Bundle, model: Path, device: Device, precision: Precision, threads: int, names: Sequence[Name]
) -> dict[str, float]:
    """Time one scan in each engine, taking turns, and record the medians in milliseconds."""
    loaded = {name: engine.open_model(model, device, name, threads, precision) for name in names}
    runs: dict[str, Callable[[], object]] = {
        name: partial(network.run, np.zeros((1, 1, *network.size), np.uint8)) for name, network in loaded.items()
    }
    medians = {
        name: float(np.median(times)) for name, times in take_turns(runs, warm_up=1, rounds=RUNS, rest_s=REST_S).items()
    }
    record(bundle, device, precision, threads, medians)
    return medians


def take_turns(
    runs: Mapping[str, Callable[[], object]], *, warm_up: int, rounds: int, seconds: float = 0.0, rest_s: float = 0.0
) -> dict[str, list[float]]:
    """Milliseconds of each run, in turns, so that a busy moment of the machine hits all of them alike.

    Args:
        runs: by name.
        warm_up: rounds that don't count.
        rounds: those that count, at least.
        seconds: of running after the warm-up, at least, of all together.
        rest_s: before each run, which is then made twice and timed the second time. Engines' threads spin on the cores
            for some milliseconds after a run, which would be counted against whoever comes next.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(warm_up):
        for run in runs.values():
            run()
    done, begun = 0, time.perf_counter()
    while done < rounds or time.perf_counter() - begun < seconds:
        for name, run in runs.items():
            if rest_s:
                time.sleep(rest_s)
                run()
            started = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - started) * 1e3)
        done += 1
    return times


def _path(bundle: Bundle, device: Device, precision: Precision, threads: int) -> Path | None:
    """The record's file: another bundle, processor, thread count or engine version has another one."""
    kind = "gpu" if device == "gpu" else "cpu"
    facts = [bundle.version, kind, precision, threads, len(os.sched_getaffinity(0)), processor(), versions()]
    return engine.cache_file("engines", facts)


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
