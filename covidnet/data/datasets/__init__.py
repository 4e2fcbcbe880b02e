"""The three public datasets of the paper, read from the folders in which they are published.

    scans(Data(source="mosmed", root="COVID19_1110"))      # what there is to read
    missing(Data(source="mosmed", ...))                    # what the authors' lists name and the disk lacks, and vice versa

A dataset is a table entry: how its class folders are named and which class each stands for, which of a file's parents are
scan and patient. `docs/datasets.md` says where to get each.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from covidnet.config import Data
from covidnet.errors import UsageError

MAX_DEPTH = 4  # folders between data.root and the class folders: archives unpack into one or two of their own


@dataclass(frozen=True, slots=True)
class Layout:
    """How a dataset lies on disk.

    Args:
        folders: regular expression of a class folder's name, to the class.
        pattern: of a scan below its class folder.
        files: regular expression of the names of the files of a scan.
        severity: whether the class folder's name is a grade worth keeping.
        expected: the layout in words, for messages.
    """

    folders: dict[str, str]
    pattern: str
    files: str
    severity: bool
    expected: str

    def label(self, folder: str) -> str | None:
        """Class of a class folder's name; None for any other folder."""
        return next((label for name, label in self.folders.items() if re.fullmatch(name, folder)), None)


LAYOUTS = {
    "ccccii": Layout(
        {"NCP": "NCP", "CP": "CP", "Normal": "Normal"},
        "*/*",
        r".+\.(png|jpe?g)",
        False,
        "NCP/<patient>/<scan>/*.png, CP/..., Normal/...",
    ),
    "mosmed": Layout(
        {"CT-0": "Normal", "CT-[1-4]": "NCP"},
        "*",
        r"study_\d+\.nii(\.gz)?",
        True,
        "studies/CT-0/study_0001.nii.gz to studies/CT-4/...",
    ),
    "covidctset": Layout(
        {r"covid\d*": "NCP", r"normal\d*": "Normal"},
        "*/*",
        r".+\.tiff?",
        False,
        "covid1/<patient>/SR_2/*.tif, normal1/...",
    ),
}


@dataclass(frozen=True, slots=True)
class Scan:
    """A scan of a published dataset.

    Args:
        name: ``<class>/<patient>/<scan>``, by which the authors' lists know it.
        split: None where no list is given, or where the scan is in the training list and validation is still to be
            taken from it.
    """

    path: Path
    label: str
    patient: str
    name: str
    split: str | None = None
    severity: str = ""


def scans(data: Data) -> list[Scan]:
    """The scans to read: all that lie there, or those that the authors' lists name.

    A scan that several lists name comes once for each, so that the audit sees it.

    Raises:
        UsageError: no class folder of the dataset under the root, or a list that is missing or has another form.
    """
    there = on_disk(data)
    if data.splits is None:
        return list(there.values())
    return [replace(there[name], split=split) for name, split in listed(data) if name in there]


def on_disk(data: Data) -> dict[str, Scan]:
    """Name to scan, for every scan under the root; the order depends on nothing but names.

    Raises:
        UsageError: no class folder of the dataset under the root.
    """
    layout, root = LAYOUTS[data.source], Path(data.root or "")
    found: dict[str, Scan] = {}
    for folder, label in class_folders(root, layout):
        for path in sorted(folder.glob(layout.pattern)):
            if not any(re.fullmatch(layout.files, file.name) for file in (path.iterdir() if path.is_dir() else [path])):
                continue
            number = path.name.split(".")[0].removeprefix("study_")
            patient = number if path.is_file() else path.parent.name
            name = f"{label}/{patient}/{number}"
            if name in found:
                raise UsageError(
                    f"{root} holds a scan of {data.source} twice, in {found[name].path} and {path}; keep one"
                )
            found[name] = Scan(path, label, patient, name, severity=folder.name if layout.severity else "")
    if not found:
        raise UsageError(f"no scan of {data.source} under {root}; expected {layout.expected} (docs/datasets.md)")
    return found


def class_folders(folder: Path, layout: Layout, depth: int = MAX_DEPTH) -> Iterator[tuple[Path, str]]:
    """Class folders below a folder, however deep the archives unpacked them, with the class of each."""
    for entry in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(("_", "."))):
        label = layout.label(entry.name)
        if label is not None:
            yield entry, label
        elif depth > 1:
            yield from class_folders(entry, layout, depth - 1)


def listed(data: Data) -> Iterator[tuple[str, str | None]]:
    """Name and split of every scan in the authors' lists, ``{class folder: {patient: {scan: [files]}}}``.

    Raises:
        UsageError: a list is missing or has another form, or names a class that the dataset hasn't.
    """
    layout, paths = LAYOUTS[data.source], [Path(path) for path in data.splits or ()]
    # with two lists the training patients are still open: some of them become the validation split
    splits = ("train", "validation", "test") if len(paths) == 3 else (None, "test")
    for split, path in zip(splits, paths, strict=True):
        for folder, patient, scan, _ in read_list(path):
            label = layout.label(folder)
            if label is None:
                raise UsageError(f"{path}: {folder!r} is no class of {data.source}; expected {list(layout.folders)}")
            yield f"{label}/{patient}/{scan}", split


def read_list(path: Path) -> Iterator[tuple[str, str, str, list[str]]]:
    """Class, patient, scan and files of every scan of a split file in the authors' form.

    Raises:
        UsageError: the file is missing or has another form.
    """
    try:
        for label, patients in json.loads(path.read_text()).items():
            for patient, per_scan in patients.items():
                for scan, files in per_scan.items():
                    yield str(label), str(patient), str(scan), files
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{path}: expected a JSON file {{class: {{patient: {{scan: [files]}}}}}}, found {type(error).__name__}: {error}"
        ) from None


def missing(data: Data) -> tuple[list[str], list[Scan]]:
    """Names of the scans that the lists have and the disk lacks, and the scans on disk that no list names."""
    there, names = on_disk(data), dict.fromkeys(name for name, _ in listed(data))
    return [name for name in names if name not in there], [scan for name, scan in there.items() if name not in names]
