"""Ingestion of whole DICOM series beside the bare decoder: time per scan, two workers, memory, growth with scans.

    python -m benchmarks.ingest                               # about 15 minutes on two cores
    python -m benchmarks.ingest --scans 8 24 --decoded 3      # a minute
    python -m benchmarks.ingest --series /data/ct/NCP/P002

The scans are links to one series, by default the real one beside the repository (133 slices of 512 x 512, JPEG Lossless).
The bare decoder reads every file with pydicom and its pixels as ingestion does, with libjpeg-turbo, the fastest decoder
known, and drops them; SimpleITK, with GDCM, does the same beside it. Targets: a scan takes at most 1.3 times as long as the
bare decoder, two workers are at least 1.7 times as fast as one, no process takes more than 1.5 GB and none more for many
scans than for few, and time per scan does not grow.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import SimpleITK
from pydicom import dcmread

from benchmarks.headlines import judge
from benchmarks.machine import facts
from covidnet.config import parse
from covidnet.data import ingest
from covidnet.data.sources import jpeg

SERIES = Path(__file__).resolve().parents[2] / "shared" / "data" / "covid-ct-md" / "dicom" / "P002"
RESULT = Path(__file__).parent / "results" / "ingest.json"
CLASSES = ("NCP", "Normal")


def main() -> None:
    """Print the table, write it beside this file; exit code 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=Path, default=SERIES)
    parser.add_argument("--scans", type=int, nargs=2, default=[50, 400], metavar=("FEW", "MANY"))
    parser.add_argument("--decoded", type=int, default=20, help="scans that the bare decoder reads")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)  # a run in a process of its own: root, workers
    options = parser.parse_args()
    if options.run:
        print(json.dumps(ingested(Path(options.run[0]), int(options.run[1]))))
        return
    if not options.series.is_dir():
        sys.exit(f"no DICOM series in {options.series}; give one with --series")
    few, many = options.scans
    bare_s, simpleitk_s = (median(read(options.series) for _ in range(options.decoded)) for read in (bare, simpleitk))
    print(f"bare decoder: {1e3 * bare_s:.0f} ms per scan, SimpleITK: {1e3 * simpleitk_s:.0f} ms\n")
    print(f"{'scans':>6}{'workers':>9}{'s/scan':>9}{'GB':>7}", flush=True)
    runs = {}
    for name, count, workers in (("one", few, 1), ("two", few, 2), ("many", many, 2)):
        with tempfile.TemporaryDirectory(prefix="covidnet-ingest-", dir=options.series.parent) as folder:
            lay_out(options.series, Path(folder) / "raw", count)
            command = [sys.executable, "-m", "benchmarks.ingest", "--run", folder, str(workers)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        runs[name] = run = {"scans": count, "workers": workers, **json.loads(done.stdout.splitlines()[-1])}
        print(f"{count:>6}{workers:>9}{run['seconds'] / count:>9.3f}{run['peak_gb']:>7.2f}", flush=True)
    per_scan = {name: run["seconds"] / run["scans"] for name, run in runs.items()}
    ratios = {
        "one worker / bare decoder": per_scan["one"] / bare_s,
        "one worker / SimpleITK": per_scan["one"] / simpleitk_s,
        "one worker / two": per_scan["one"] / per_scan["two"],
        "peak memory, GB": max(run["peak_gb"] for run in runs.values()),
        "memory, many / few scans": runs["many"]["peak_gb"] / runs["two"]["peak_gb"],
        "time per scan, many / few": per_scan["many"] / per_scan["two"],
    }
    print()
    result: dict[str, Any] = {
        "bare_decoder_s": bare_s,
        "simpleitk_s": simpleitk_s,
        "runs": runs,
        "ratios": ratios,
        **facts(),
    }
    missed = judge("ingest", result)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(bool(missed))


def bare(series: Path) -> float:
    """Seconds to decode every file of a series, on one core."""
    started = time.perf_counter()
    for file in series.iterdir():
        jpeg.pixels(dcmread(file), None)
    return time.perf_counter() - started


def simpleitk(series: Path) -> float:
    """Seconds of SimpleITK for the files of a series, on one core."""
    started = time.perf_counter()
    for file in series.iterdir():
        SimpleITK.ReadImage(str(file))
    return time.perf_counter() - started


def lay_out(series: Path, root: Path, count: int) -> None:
    """Hard links to the series, as so many patients of two classes."""
    for number in range(count):
        patient = root / CLASSES[number % len(CLASSES)] / f"{number:05d}"
        patient.mkdir(parents=True)
        for file in series.iterdir():
            os.link(file, patient / file.name)


def ingested(folder: Path, workers: int) -> dict[str, float]:
    """Seconds of an ingest, start of the workers included, and the peak of the largest of its processes."""
    data = {"source": "dicom", "root": str(folder / "raw"), "workers": workers}
    config = parse({"classes": list(CLASSES), "data": data})
    with peak_bytes() as peak:
        started = time.perf_counter()
        found = ingest.ingest(config, folder / "dataset")
        seconds = time.perf_counter() - started
    if found["rejected"]:
        sys.exit(f"{found['rejected']:.0f} scans were rejected: {(folder / 'dataset' / 'rejected.csv').read_text()}")
    return {"seconds": seconds, "peak_gb": max(peak.values()) / 1e9}


@contextmanager
def peak_bytes() -> Iterator[dict[int, int]]:
    """Largest resident size so far of this process and of all below it, by process id (Linux)."""
    peaks: dict[int, int] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
                with suppress(OSError, StopIteration):  # it ended
                    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                    peak = next(line for line in lines if line.startswith("VmHWM"))
                    peaks[process.pid] = int(peak.split()[1]) * 1024

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    main()
