"""Source to packed dataset: every scan decoded, prepared and written in its row, or listed in `rejected.csv`."""

import csv
import hashlib
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from covidnet.config import Config, Data
from covidnet.data import packed, splits
from covidnet.data.preprocess import Prepared, Spec, crop_and_resize, prepare
from covidnet.data.sources import ScanRef, discover, phantom, read_scan
from covidnet.errors import CovidnetError, ScanError, UsageError
from covidnet.progress import progress


@dataclass(frozen=True, slots=True)
class Ingested:
    """One scan as a worker hands it back; ``reason`` is set where it was rejected."""

    index: int
    reason: str | None = None
    prepared: Prepared | None = None
    lesions: np.ndarray | None = None
    source: str = ""
    slices: int = 0
    spacing_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)


def ingest(config: Config, out: Path) -> dict[str, float]:
    """Read the configured source and write a packed dataset into ``out``.

    Returns:
        counts: scans, rejected, and scans per split and class.

    Raises:
        CovidnetError: nothing to read, too many scans rejected, or too few patients for the splits.
        UsageError: the source's settings don't fit what is there.
    """
    refs = references(config)
    out.mkdir(parents=True, exist_ok=True)
    data, spec = config.data, spec_of(config.data)
    scans = np.lib.format.open_memmap(out / "scans.all.npy", "w+", np.uint8, (len(refs), *data.size))
    has_lesions = data.source == "phantom"
    lesions = np.lib.format.open_memmap(out / "lesions.all.npy", "w+", np.uint8, scans.shape) if has_lesions else None
    found: list[Ingested] = []
    with progress(f"ingest {data.source}", len(refs)) as advance:
        for item in _work(refs, config, spec):
            if item.prepared is not None:
                scans[item.index] = item.prepared.volume
                if lesions is not None and item.lesions is not None:
                    lesions[item.index] = item.lesions
            found.append(item)
            advance()
    kept = [item for item in found if item.reason is None]
    _write_rejected(out / "rejected.csv", refs, found)
    _check_rejected(data, refs, found, out)
    _pack(out, "scans", scans, kept)
    if lesions is not None:
        _pack(out, "lesions", lesions, kept)
    rows = _rows(config, refs, kept, np.load(out / "scans.npy", mmap_mode="r"))
    packed.write_manifest(out / "manifest.csv", rows)
    return counts(rows, len(found) - len(kept))


def references(config: Config) -> list[ScanRef]:
    """The scans that the configured source has, in a fixed order.

    Raises:
        UsageError: no scan, an empty class, or phantom classes that the generator doesn't know.
    """
    if config.data.source != "phantom":
        return discover(config.data, config.classes)
    unknown = [name for name in config.classes if name not in phantom.LABELS]
    if unknown:
        raise UsageError(f"data.source phantom makes the classes {list(phantom.LABELS)}; found {unknown} in classes")
    labels = [config.classes[i % len(config.classes)] for i in range(config.data.phantom.patients)]
    return [ScanRef(f"phantom-{i:05d}", f"phantom-{i:05d}", label, Path()) for i, label in enumerate(labels)]


def listing(config: Config) -> dict[str, str]:
    """What the raw data is, cheaply: a hash of names, sizes and times of all files under the root, and of the CSV.

    Raises:
        UsageError: the folder or the CSV isn't there.
    """
    root = Path(str(config.data.root))
    if not root.is_dir():
        raise UsageError(f"data.root: no such folder: {root}")
    total = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        stat = path.lstat()
        total.update(f"{path.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    found = {"raw": total.hexdigest()}
    if config.data.labels is not None:
        labels = Path(config.data.labels)
        if not labels.is_file():
            raise UsageError(f"data.labels: no such file: {labels}")
        found["labels"] = hashlib.sha256(labels.read_bytes()).hexdigest()
    return found


def spec_of(data: Data) -> Spec:
    """The preprocessing that `ingest` applies and the bundle carries to serving."""
    return Spec(size=data.size, window_hu=data.window_hu, crop=data.crop)


def counts(rows: Sequence[packed.Row], rejected: int) -> dict[str, float]:
    """Flat numbers for `metrics.json`."""
    per_cell = Counter(f"{row.split}.{row.label}" for row in rows)
    return {
        "scans": len(rows),
        "patients": len({row.patient_id for row in rows}),
        "rejected": rejected,
        **{name: per_cell[name] for name in sorted(per_cell)},
    }


def _work(refs: list[ScanRef], config: Config, spec: Spec) -> Iterator[Ingested]:
    workers = config.data.workers or os.cpu_count() or 1
    if workers == 1 or len(refs) < 4:
        for index, ref in enumerate(refs):
            yield load(index, ref, config, spec)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers fill the cores; BLAS threads of their own would fight
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, context) as pool:
        try:
            yield from pool.map(load, range(len(refs)), refs, [config] * len(refs), [spec] * len(refs), chunksize=4)
        except BrokenProcessPool:
            raise CovidnetError(
                "a worker process died while reading a scan (out of memory, or a decoder crashed); "
                "set data.workers to 1 to see which scan it is"
            ) from None


