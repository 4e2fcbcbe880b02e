"""Source to packed dataset: every scan decoded, prepared and written in its row, or listed in `rejected.csv`.

A scan is read once. What it became is kept beside the target until the dataset is whole, so that a killed run goes on
where it was; shards are such folders, made on several machines and merged; and a scan that the former dataset already
holds, unchanged, is taken from there.
"""

import csv
import glob
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from covidnet import __version__, folder
from covidnet.config import Config, Data
from covidnet.data import datasets, packed, splits, versions, worker
from covidnet.data.preprocess import Spec
from covidnet.data.records import Finished, Record, pack
from covidnet.data.sources import ScanRef, discover, keyed_hash, phantom, pseudonym
from covidnet.errors import CovidnetError, UsageError
from covidnet.progress import progress

Shard = tuple[int, int]  # number, from 1, and of how many
Found = list[tuple[Record, Finished]]  # in the order of the references


def ingest(config: Config, out: Path, target: Path | None = None) -> dict[str, float]:
    """Read the configured source and write a packed dataset into ``out``.

    Args:
        target: where the dataset will lie in the end, if not in ``out``. Scans that are there already, unchanged, aren't
            read again, and their patients stay in their splits.

    Returns:
        counts: scans, rejected, and scans per split and class.

    Raises:
        CovidnetError: nothing to read, too many scans rejected, or too few patients for the splits.
        UsageError: the source's settings don't fit what is there.
    """
    target = target or out
    refs = references(config)
    former = Finished(target, config.data.size) if folder.is_complete(target) else None
    unfinished = target.with_name(target.name + ".unfinished")
    found = _read(config, list(enumerate(refs)), unfinished, former)
    result = _write(config, refs, found, out, _kept_splits(config, target) if former else {})
    shutil.rmtree(unfinished)
    return result


def ingest_shard(config: Config, out: Path, shard: Shard) -> dict[str, float]:
    """Read every n-th scan of the source into ``out``, for `merge`.

    Raises:
        UsageError: the source's settings don't fit what is there.
    """
    number, count = shard
    tasks = list(enumerate(references(config)))[number - 1 :: count]
    unfinished = out.with_name(out.name + ".unfinished")
    found = _read(config, tasks, unfinished, None)
    out.mkdir(parents=True, exist_ok=True)
    pack(out, found, config.data.size)
    shutil.rmtree(unfinished)
    rejected = sum(bool(record.reason) for record, _ in found)
    return {"scans": len(found) - rejected, "rejected": rejected}


def merge(config: Config, shards: Sequence[Path], out: Path) -> dict[str, float]:
    """Write the packed dataset that `ingest` would have written, from the shards of all scans.

    Raises:
        CovidnetError: a scan is in no shard, or as for `ingest`.
    """
    refs = references(config)
    stores = [Finished(shard, config.data.size) for shard in shards]
    by_key = {key: store for store in stores for key in store.found}
    keys = [_identity(config, index, ref)[0] for index, ref in enumerate(refs)]
    missing = sum(key not in by_key for key in keys)
    if missing:
        raise CovidnetError(
            f"{missing} of {len(refs)} scans are in none of the {len(shards)} shards; ingest every shard of the same "
            "data with the same settings (`covidnet ingest --shard I/N` for I from 1 to N), then merge"
        )
    return _write(config, refs, [(by_key[key].found[key][0], by_key[key]) for key in keys], out, {})


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


def path_of(config: Config, scan: str) -> Path:
    """Where the raw scan lies that the outputs name by ``[<class>/]<scan_id>`` only.

    Raises:
        UsageError: the source has no such scan.
    """
    scan_id = scan.rpartition("/")[2]
    local = versions.fetched(config, versions.find(config.data))
    for ref in references(local):
        if ref.scan_id == scan_id:
            return ref.path
    if local.data.splits is not None:
        for unlisted in datasets.missing(local.data)[1]:
            if pseudonym(unlisted.name) == scan_id:
                return unlisted.path
    raise UsageError(f"no scan {scan_id} in data.root; the key (COVIDNET_PATIENT_KEY) may be another than at ingest")


