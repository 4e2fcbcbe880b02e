"""What this machine does with a bundle: latency, throughput and memory by engine, and where the time of a scan goes.

Every setting runs in a process of its own, so that its memory is its own and no engine's threads disturb another's.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from covidnet.data.preprocess import Spec, prepare
from covidnet.data.sources import phantom, read_scan
from covidnet.errors import CovidnetError, UsageError
from covidnet.export.bundle import Bundle
from covidnet.inference import engine, selection
from covidnet.inference.engine import PRECISIONS, Device, Name, Precision

DEMO_SCAN = (64, 256, 256)  # (D, H, W) of the synthetic scan that is decoded where none is given
LEAST_RUNS = 20


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table before it is measured."""

    engine: Name
    device: Device
    precision: Precision
    batch: int
    threads: int


def bench(
    bundle: Path, scan: Path | None, *, seconds: float, batches: Sequence[int], threads: Sequence[int], device: Device
) -> dict[str, Any]:
    """Measure every engine and accepted precision of this machine.

    Args:
        bundle: verified before anything runs.
        scan: what decoding and preprocessing are measured on; a synthetic NIfTI file where it is None.
        seconds: of running per setting, after the warm-up.
        batches: scans per run.
        threads: CPU threads of the network; 0 takes what this process may use.
        device: ``cpu`` or ``gpu``.

    Returns:
        ``machine``, ``rows`` (a `Setting` and what `_measure` found, each) and ``phases`` (seconds of one scan).

    Raises:
        CovidnetError: the bundle is damaged, or a measurement failed.
        UsageError: no engine for this device.
    """
    opened = Bundle.load(bundle)
    rows = [_in_process(bundle, setting, seconds) for setting in settings(opened, batches, threads, device)]
    if not rows:
        raise UsageError(f"no engine is installed for device {device}; {engine.INSTALL['openvino']}")
    _record(opened, rows, device)
    return {
        "date": date.today().isoformat(),
        "bundle": opened.version,
        "machine": machine(),
        "rows": rows,
        "phases": _phases(opened, scan, device),
    }


def settings(bundle: Bundle, batches: Sequence[int], threads: Sequence[int], device: Device) -> Iterator[Setting]:
    """Every engine that is installed here, with float32 and the precisions that the bundle accepted."""
    kind = "gpu" if device == "gpu" else "cpu"
    for name in engine.candidates(device, "float32"):
        for precision in PRECISIONS[f"{name} ({kind})"]:
            if precision == "float32" or bundle.precisions.get(precision, {}).get("accepted"):
                for count in threads:
                    yield from (Setting(name, device, precision, batch, count) for batch in batches)


def machine() -> dict[str, Any]:
    """What a figure depends on beside the code."""
    return {
        "processor": selection.processor() or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **selection.versions(),
    }


