"""The scans of a dataset, from class folders or a CSV, under pseudonyms."""

import csv
import hashlib
import hmac
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from covidnet.config import DATASET_CLASSES, Data
from covidnet.data import datasets
from covidnet.data.sources import nifti, slices
from covidnet.data.sources.slices import natural_key
from covidnet.errors import UsageError

SPLITS = ("train", "validation", "test")
COLUMNS = ("path", "label", "patient")
FIXED_KEY = b"covidnet3d"


@dataclass(frozen=True, slots=True)
class ScanRef:
    """One scan that can be read: where it lies and what is known of it.

    Args:
        scan_id: pseudonym of the patient and an ordinal; no part of a file name.
        patient_id: pseudonym.
        split: ``"train"``, ``"validation"`` or ``"test"`` where the source says, else None.
        severity: grade that a published dataset gives beside the class.
    """

    scan_id: str
    patient_id: str
    label: str
    path: Path
    split: str | None = None
    severity: str = ""


@dataclass(frozen=True, slots=True)
class _Found:
    path: Path
    label: str
    patient: str
    split: str | None = None
    severity: str = ""


def keyed_hash(text: str) -> str:
    """HMAC-SHA256 under the key in the environment variable COVIDNET_PATIENT_KEY, as 64 hex digits.

    Without it a fixed key is used, under which anyone can recompute the hash of a known identifier: only a key of your
    own, kept apart from the data, makes it irreversible.
    """
    key = os.environ.get("COVIDNET_PATIENT_KEY", "").encode() or FIXED_KEY
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def pseudonym(text: str) -> str:
    """Twelve hex digits that stand for a patient: the same for the same text and key (see `keyed_hash`)."""
    return keyed_hash(text)[:12]


def discover(data: Data, classes: tuple[str, ...]) -> list[ScanRef]:
    """List the scans of the configured source, in an order that depends on nothing but the names in it.

    With ``data.labels``: a CSV of ``path,label,patient[,split]``, paths relative to ``data.root``. Else class folders:
    ``<class>/<patient>.nii.gz`` or ``<class>/<patient>/...`` for nifti, ``<class>/<patient>/<scan>/0000.png`` for
    slices, ``<class>/<patient>/...`` (one series is chosen of all that lies there) for dicom. A patient's name in two
    classes counts as one patient, so that no split can part the two.

    Raises:
        UsageError: missing root, class folder or CSV; an empty class; a class or label that isn't configured; a missing
            column. A scan that leaves the root is listed, and rejected when it is read.
    """
    root = Path(data.root or "")
    if not root.is_dir():
        raise UsageError(f"data.root is {data.root}, which is no folder; set it to the folder of the scans")
    if data.source in DATASET_CLASSES:
        listed: Iterator[_Found] = (
            _Found(scan.path, scan.label, scan.patient, scan.split, scan.severity) for scan in datasets.scans(data)
        )
    elif data.labels:
        listed = _from_csv(root, Path(data.labels), classes)
    else:
        listed = _from_folders(root, data.source, classes)
    found = list(listed)
    counts = Counter(item.label for item in found)
    empty = [name for name in classes if not counts[name]]
    if empty:
        raise UsageError(f"no {data.source} scan of class {', '.join(empty)} under {root}; add some or change classes")
    return _named(found)


def _named(found: list[_Found]) -> list[ScanRef]:
    ordinals: Counter[str] = Counter()
    refs = []
    for item in found:
        patient = pseudonym(item.patient)
        scan_id = f"{patient}-{ordinals[patient]:03d}"
        refs.append(ScanRef(scan_id, patient, item.label, item.path, item.split, item.severity))
        ordinals[patient] += 1
    return refs


def _from_folders(root: Path, source: str, classes: tuple[str, ...]) -> Iterator[_Found]:
    folders = {entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    missing = [name for name in classes if name not in folders]
    if missing:
        raise UsageError(
            f"expected a folder per class ({', '.join(classes)}) in {root}, without {', '.join(missing)}; "
            "make them, change classes, or list the scans in a CSV (data.labels)"
        )
    odd = sorted(folders - set(classes))
    if odd:
        raise UsageError(
            f"{root} has {len(odd)} folder(s) that are no class, expected {', '.join(classes)} only; "
            "add to classes, or move them"  # unnamed: they may be called after patients
        )
    for name in classes:
        entries = sorted((p for p in (root / name).iterdir() if not p.name.startswith(".")), key=natural_key)
        for entry in entries:
            yield from (_Found(path, name, _patient(entry)) for path in _scans_of(entry, source))


def _patient(entry: Path) -> str:
    if entry.is_dir():
        return entry.name
    return nifti.stem(entry) if nifti.is_volume(entry) else entry.stem


def _scans_of(entry: Path, source: str) -> list[Path]:
    """Paths of the scans of one patient: the entry itself, or what lies in it."""
    if source == "dicom":
        is_scan = entry.is_dir() or entry.suffix.lower() in (".zip", ".dcm", ".ima")
        return [entry] if is_scan else []
    within = [entry] if entry.is_file() else [p for p in entry.rglob("*") if p.is_file() and not p.name.startswith(".")]
    if source == "nifti":
        return sorted(p for p in within if nifti.is_volume(p))
    if entry.is_file() and slices.is_picture(entry):
        raise UsageError("pictures lie directly in a class folder; expected <class>/<patient>/<scan>/0000.png")
    return sorted({p.parent for p in within if slices.is_picture(p)})


def _from_csv(root: Path, labels: Path, classes: tuple[str, ...]) -> Iterator[_Found]:
    if not labels.is_file():
        raise UsageError(f"data.labels is {labels}, which is no file; expected a CSV of {','.join(COLUMNS)}[,split]")
    with labels.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
        if missing:
            raise UsageError(f"{labels}: column(s) {', '.join(missing)} missing; expected {','.join(COLUMNS)}[,split]")
        rows = [{key: (value or "").strip() for key, value in row.items() if isinstance(key, str)} for row in reader]
    _check_rows(labels, rows, classes)
    for line, row in enumerate(rows, start=2):
        path = root / row["path"]
        if not path.exists():
            raise UsageError(f"{labels}, line {line}: nothing lies at this path under {root}; mend the path")
        yield _Found(path, row["label"], row["patient"], row.get("split") or None)


def _check_rows(labels: Path, rows: list[dict[str, str]], classes: tuple[str, ...]) -> None:
    splits_of: dict[str, set[str]] = defaultdict(set)
    seen: set[str] = set()
    for line, row in enumerate(rows, start=2):
        where = f"{labels}, line {line}"
        if not row["path"] or not row["patient"]:
            raise UsageError(f"{where}: path and patient must not be empty; scans of one patient share a patient value")
        if row["label"] not in classes:
            raise UsageError(f"{where}: the label is none of the classes {', '.join(classes)}; mend either")
        if row.get("split") and row["split"] not in SPLITS:
            raise UsageError(f"{where}: the split is none of {', '.join(SPLITS)}")
        if row["path"] in seen:
            raise UsageError(f"{where}: the path is listed twice; keep one line per scan")
        seen.add(row["path"])
        splits_of[row["patient"]].add(row.get("split", ""))
    given = {split for splits in splits_of.values() for split in splits}
    if "" in given and len(given) > 1:
        raise UsageError(f"{labels}: some lines have a split and some don't; give it for all scans or for none")
    torn = sum(len(splits) > 1 for splits in splits_of.values())
    if torn:
        raise UsageError(f"{labels}: {torn} patient(s) have scans in two splits; keep all scans of a patient in one")