def write_missing(data: Data, path: Path) -> dict[str, float]:
    """Write `missing.csv` (scan, reason): what the published lists name and the disk lacks, and the other way round.

    A scan that isn't here has the name of the list, which everyone can read. One that no list has may be a patient of one's
    own, put beside the published ones: it has a pseudonym, as in `rejected.csv`.

    Returns:
        both counts, for `metrics.json`.
    """
    absent, unlisted = datasets.missing(data)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["scan", "reason"])
        writer.writerows([name, "in the split files, not under data.root"] for name in absent)
        names = (f"{scan.label}/{pseudonym(scan.name)}" for scan in unlisted)
        writer.writerows([name, "under data.root, not in the split files"] for name in names)
    return {"missing": len(absent), "unlisted": len(unlisted)}


def listing(config: Config, version: versions.Version | None = None) -> dict[str, Any]:
    """What the raw data is: of a version its hashes, of a folder names, sizes and times of all files; and the lists' hashes.

    Raises:
        UsageError: the folder, the CSV or a split file isn't there.
    """
    root = Path(str(config.data.root))
    found: dict[str, Any] = {"version": dict(version.record)} if version else {"raw": _digest(root)}
    lists = [("labels", config.data.labels), *(("splits", path) for path in config.data.splits or ())]
    for key, path in lists:
        if path is None or (version is not None and path in version.files):
            continue
        if not Path(path).is_file():
            raise UsageError(f"data.{key}: no such file: {path}")
        found.setdefault(key, []).append(hashlib.sha256(Path(path).read_bytes()).hexdigest())
    return found