def picture(found: dict[str, Any], out: Path) -> None:
    """PNG: latency by setting (median, 99th percentile), and the shares of decoding, preprocessing and inference.

    Raises:
        UsageError: matplotlib isn't installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UsageError("the picture is drawn with matplotlib; pip install matplotlib") from None
    rows = found["rows"][::-1]
    figure = Figure(figsize=(10, 1.9 + 0.3 * len(rows)), layout="constrained", dpi=110)
    bars, shares = figure.subplots(2, 1, height_ratios=(max(2.0, 0.3 * len(rows)), 0.6))
    counts = {row["threads"] for row in rows}
    labels = [
        f"{row['engine']} {row['precision']}, batch {row['batch']}"
        + (f", {row['threads'] or 'all'} threads" if len(counts) > 1 else "")
        for row in rows
    ]
    medians, tails = (np.array([row[key] / row["batch"] for row in rows]) for key in ("p50_ms", "p99_ms"))
    colors = ["#1f6f8b" if row["engine"] == "openvino" else "#c8793c" for row in rows]
    bars.barh(labels, medians, xerr=[np.zeros(len(rows)), tails - medians], color=colors, ecolor="#444444", capsize=2)
    for at, row in enumerate(rows):
        text = f"  {medians[at]:.3g} ms, {row['scans_per_s']:.0f} scans/s, {row['peak_mib']} MiB"
        bars.annotate(text, (tails[at], at), va="center", fontsize=8)
    bars.set_xlim(0, tails.max() * 1.35)
    bars.set_xlabel("ms per scan: median, whisker to the 99th percentile; scans per second; peak memory of the process")
    bars.spines[["top", "right"]].set_visible(False)
    left, total = 0.0, sum(found["phases"].values())
    for (name, value), color in zip(found["phases"].items(), ("#c8793c", "#d9b44a", "#1f6f8b"), strict=True):
        shares.barh(
            [0], [value * 1e3], left=left * 1e3, color=color, label=f"{name} {value * 1e3:.0f} ms ({value / total:.0%})"
        )
        left += value
    shares.set_yticks([])
    shares.set_xlabel("ms of one scan, from file to answer")
    shares.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=9)
    shares.spines[["top", "right", "left"]].set_visible(False)
    machine = f"{found['machine']['processor']}, {found['machine']['cores']} cores"
    figure.suptitle(f"Bundle {found['bundle']} on {machine}, {found['date']}", fontsize=10)
    figure.savefig(out)


def _in_process(bundle: Path, setting: Setting, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "covidnet.inference.bench", str(bundle), json.dumps(asdict(setting)), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CovidnetError(f"measuring {setting.engine} {setting.precision} failed: {last}")
    found: dict[str, Any] = {**asdict(setting), **json.loads(done.stdout)}
    return found


def _measure(bundle: Path, setting: Setting, seconds: float) -> dict[str, float]:
    """Times of one setting in this process.

    Returns:
        ``load_ms``, ``first_ms`` (the first run), ``p50_ms``, ``p99_ms``, ``scans_per_s``, ``runs``, and ``peak_mib`` of
        the whole process.
    """
    started = time.perf_counter()
    loaded = engine.load(Bundle.load(bundle), setting.device, setting.engine, setting.threads, setting.precision)
    load_s = time.perf_counter() - started
    shape = (setting.batch, 1, *loaded.size)
    batch = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    times: list[float] = []
    begun = 0.0
    while len(times) < LEAST_RUNS + 3 or time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        begun = begun or started
        loaded.run(batch)
        times.append((time.perf_counter() - started) * 1e3)
    steady = np.array(times[3:])
    return {
        "load_ms": round(load_s * 1e3, 1),
        "first_ms": round(times[0], 2),
        "p50_ms": round(float(np.median(steady)), 3),
        "p99_ms": round(float(np.percentile(steady, 99)), 3),
        "scans_per_s": round(setting.batch * len(steady) / (steady.sum() / 1e3), 2),
        "runs": len(steady),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _record(bundle: Bundle, rows: Sequence[dict[str, Any]], device: Device) -> None:
    """Let `auto` know what is fastest here for one scan."""
    for precision in {row["precision"] for row in rows}:
        for threads in {row["threads"] for row in rows}:
            same = [r for r in rows if (r["precision"], r["threads"], r["batch"]) == (precision, threads, 1)]
            if len(same) > 1:
                selection.record(bundle, device, precision, threads, {row["engine"]: row["p50_ms"] for row in same})


def _phases(bundle: Bundle, scan: Path | None, device: Device) -> dict[str, float]:
    """Median seconds of decoding, preprocessing and inference of one scan."""
    spec = Spec.from_dict(bundle.preprocess)
    network = engine.load(bundle, device)
    network.run(np.zeros((1, 1, *network.size), np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        path = scan or demo_scan(Path(folder))
        times = []
        for _ in range(5):
            marks = [time.perf_counter()]
            decoded = read_scan(path)
            marks.append(time.perf_counter())
            prepared = prepare(decoded, spec)
            marks.append(time.perf_counter())
            network.run(prepared.volume[None, None])
            marks.append(time.perf_counter())
            times.append(np.diff(marks))
    decode, preprocess, inference = np.median(times, axis=0).tolist()
    return {"decode": decode, "preprocess": preprocess, "inference": inference}


def demo_scan(folder: Path, index: int = 0) -> Path:
    """A synthetic scan as a compressed NIfTI file."""
    import nibabel

    made = phantom.generate("NCP", seed=0, index=index, detail=DEMO_SCAN).scan
    z, y, x = made.spacing_mm
    affine = np.array([[0, 0, -x, 0], [0, -y, 0, 0], [-z, 0, 0, 0], [0, 0, 0, 1]])
    path = folder / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(made.voxels, affine), path)
    return path


if __name__ == "__main__":
    _bundle, _setting, _seconds = sys.argv[1:]
    print(json.dumps(_measure(Path(_bundle), Setting(**json.loads(_setting)), float(_seconds))))
