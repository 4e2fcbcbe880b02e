"""Audit of large datasets: 100,000 scans' manifest, and how the search for near duplicates grows.

    python -m benchmarks.audit                                         # about 10 minutes on two cores
    python -m benchmarks.audit --scans 20000 --near 1000 2000 4000     # a minute

The manifest is written as `ingest` writes it, with planted leaks, and read and audited in a process of its own. Signatures
are drawn, every scan an average chest with deviations of its own, and one in a hundred is a mirrored and noisy copy of
another; the growth is the exponent between the smallest and the largest search (1: linear, 2: every pair). Targets: at
most 60 s and 4 GB for the manifest, an exponent below 1.8, and 95 of 100 copies found with nothing else.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.headlines import judge
from benchmarks.machine import facts
from covidnet.data import packed
from covidnet.data.audit import Entry, audit
from covidnet.data.audit.near import propose
from covidnet.data.audit.signatures import FLIPS, KEPT, signs, weights
from covidnet.folder import peak_memory_mib

RESULT = Path(__file__).parent / "results" / "audit.json"
LABELS = ("NCP", "CP", "Normal")
COPIES = 0.01  # share of scans that are a copy of another


def main() -> None:
    """Print the table, write it beside this file; exit code 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=100_000, help="rows of the manifest")
    parser.add_argument("--near", type=int, nargs="+", default=[4_000, 16_000, 64_000], help="scans of the searches")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)  # a manifest to audit in a process of its own
    options = parser.parse_args()
    if options.run:
        print(json.dumps(audited(options.run)))
        return
    with tempfile.TemporaryDirectory(prefix="covidnet-audit-") as folder:
        path = Path(folder) / "manifest.csv"
        packed.write_manifest(path, manifest(options.scans))
        command = [sys.executable, "-m", "benchmarks.audit", "--run", str(path)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    manifested = json.loads(done.stdout)
    print(f"manifest of {options.scans} scans: {manifested['seconds']:.1f} s, {manifested['gb']:.2f} GB\n")
    print(f"{'scans':>8}{'s':>9}{'ms/scan':>10}{'copies found':>14}{'others':>8}", flush=True)
    searches = []
    for count in options.near:
        searches.append(search := searched(count))
        print(f"{count:>8}{search['seconds']:>9.1f}{1e3 * search['seconds'] / count:>10.2f}", end="")
        print(f"{search['found']:>8} / {search['copies']:<4}{search['others']:>7}", flush=True)
    first, last = searches[0], searches[-1]
    ratios = {
        "manifest, s": manifested["seconds"],
        "manifest, GB": manifested["gb"],
        "exponent of near duplicates": math.log(last["seconds"] / first["seconds"])
        / math.log(last["scans"] / first["scans"]),
        "copies found": min(search["found"] / search["copies"] for search in searches),
        "others found, per scan": max(search["others"] / search["scans"] for search in searches),
    }
    print()
    result: dict[str, Any] = {"scans": options.scans, "manifest": manifested, "near": searches, "ratios": ratios}
    missed = judge("audit", result)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps({**result, **facts()}, indent=2) + "\n")
    sys.exit(bool(missed))


def manifest(count: int) -> list[packed.Row]:
    """Rows of a dataset of two scans per patient; of every 1,000, one lies in another split than its patient, and one
    has the content of another."""
    rows = []
    for index in range(count):
        patient = index // 2
        split = packed.SPLITS[max(0, patient % 10 - 7)] if index % 1000 != 1 else "test"
        content = index - 18 if index % 1000 == 18 else index
        rows.append(
            packed.Row(
                scan_id=f"{patient:012x}-{index % 2:03d}",
                patient_id=f"{patient:012x}",
                label=LABELS[patient % len(LABELS)],
                split=split,
                source="dicom",
                sha256=f"{content:064x}",
                spacing=f"{1 + index % 5};0.7;0.7",
                slices=60,
                warnings="",
            )
        )
    return rows


def audited(path: Path) -> dict[str, float]:
    """Seconds and memory to read and audit a manifest, from the start of the process's own code."""
    started = time.perf_counter()
    rows = packed.read_manifest(path)
    found = audit([Entry(row.split, row.label, row.patient_id, row.sha256) for row in rows])
    kinds = {finding.kind for finding in found.findings if finding.leak}
    if kinds != {"patient-overlap", "duplicate-scan"}:
        sys.exit(f"expected the planted leaks, found {sorted(kinds)}")
    return {"seconds": time.perf_counter() - started, "gb": peak_memory_mib() * 2**20 / 1e9}


def searched(count: int) -> dict[str, float]:
    """Seconds of a search among so many scans, and what it found."""
    signatures, copies = drawn(count)
    started = time.perf_counter()
    pairs = {pair.rows for pair in propose(signatures)}
    seconds = time.perf_counter() - started
    found = len(pairs & copies)
    return {"scans": count, "seconds": seconds, "copies": len(copies), "found": found, "others": len(pairs) - found}


def drawn(count: int) -> tuple[np.ndarray, set[tuple[int, int]]]:
    """Signatures ``float16 (N, *KEPT)``, and the pairs of which one is a copy of the other."""
    rng = np.random.default_rng(0)
    scale = 0.02 / np.sqrt(np.maximum(weights(KEPT), 1)).astype(np.float32)
    average = rng.standard_normal(KEPT, np.float32) * scale
    found = np.empty((count, *KEPT), np.float16)
    for index in range(count):
        found[index] = average + rng.standard_normal(KEPT, np.float32) * scale
    originals, copies = rng.permutation(count)[: 2 * max(1, round(COPIES * count))].reshape(2, -1)
    for original, copy in zip(originals, copies, strict=True):
        mirrored = found[original] * signs(FLIPS[rng.integers(len(FLIPS))][None], KEPT)[0]
        found[copy] = mirrored + 0.2 * rng.standard_normal(KEPT, np.float32) * scale
    return found, {(int(min(pair)), int(max(pair))) for pair in zip(originals, copies, strict=True)}


if __name__ == "__main__":
    main()
