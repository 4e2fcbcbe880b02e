"""What makes test figures untrustworthy: patients or scans on two sides of a split, and classes that a split lacks."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing the audit found.

    Args:
        kind: ``patient-overlap``, ``split-inside-split``, ``duplicate-scan``, ``near-duplicate``, ``empty-class`` or
            ``shortcut``; leaks of a kind are let through by ``data.allow``.
        leak: whether it makes test figures untrustworthy.
        message: what, where, how many.
    """

    kind: str
    leak: bool
    message: str


def stopping(findings: Iterable[Finding], allow: Sequence[str]) -> list[Finding]:
    """Leaks of which `data.allow` doesn't name the kind: the stages stop for them."""
    return [finding for finding in findings if finding.leak and finding.kind not in allow]


@dataclass(frozen=True, slots=True)
class Entry:
    """A scan as the audit sees it: ``content`` is a hash of its voxels, or its file list for split files."""

    split: str
    label: str
    patient: str
    content: str


Pair = tuple[int, int, float]  # two scans, by their row, and their likeness


def overlaps(entries: Sequence[Entry]) -> Iterable[Finding]:
    """Patients in two splits; a split whose patients are all in another is named as such."""
    patients: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        patients[entry.split].add(entry.patient)
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


def duplicates(entries: Sequence[Entry]) -> Iterable[Finding]:
    """Scans with the same content."""
    contents: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        contents[entry.content].append(entry)
    repeated = [group for group in contents.values() if len(group) > 1]
    across = sum(len({entry.split for entry in group}) > 1 for group in repeated)
    conflicting = sum(len({entry.label for entry in group}) > 1 for group in repeated)
    within = len(repeated) - across
    if across:
        yield Finding("duplicate-scan", True, f"{across} scan(s) occur in more than one split with the same content")
    if within:
        yield Finding("duplicate-scan", False, f"{within} scan(s) occur more than once within a split")
    if conflicting:
        yield Finding("duplicate-scan", True, f"{conflicting} scan(s) occur under different labels")


def near(entries: Sequence[Entry], pairs: Sequence[Pair]) -> Iterable[Finding]:
    """Pairs that look like one scan, saved twice, and don't have the same content."""
    alike = [(entries[a], entries[b]) for a, b, _ in pairs if entries[a].content != entries[b].content]
    across = sum(a.split != b.split for a, b in alike)
    conflicting = sum(a.label != b.label for a, b in alike)
    within = len(alike) - across
    what = "pair(s) of scans look like one scan saved twice"
    if across:
        yield Finding("near-duplicate", True, f"{across} {what} and are in different splits")
    if within:
        yield Finding("near-duplicate", False, f"{within} {what}, within a split")
    if conflicting:
        yield Finding("near-duplicate", True, f"{conflicting} {what} and have different labels")


def empty_classes(scans: dict[str, dict[str, int]]) -> Iterable[Finding]:
    """Classes that a split has no scan of."""
    labels = sorted({label for per_class in scans.values() for label in per_class})
    for split, per_class in scans.items():
        for label in labels:
            if not per_class.get(label):
                yield Finding("empty-class", False, f"split {split} has no scan of class {label}")
