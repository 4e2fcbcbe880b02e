"""How much a scan may be, checked from names, sizes and headers before anything is decoded."""

from collections.abc import Sequence
from math import prod
from pathlib import Path

from covidnet.errors import ScanError

MAX_VOXELS = 2**29  # 1 GiB of int16; 1,000 slices of 512 x 512 are half of it
MAX_FILES = 10_000
MAX_BYTES = 4 * 2**30  # a whole-chest series at 0.5 mm is below 1 GiB
MAX_RATIO = 200  # CT compresses two- to fivefold, padding a hundredfold; a bomb starts at a thousand
SMALL_BYTES = 16 * 2**20  # below this no ratio is dangerous


def check_voxels(shape: Sequence[int]) -> None:
    """Refuse an empty volume and one that no chest CT fills.

    Raises:
        ScanError: naming the shape and the limit.
    """
    if not 0 < prod(int(side) for side in shape) <= MAX_VOXELS:
        raise ScanError(f"expected 1 to {MAX_VOXELS} voxels, found {' x '.join(map(str, shape))}; export one chest CT")


def check_ratio(unpacked_bytes: int, stored_bytes: int) -> None:
    """Refuse what inflates as no CT does.

    Raises:
        ScanError: naming the ratio and the limit.
    """
    if unpacked_bytes > SMALL_BYTES and unpacked_bytes > MAX_RATIO * max(1, stored_bytes):
        ratio = unpacked_bytes // max(1, stored_bytes)
        raise ScanError(f"the scan inflates {ratio}-fold, expected at most {MAX_RATIO}-fold; export it anew")


def files_of(folder: Path) -> list[Path]:
    """The files below a folder, without hidden ones, sorted by path.

    Raises:
        ScanError: too many, too large together, or a link to elsewhere.
    """
    files = []
    total = 0
    for path in folder.rglob("*"):
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise ScanError("a file of the scan is a symbolic link out of its folder; put the file itself there")
        files.append(path)
        total += path.stat().st_size
        if len(files) > MAX_FILES:
            raise ScanError(f"the folder has more than {MAX_FILES} files; give the folder of one scan")
        if total > MAX_BYTES:
            raise ScanError(f"the folder has more than {MAX_BYTES // 2**30} GiB; give the folder of one scan")
    return sorted(files)


def check_file(path: Path) -> None:
    """Refuse what is no plain file, or too large a one.

    Raises:
        ScanError: naming the limit.
    """
    if not path.is_file():
        raise ScanError("expected a file or a folder, found a device, a pipe or a socket; give the scan itself")
    if path.stat().st_size > MAX_BYTES:
        raise ScanError(f"the file is larger than {MAX_BYTES // 2**30} GiB; export one chest CT")
