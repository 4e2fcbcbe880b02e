"""Does a dataset leak, and can its classes be told by anything but the disease?

    audit_packed(Path("results/dataset"))                        # what `covidnet audit` and `ingest` do
    audit_splits({"train": Path(...), "test": Path(...)})        # the authors' split files
    require_clean(Path("results/dataset"), config.data.allow)    # what every later stage does first

Leaks: patients in two splits, a split inside another, one scan in two splits or under two labels, the same bytes or saved
anew. Beside them: classes that a split lacks, shortcuts, and how classes differ in slice count and spacing.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from covidnet import __version__
from covidnet.data import datasets, packed
from covidnet.data.audit import leaks, shortcuts
from covidnet.data.audit.leaks import Entry, Finding, Pair
from covidnet.data.audit.near import near_duplicates
from covidnet.data.audit.shortcuts import Shortcut
from covidnet.errors import CovidnetError

__all__ = [
    "Audit", "Entry", "Finding", "audit", "audit_packed", "audit_splits", "findings_of", "require_clean", "write",
]  # fmt: skip

JSON_NAME, PAGE_NAME = "audit.json", "audit.html"
Spread = dict[str, dict[str, list[float]]]  # property to class to [least, lower quartile, median, upper quartile, most]


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found in a dataset.

    Args:
        findings: leaks and remarks.
        scans: scans per split and class.
        patients: patients per split.
        spread: of slice count and spacing, per class; empty for split files without them.
        shortcuts: what trivial models tell the class by; empty where there are too few patients.
        near: pairs of rows that look like one scan, with their likeness.
    """

    findings: tuple[Finding, ...]
    scans: dict[str, dict[str, int]]
    patients: dict[str, int]
    spread: Spread
    shortcuts: tuple[Shortcut, ...] = ()
    near: tuple[Pair, ...] = ()

    def stopping(self, allow: Sequence[str]) -> list[Finding]:
        """Leaks of which ``allow`` (`data.allow`) doesn't name the kind."""
        return leaks.stopping(self.findings, allow)

    @property
    def leaks(self) -> bool:
        return any(finding.leak for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        return {"leaks": self.leaks, **asdict(self)}


def audit_packed(folder: Path) -> Audit:
    """Audit a packed dataset: its manifest, and signatures made from its voxels.

    Raises:
        CovidnetError: the folder is no packed dataset.
    """
    dataset = packed.read(folder)
    rows = dataset.rows
    return audit(
        [Entry(row.split, row.label, row.patient_id, row.sha256) for row in rows],
        _spread(
            [row.label for row in rows],
            {
                "slices": [float(row.slices) for row in rows],
                **{f"spacing_{axis}_mm": [row.spacing_mm[index] for row in rows] for index, axis in enumerate("zyx")},
            },
        ),
        near_duplicates(dataset.scans),
        shortcuts.find(dataset),
    )


def audit_splits(files: dict[str, Path]) -> Audit:
    """Audit split files in the authors' form, ``{class: {patient: {scan: [files]}}}``.

    Args:
        files: split name to JSON file.

    Raises:
        UsageError: a file is missing or has another form.
    """
    scans = [(split, *scan) for split, path in files.items() for scan in datasets.read_list(path)]
    entries = [
        Entry(split, label, patient, f"{patient}/{scan}/{json.dumps(names)}")
        for split, label, patient, scan, names in scans
    ]
    return audit(
        entries, _spread([entry.label for entry in entries], {"files": [float(len(names)) for *_, names in scans]})
    )


def audit(
    entries: Iterable[Entry],
    spread: Spread | None = None,
    near: Sequence[Pair] = (),
    found_shortcuts: tuple[Shortcut, ...] = (),
) -> Audit:
    """Audit scans, wherever they are listed; linear in their number."""
    entries = list(entries)
    scans: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    patients: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        scans[entry.split][entry.label] += 1
        patients[entry.split].add(entry.patient)
    findings = (
        *leaks.overlaps(entries),
        *leaks.duplicates(entries),
        *leaks.near(entries, near),
        *leaks.empty_classes(scans),
        *(Finding("shortcut", False, text) for text in shortcuts.flags(found_shortcuts)),
    )
    return Audit(
        findings,
        {split: dict(sorted(per_class.items())) for split, per_class in scans.items()},
        {split: len(members) for split, members in patients.items()},
        spread or {},
        found_shortcuts,
        tuple(near),
    )


def write(folder: Path) -> Audit:
    """Audit a packed dataset and leave `audit.json` and `audit.html` in it."""
    from covidnet.data.audit import page

    found = audit_packed(folder)
    tree = {"of": _state(folder), **found.to_dict()}
    (folder / JSON_NAME).write_text(json.dumps(tree, indent=2) + "\n")
    (folder / PAGE_NAME).write_text(page.render(found, packed.read(folder)))
    return found


def findings_of(folder: Path) -> list[Finding]:
    """A dataset's findings: those of its `audit.json`, if that is of the very bytes that lie there, else of an audit now."""
    kept = _kept_findings(folder)
    return list(audit_packed(folder).findings) if kept is None else kept


def _kept_findings(folder: Path) -> list[Finding] | None:
    try:
        tree = json.loads((folder / JSON_NAME).read_text())
        return [Finding(**item) for item in tree["findings"]] if tree["of"] == _state(folder) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def require_clean(folder: Path, allow: Sequence[str]) -> None:
    """Refuse a dataset that leaks.

    Args:
        folder: packed dataset.
        allow: kinds of leak to let through (``data.allow``).

    Raises:
        CovidnetError: it is damaged, or it leaks; says how, and how to override.
    """
    findings = _kept_findings(folder)
    if findings is None:
        packed.verify(folder)
        findings = list(audit_packed(folder).findings)
    stopping = leaks.stopping(findings, allow)
    if stopping:
        kinds = ", ".join(sorted({finding.kind for finding in stopping} | set(allow)))
        listing = "\n".join(f"  {finding.kind}: {finding.message}" for finding in stopping)
        raise CovidnetError(
            f"{folder} leaks, so that figures on it would not be worth anything:\n{listing}\n"
            f"`covidnet audit {folder} --html audit.html` shows it. Mend the labels or the splits and ingest again, or let "
            f"it through by name: -S data.allow='[{kinds}]'"
        )


def _state(folder: Path) -> dict[str, str]:
    """What an audit holds for: the data and the code."""
    state = {"covidnet3d": __version__}
    for name in ("manifest.csv", "scans.npy"):
        with (folder / name).open("rb") as stream:
            state[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return state


def _spread(labels: Sequence[str], values: dict[str, list[float]]) -> Spread:
    members = {label: np.array([item == label for item in labels], bool) for label in sorted(set(labels))}
    found: Spread = {}
    for name, numbers in values.items():
        column = np.array(numbers)
        found[name] = {
            label: [round(float(q), 4) for q in np.quantile(column[inside], (0, 0.25, 0.5, 0.75, 1))]
            for label, inside in members.items()
        }
    return found
