"""Does a dataset leak? Patients in two splits, a split inside another, one scan twice, a class that a split lacks."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from covidnet.data import packed
from covidnet.errors import UsageError


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing the audit found.

    Args:
        kind: ``patient-overlap``, ``split-inside-split``, ``duplicate-scan`` or ``empty-class``.
        leak: whether it makes test figures untrustworthy.
        message: what, where, how many.
    """

    kind: str
    leak: bool
    message: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A scan as the audit sees it: ``content`` is a hash of its voxels, or its file list for split files."""

    split: str
    label: str
    patient: str
    content: str


@dataclass(frozen=True, slots=True)
class Audit:
    """Findings, and counts per split and class."""

    findings: tuple[Finding, ...]
    scans: dict[str, dict[str, int]]
    patients: dict[str, int]

    @property
    def leaks(self) -> bool:
        return any(finding.leak for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        return {"leaks": self.leaks, **asdict(self)}


def audit_packed(folder: Path) -> Audit:
    """Audit the manifest of a packed dataset."""
    rows = packed.read(folder).rows
    return audit(Entry(row.split, row.label, row.patient_id, row.sha256) for row in rows)


def audit_splits(files: dict[str, Path]) -> Audit:
    """Audit split files in the authors' form, ``{class: {patient: {scan: [files]}}}``.

    Args:
        files: split name to JSON file.

    Raises:
        UsageError: a file is missing or has another form.
    """
    return audit(entry for split, path in files.items() for entry in _entries(split, path))


def audit(entries: Iterable[Entry]) -> Audit:
    """Audit scans, wherever they are listed; linear in their number."""
    scans: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    patients: dict[str, set[str]] = defaultdict(set)
    contents: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        scans[entry.split][entry.label] += 1
        patients[entry.split].add(entry.patient)
        contents[entry.content].append(entry)
    findings = [*_overlaps(patients), *_duplicates(contents), *_empty_classes(scans)]
    return Audit(
        tuple(findings),
        {split: dict(sorted(per_class.items())) for split, per_class in scans.items()},
        {split: len(members) for split, members in patients.items()},
    )


def _overlaps(patients: dict[str, set[str]]) -> Iterable[Finding]:
    for a, b in combinations(patients, 2):
        shared = len(patients[a] & patients[b])
        if not shared:
            continue
        for inner, outer in ((a, b), (b, a)):
            if patients[inner] <= patients[outer]:
                text = f"all {len(patients[inner])} patients of {inner} are in {outer} too"
                yield Finding("split-inside-split", True, text)
                break
        else:
            yield Finding("patient-overlap", True, f"{shared} patient(s) are both in {a} and in {b}")


def _duplicates(contents: dict[str, list[Entry]]) -> Iterable[Finding]:
    repeated = [group for group in contents.values() if len(group) > 1]
    across = sum(len({entry.split for entry in group}) > 1 for group in repeated)
    within = len(repeated) - across
    conflicting = sum(len({entry.label for entry in group}) > 1 for group in repeated)
    if across:
        yield Finding("duplicate-scan", True, f"{across} scan(s) occur in more than one split with the same content")
    if within:
        yield Finding("duplicate-scan", False, f"{within} scan(s) occur more than once within a split")
    if conflicting:
        yield Finding("duplicate-scan", True, f"{conflicting} scan(s) occur under different labels")


def _empty_classes(scans: dict[str, dict[str, int]]) -> Iterable[Finding]:
    labels = sorted({label for per_class in scans.values() for label in per_class})
    for split, per_class in scans.items():
        for label in labels:
            if not per_class.get(label):
                yield Finding("empty-class", False, f"split {split} has no scan of class {label}")


def _entries(split: str, path: Path) -> Iterable[Entry]:
    try:
        tree = json.loads(path.read_text())
        for label, patients in tree.items():
            for patient, scans in patients.items():
                for scan, files in scans.items():
                    yield Entry(split, str(label), str(patient), f"{patient}/{scan}/{json.dumps(files)}")
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{path}: expected a JSON file {{class: {{patient: {{scan: [files]}}}}}}, found {type(error).__name__}: {error}"
        ) from None
