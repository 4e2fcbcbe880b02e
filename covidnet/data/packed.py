"""The packed dataset that `ingest` writes: one memory-mappable uint8 array, a manifest, and what was left out."""

import csv
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from covidnet.errors import CovidnetError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Row:
    """One scan of `manifest.csv`; row i describes ``scans[i]``.

    Args:
        spacing: ``z;y;x`` in mm, as text.
        sha256: of the packed voxels.
        warnings: semicolon-separated remarks of the reader and of preprocessing.
        severity: grade that the dataset gives beside the class (MosMedData's CT-0 to CT-4); empty where it gives none.
    """

    scan_id: str
    patient_id: str
    label: str
    split: str
    source: str
    sha256: str
    spacing: str
    slices: int
    warnings: str
    severity: str = ""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """``(z, y, x)``; zeros where the source doesn't say."""
        z, y, x = (float(part) for part in (self.spacing or "0;0;0").split(";"))
        return z, y, x


@dataclass(frozen=True, slots=True)
class Packed:
    """An opened packed dataset.

    Args:
        scans: ``uint8 (N, D, H, W)``, memory-mapped.
        rows: one `Row` per scan.
        lesions: ``uint8 (N, D, H, W)`` masks where the source knows them (phantom), else None.
    """

    scans: np.ndarray
    rows: tuple[Row, ...]
    lesions: np.ndarray | None = None

    def split(self, name: str) -> np.ndarray:
        """Indices of the scans of a split."""
        return np.array([i for i, row in enumerate(self.rows) if row.split == name], dtype=np.int64)

    def count(self, *, patients: bool = False) -> dict[str, dict[str, int]]:
        """Split to class to number of scans, or of patients."""
        members: dict[str, dict[str, set[str]]] = {split: {} for split in SPLITS}
        for row in self.rows:
            members[row.split].setdefault(row.label, set()).add(row.patient_id if patients else row.scan_id)
        return {split: {label: len(who) for label, who in per.items()} for split, per in members.items()}

    def labels(self, classes: Sequence[str]) -> np.ndarray:
        """Class index of every scan.

        Raises:
            CovidnetError: the data has a class that ``classes`` doesn't.
        """
        index = {name: i for i, name in enumerate(classes)}
        unknown = sorted({row.label for row in self.rows} - set(index))
        if unknown:
            raise CovidnetError(
                f"the packed dataset has classes {unknown}, which are not in the configured {list(classes)}; "
                "ingest again, or set classes in params.yaml to those of the data"
            )
        return np.array([index[row.label] for row in self.rows], dtype=np.int64)


def read(folder: Path) -> Packed:
    """Open a packed dataset without reading its voxels.

    Raises:
        CovidnetError: a file is missing or damaged, or the array and the manifest don't belong together.
    """
    for name in ("scans.npy", "manifest.csv"):
        if not (folder / name).is_file():
            raise CovidnetError(f"{folder} is not a packed dataset: {name} is missing; run `covidnet ingest` first")
    scans = _mapped(folder / "scans.npy")
    rows = read_manifest(folder / "manifest.csv")
    if scans.dtype != np.uint8 or scans.ndim != 4 or len(scans) != len(rows):
        raise CovidnetError(
            f"{folder}: expected scans.npy uint8 ({len(rows)}, D, H, W) as manifest.csv says, "
            f"found {scans.dtype} {scans.shape}; run `covidnet ingest` again"
        )
    lesions = folder / "lesions.npy"
    return Packed(scans, rows, _mapped(lesions) if lesions.is_file() else None)


def verify(folder: Path) -> None:
    """Read all voxels and compare them with the manifest.

    Raises:
        CovidnetError: some aren't those that were ingested.
    """
    dataset = read(folder)
    pairs = zip(dataset.rows, dataset.scans, strict=True)
    altered = [row.scan_id for row, scan in pairs if hashlib.sha256(scan.tobytes()).hexdigest() != row.sha256]
    if altered:
        raise CovidnetError(
            f"{folder / 'scans.npy'} is damaged: {len(altered)} of {len(dataset.rows)} scans, {altered[0]} first, have "
            f"other voxels than manifest.csv says; remove {folder} and run `covidnet ingest` again"
        )


def _mapped(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise CovidnetError(
            f"{path} is damaged ({error}); remove {path.parent} and run `covidnet ingest` again"
        ) from None
    return array


def read_manifest(path: Path) -> tuple[Row, ...]:
    """Rows of a `manifest.csv`.

    Raises:
        CovidnetError: a column is missing or a split name is unknown.
    """
    with path.open(newline="") as stream:
        reader = csv.DictReader(stream)
        names = [field.name for field in fields(Row)]
        there = [name for name in names if name in (reader.fieldnames or [])]
        missing = [name for name in names if name not in there and name != "severity"]
        if missing:
            raise CovidnetError(f"{path}: columns {missing} are missing; expected {names}")
        rows = tuple(Row(**{n: line[n] for n in there if n != "slices"}, slices=int(line["slices"])) for line in reader)
    odd = sorted({row.split for row in rows} - set(SPLITS))
    if odd:
        raise CovidnetError(f"{path}: unknown splits {odd}; expected {list(SPLITS)}")
    return rows


def write_manifest(path: Path, rows: Iterable[Row]) -> None:
    """Write `manifest.csv`."""
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
