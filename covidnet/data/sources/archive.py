"""A zip of one scan, unpacked for as long as it is read, with every limit checked before a byte is inflated."""

import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from covidnet.data.sources.limits import MAX_BYTES, MAX_FILES, check_ratio
from covidnet.errors import ScanError, fault_of_machine


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A temporary folder with the members of a zip; removed, with all patient data in it, on leaving.

    Raises:
        ScanError: damaged or encrypted, more or larger than the limits, or a member that would escape the folder.
    """
    with tempfile.TemporaryDirectory(prefix="covidnet-") as temporary:
        folder = Path(temporary)
        try:
            with zipfile.ZipFile(path) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
                check(members)
                for member in members:
                    target = folder / member.filename
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(member) as packed, target.open("wb") as stream:
                        shutil.copyfileobj(packed, stream, 2**20)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and fault_of_machine(error):
                raise  # a full disk is no fault of the scan
            raise ScanError(f"the zip can't be unpacked ({type(error).__name__}); pack the series again") from None
        yield folder


def check(members: list[zipfile.ZipInfo]) -> None:
    """Refuse what a zip of one CT series never has; sizes are the declared ones, beyond which `zipfile` won't inflate.

    Raises:
        ScanError: naming the limit and what was found.
    """
    total = sum(member.file_size for member in members)
    if len(members) > MAX_FILES:
        raise ScanError(f"the zip has {len(members)} members, expected at most {MAX_FILES}; pack one series only")
    if total > MAX_BYTES:
        raise ScanError(f"the zip unpacks to {total / 2**30:.1f} GiB, expected at most {MAX_BYTES // 2**30} GiB")
    check_ratio(total, sum(member.compress_size for member in members))
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in member.filename or not name.parts:
            raise ScanError("the zip has a member whose path leaves its folder; pack the series with relative paths")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ScanError("the zip has a symbolic link; pack the files themselves")
        if member.flag_bits & 1:
            raise ScanError("the zip is encrypted; pack the series without a password")