def load(index: int, ref: ScanRef, config: Config, spec: Spec) -> Ingested:
    """Read and prepare one scan; a scan that can't be used comes back with a reason."""
    data = config.data
    try:
        if data.source == "phantom":
            made = phantom.generate(
                ref.label, seed=config.seed, index=index, difficulty=data.phantom.difficulty, detail=data.phantom.detail
            )
            scan, mask = made.scan, made.lesions
        else:
            scan, mask = read_scan(ref.path), None
        if scan.shape[0] < data.min_slices:
            raise ScanError(f"expected at least {data.min_slices} slices (data.min_slices), found {scan.shape[0]}")
        prepared = prepare(scan, spec)
    except (ScanError, UsageError) as error:  # a UsageError here: the path went away since it was listed
        return Ingested(index, reason=str(error))
    except MemoryError:
        return Ingested(index, reason="out of memory while reading this scan")
    lesions = None
    if mask is not None:
        # a lesion smaller than a voxel of the packed volume still has to be there to be hit
        lesions = (crop_and_resize(mask.astype(np.float32), prepared.box, data.size) > 0.25).astype(np.uint8)
    return Ingested(
        index,
        prepared=prepared,
        lesions=lesions,
        source=scan.format,
        slices=scan.shape[0],
        spacing_mm=scan.spacing_mm,
    )


def _rows(config: Config, refs: list[ScanRef], kept: list[Ingested], scans: np.ndarray) -> list[packed.Row]:
    chosen = [refs[item.index] for item in kept]
    data = config.data
    shares = {"train": 1 - data.validation - data.test, "validation": data.validation, "test": data.test}
    by_scan = splits.of_scans(
        [ref.patient_id for ref in chosen],
        [ref.label for ref in chosen],
        [ref.split for ref in chosen],
        shares,
        config.seed,
    )
    return [
        packed.Row(
            scan_id=ref.scan_id,
            patient_id=ref.patient_id,
            label=ref.label,
            split=split,
            source=item.source,
            sha256=hashlib.sha256(volume.tobytes()).hexdigest(),
            spacing=";".join(f"{mm:.4g}" for mm in item.spacing_mm),
            slices=item.slices,
            warnings="; ".join(item.prepared.warnings) if item.prepared else "",
            severity=ref.severity,
        )
        for ref, split, item, volume in zip(chosen, by_scan, kept, scans, strict=True)
    ]


def _pack(out: Path, name: str, everything: np.ndarray, kept: list[Ingested]) -> None:
    """Close the gaps that rejected scans left in an array."""
    target = np.lib.format.open_memmap(out / f"{name}.npy", "w+", np.uint8, (len(kept), *everything.shape[1:]))
    for row, item in enumerate(kept):
        target[row] = everything[item.index]
    target.flush()
    (out / f"{name}.all.npy").unlink()


def _write_rejected(path: Path, refs: list[ScanRef], found: list[Ingested]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["path", "reason"])
        writer.writerows([refs[item.index].path, item.reason] for item in found if item.reason is not None)


def _check_rejected(data: Data, refs: list[ScanRef], found: list[Ingested], out: Path) -> None:
    reasons = Counter(item.reason for item in found if item.reason is not None)
    rejected = sum(reasons.values())
    if rejected > data.max_rejected * len(refs):
        listing = "\n".join(f"  {count} x {reason}" for reason, count in reasons.most_common(5))
        raise CovidnetError(
            f"{rejected} of {len(refs)} scans were rejected, more than data.max_rejected allows ({data.max_rejected:.0%}):\n"
            f"{listing}\nEach is listed in {out / 'rejected.csv'}; mend or remove them, or raise data.max_rejected."
        )