def _digest(root: Path) -> str:
    if not root.is_dir():
        raise UsageError(f"data.root: no such folder: {root}")
    total = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        stat = path.lstat()
        total.update(f"{path.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return total.hexdigest()


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


def _read(config: Config, tasks: list[tuple[int, ScanRef]], unfinished: Path, former: Finished | None) -> Found:
    """What every scan became: taken from where it is finished already, else read now and kept in ``unfinished``."""
    store = Finished(unfinished, config.data.size, writable=True)
    scratch = unfinished / "unpacked"
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
    scratch.mkdir()
    identities = [_identity(config, index, ref) for index, ref in tasks]
    places: dict[str, Finished] = {}
    for key, changed in identities:
        earlier = former.look_up(key, changed) if former else None
        if former and earlier and not earlier.reason:
            places[key] = former
        elif store.look_up(key, changed):
            places[key] = store
    # a published list may name a scan twice; it is read once
    identity_of = dict(zip((index for index, _ in tasks), identities, strict=True))
    unread = {identity_of[index][0]: (index, ref) for index, ref in reversed(tasks)}
    todo = sorted((task for key, task in unread.items() if key not in places), key=lambda task: task[0])
    with progress(f"ingest {config.data.source}", len(unread), len(unread) - len(todo)) as advance:
        for index, scan in worker.run(todo, config, spec_of(config.data), scratch):
            key, changed = identity_of[index]
            store.add(*_record(key, changed, scan))
            places[key] = store
            advance()
    shutil.rmtree(scratch)
    return [(places[key].found[key][0], places[key]) for key, _ in identities]


def _identity(config: Config, index: int, ref: ScanRef) -> tuple[str, str]:
    """What a scan's volume depends on, without a look into its files; and when they changed."""
    data = config.data
    how: list[Any] = [__version__, spec_of(data).to_dict(), data.min_slices, data.seconds_per_scan, data.memory_gib]
    if data.source == "phantom":
        what: list[Any] = [config.seed, index, ref.label, data.phantom.difficulty, data.phantom.detail]
        return keyed_hash(json.dumps([how, what])), ""
    root = Path(str(data.root))
    if ref.path.is_dir():
        files = sorted(ref.path.rglob("*"))
    else:  # the voxels of a .mhd lie beside it
        files = (
            sorted(ref.path.parent.glob(f"{glob.escape(ref.path.stem)}.*")) if ref.path.suffix == ".mhd" else [ref.path]
        )
    stats = [path.lstat() for path in files]
    names = [(str(path.relative_to(root)), stat.st_size) for path, stat in zip(files, stats, strict=True)]
    times = [stat.st_mtime_ns for stat in stats]
    return keyed_hash(json.dumps([how, data.source, names])), hashlib.sha256(repr(times).encode()).hexdigest()[:16]


def _record(key: str, changed: str, scan: worker.Ingested) -> tuple[Record, list[Any]]:
    if scan.prepared is None:
        return Record(key, changed, scan.reason), []
    record = Record(
        key,
        changed,
        source=scan.source,
        sha256=hashlib.sha256(scan.prepared.volume.tobytes()).hexdigest(),
        spacing=";".join(f"{mm:.4g}" for mm in scan.spacing_mm),
        slices=scan.slices,
        warnings="; ".join(scan.prepared.warnings),
    )
    return record, [scan.prepared.volume, *([] if scan.lesions is None else [scan.lesions])]


def _write(
    config: Config, refs: list[ScanRef], found: Found, out: Path, kept_splits: dict[str, str]
) -> dict[str, float]:
    """The packed dataset of finished scans, whatever folders they are in."""
    out.mkdir(parents=True, exist_ok=True)
    records = [record for record, _ in found]
    _write_rejected(out / "rejected.csv", refs, records)
    _check_rejected(config.data, records, out)
    pack(out, found, config.data.size)
    rows = _rows(config, refs, records, kept_splits)
    packed.write_manifest(out / "manifest.csv", rows)
    return counts(rows, len(records) - len(rows))


def _rows(config: Config, refs: list[ScanRef], records: list[Record], kept_splits: dict[str, str]) -> list[packed.Row]:
    kept = [(ref, record) for ref, record in zip(refs, records, strict=True) if not record.reason]
    by_scan = splits.of_scans(
        [ref.patient_id for ref, _ in kept],
        [ref.label for ref, _ in kept],
        [ref.split for ref, _ in kept],
        _shares(config.data),
        config.seed,
        kept_splits,
    )
    return [
        packed.Row(
            scan_id=ref.scan_id,
            patient_id=ref.patient_id,
            label=ref.label,
            split=split,
            source=record.source,
            sha256=record.sha256,
            spacing=record.spacing,
            slices=record.slices,
            warnings=record.warnings,
            severity=ref.severity,
        )
        for (ref, record), split in zip(kept, by_scan, strict=True)
    ]


def _shares(data: Data) -> dict[str, float]:
    return {"train": 1 - data.validation - data.test, "validation": data.validation, "test": data.test}


def _kept_splits(config: Config, former: Path) -> dict[str, str]:
    """Patient to split of the former dataset, where it was split by the same rule."""
    then = folder.provenance(former)["parameters"]
    rule = {**_shares(Data.model_validate(then["data"])), "seed": then["seed"]}
    if rule != {**_shares(config.data), "seed": config.seed}:
        return {}
    return {row.patient_id: row.split for row in packed.read_manifest(former / "manifest.csv")}


def _write_rejected(path: Path, refs: list[ScanRef], records: list[Record]) -> None:
    """Class and pseudonym in place of the path, which may carry a patient's name; `covidnet ingest --where` finds it."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["path", "reason"])
        rejected = ((ref, record) for ref, record in zip(refs, records, strict=True) if record.reason)
        writer.writerows([f"{ref.label}/{ref.scan_id}", record.reason] for ref, record in rejected)


def _check_rejected(data: Data, records: list[Record], out: Path) -> None:
    reasons = Counter(record.reason for record in records if record.reason)
    rejected = sum(reasons.values())
    if rejected > data.max_rejected * len(records):
        listed = "\n".join(f"  {count} x {reason}" for reason, count in reasons.most_common(5))
        raise CovidnetError(
            f"{rejected} of {len(records)} scans were rejected, more than data.max_rejected allows "
            f"({data.max_rejected:.0%}):\n{listed}\nEach is listed in {out / 'rejected.csv'}, and `covidnet ingest "
            "--where ID` says where it lies; mend or remove them, or raise data.max_rejected."
        )
