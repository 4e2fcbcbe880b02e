"""`covidnet predict`: time to the first answer of a cold process, and many scans against what bounds them.

    python -m benchmarks.predict --bundle results/export/bundle                # about 2 minutes
    python -m benchmarks.predict --bundle B --scans /data/nifti --count 100    # on your own scans

100 NIfTI scans can't be answered faster than they are decoded, nor faster than the network runs: both are measured alone on
the same cores, and the whole is compared with the slower of the two.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.machine import facts
from covidnet.data.preprocess import Spec, prepare
from covidnet.data.sources import read_scan
from covidnet.export.bundle import Bundle
from covidnet.inference import bench, engine
from covidnet.inference.predict import DECODERS, predict

COLD_RUNS = 7
DISTINCT = 4  # synthetic files; the rest are links to them


def main() -> None:
    """Print the figures, and keep them in `benchmarks/results/predict.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("results/export/bundle"))
    parser.add_argument("--scans", type=Path, help="folder of .nii.gz files; default: synthetic ones of 64x256x256")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/predict.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = scans(options.scans, options.count, Path(folder))
        found = {
            **facts(),
            "cold": cold(options.bundle, Path(folder)),
            "many": many(options.bundle, paths),
        }
    print(json.dumps(found, indent=2))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n")


def cold(bundle: Path, folder: Path) -> dict[str, float]:
    """Seconds from starting the process to its end, for one prepared volume; the answer comes just before the end."""
    volume = folder / "volume.npy"
    np.save(volume, np.zeros(Spec.from_dict(Bundle.load(bundle).preprocess).size, np.uint8))
    command = [sys.executable, "-m", "covidnet", "predict", str(volume), "--bundle", str(bundle)]
    times = []
    for _ in range(COLD_RUNS):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return {"median_s": round(median(times), 3), "worst_s": round(max(times), 3), "runs": COLD_RUNS}


def many(bundle: Path, paths: list[Path]) -> dict[str, Any]:
    """Scans per second of decoding alone, of the network alone, and of both together."""
    opened = Bundle.load(bundle)
    spec = Spec.from_dict(opened.preprocess)
    network = engine.load(opened)
    with ThreadPoolExecutor(DECODERS) as pool:
        started = time.perf_counter()
        volumes = list(pool.map(lambda path: prepare(read_scan(path), spec).volume, paths))
        decode_s = time.perf_counter() - started
    batches = [np.stack(volumes[i : i + network.batch])[:, None] for i in range(0, len(volumes), network.batch)]
    network.run(batches[0])
    started = time.perf_counter()
    for batch in batches:
        network.run(batch)
    compute_s = time.perf_counter() - started
    started = time.perf_counter()
    answers = list(predict(paths, bundle))
    whole_s = time.perf_counter() - started
    if any("error" in answer for answer in answers):
        raise SystemExit("a scan couldn't be read; give a folder of readable .nii.gz files")
    return {
        "scans": len(paths),
        "decoders": DECODERS,
        "engine": network.name,
        "decode_bound_s": round(decode_s, 3),
        "compute_bound_s": round(compute_s, 3),
        "predict_s": round(whole_s, 3),
        "of_the_bound": round(max(decode_s, compute_s) / whole_s, 3),
        "scans_per_s": round(len(paths) / whole_s, 2),
    }


def scans(given: Path | None, count: int, folder: Path) -> list[Path]:
    """``count`` paths: the given folder's files, or synthetic ones, repeated as often as needed."""
    files = sorted(given.glob("*.nii.gz")) if given else [made(folder, seed) for seed in range(DISTINCT)]
    if not files:
        raise SystemExit(f"no .nii.gz file in {given}")
    links = []
    for number in range(count):
        link = folder / f"{number:04d}.nii.gz"
        os.symlink(files[number % len(files)].resolve(), link)
        links.append(link)
    return links


def made(folder: Path, seed: int) -> Path:
    """A synthetic scan as a NIfTI file."""
    inner = folder / str(seed)
    inner.mkdir()
    return bench.demo_scan(inner, seed)


if __name__ == "__main__":
    main()
