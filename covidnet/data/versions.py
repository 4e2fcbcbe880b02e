"""Raw scans by version (``data.revision``): looked up, fetched, and checked by the hash of every file.

    version = versions.find(config.data)                # a few requests; None where data.root is a folder
    config = versions.fetched(config, version)          # data.root is now a folder of this machine

Files are kept by their hash, below `COVIDNET_WORKSPACE` or the user's cache, and a version is a folder of links to them:
the next version costs what is new in it, and `ingest` reads what is new in it and no more. DVC's own client reads git
repositories; a remote is read by DVC's layout alone, which needs neither git nor a repository.
"""

import hashlib
import json
import os
import posixpath
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from covidnet.config import Config, Data
from covidnet.errors import CovidnetError, UsageError, fault_of_machine
from covidnet.folder import WORKSPACE
from covidnet.progress import progress

THREADS = 8  # files are fetched and hashed side by side: most of the time is waiting
_MD5 = r"[0-9a-f]{32}"


class _Store(Protocol):
    """Where the files of a version come from."""

    def get(self, name: str, md5: str, target: Path) -> None:
        """Write one file; raises FileNotFoundError where it is gone."""

    def place(self, name: str, md5: str) -> str:
        """What to call a file in a message: patients' names may be in its path."""


@dataclass(frozen=True, slots=True)
class Version:
    """A version of the raw scans.

    Args:
        files: path below the root to MD5, which is what DVC goes by; in the order of the paths.
        record: for `provenance.json`: ``revision`` as it was asked for, ``commit`` of a git repository, ``md5`` that DVC
            gives the folder (null where it tracks parts of it), ``files``, and ``sha256`` of `files`.
    """

    files: Mapping[str, str]
    record: Mapping[str, Any]
    store: _Store

    @property
    def digest(self) -> str:
        """Equal for equal files, whichever way they come."""
        return str(self.record["sha256"])

    @property
    def pin(self) -> str:
        """The revision that will always mean this version, unlike a branch."""
        return str(self.record.get("commit") or self.record["md5"])


def find(data: Data) -> Version | None:
    """Look a version up; None where ``data.revision`` isn't set.

    Raises:
        UsageError: ``data.root`` has another form, can't be reached or has no such revision, or DVC isn't installed.
        CovidnetError: the list of its files is damaged.
    """
    if data.revision is None:
        return None
    root = data.root or ""
    with _explained(data):
        return _of_remote(root, data.revision) if root.startswith("s3://") else _of_repository(root, data.revision)


def fetched(config: Config, version: Version | None) -> Config:
    """The configuration with ``data.root`` on this machine, and every file there checked.

    ``data.labels`` and ``data.splits`` that are paths within the version are taken from there.

    Raises:
        CovidnetError: files of the version are missing from where they should be, or aren't what their hash says.
    """
    if version is None:
        return config
    cache = _cache()
    root = cache / "versions" / version.digest[:16]
    faults: list[str] = []

    def provide(item: tuple[str, str]) -> str:
        try:
            _provide(version.store, *item, root, cache / "files")
        except _Fault as fault:
            return str(fault)
        return ""

    with (
        _explained(config.data),
        progress("fetch raw scans", len(version.files)) as advance,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        for fault in pool.map(provide, version.files.items()):
            faults += [fault] if fault else []
            advance()
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults[:5])
        raise CovidnetError(
            f"data.revision {config.data.revision}: {len(faults)} of {len(version.files)} files can't be had:\n{listed}\n"
            "Remove the damaged objects and push them again from a sound copy (`dvc push`), or take another revision."
        )

    def within(path: str) -> str:
        return str(root / path) if path in version.files else path

    changed: dict[str, Any] = {"root": str(root), "revision": None}
    if config.data.labels is not None:
        changed["labels"] = within(config.data.labels)
    if config.data.splits is not None:
        changed["splits"] = tuple(within(path) for path in config.data.splits)
    return config.model_copy(update={"data": config.data.model_copy(update=changed)})


def repository_of(data: Data) -> Path | None:
    """Folder of the git repository, where the version is one of a repository on this machine."""
    repository = (data.root or "").rpartition("//")[0]
    return Path(repository) if data.revision is not None and repository and Path(repository).is_dir() else None


class _Fault(Exception):
    """One file can't be had."""


@dataclass(frozen=True, slots=True)
class _Remote:
    """Objects of a DVC remote, ``<prefix>/files/md5/ab/cdef...``."""

    files: Any  # fsspec file system
    prefix: str

    def get(self, name: str, md5: str, target: Path) -> None:
        self.files.get_file(f"{self.prefix}/{self.place(name, md5)}", str(target))

    def place(self, name: str, md5: str) -> str:
        return f"files/md5/{md5[:2]}/{md5[2:]}"


@dataclass(frozen=True, slots=True)
class _Repository:
    """Files of a git repository that DVC tracks there, and that git does."""

    files: Any  # DVCFileSystem
    root: str

    def get(self, name: str, md5: str, target: Path) -> None:
        self.files.get_file(posixpath.join(self.root, name), str(target))

    def place(self, name: str, md5: str) -> str:
        return f"the file of MD5 {md5}"


def _of_remote(root: str, revision: str) -> Version:
    if not re.fullmatch(rf"{_MD5}(\.dir)?", revision):
        raise UsageError(
            f"data.revision {revision}: with data.root s3://BUCKET/PREFIX it is the hash of a folder, as the .dvc file or "
            "dvc.lock has it (`md5: 32 hex digits and .dir`); for a git revision give data.root as REPOSITORY//PATH"
        )
    import fsspec

    md5 = revision.removesuffix(".dir")
    remote = _Remote(fsspec.filesystem("s3", skip_instance_cache=True), root.removeprefix("s3://").strip("/"))
    place = f"{remote.place('', md5)}.dir"
    try:
        listing = remote.files.cat_file(f"{remote.prefix}/{place}")
    except FileNotFoundError:
        raise UsageError(
            f"data.revision {revision}: no object {place} in {root}; give the `md5` of the folder's .dvc file, after "
            "`dvc push` to this remote"
        ) from None
    found = hashlib.md5(listing, usedforsecurity=False).hexdigest()
    if found != md5:
        raise CovidnetError(
            f"data.revision {revision}: the object {place} in {root} is corrupted: its MD5 is {found}; remove it and push "
            "again from a sound copy (`dvc push`)"
        )
    files = {str(entry["relpath"]): str(entry["md5"]) for entry in json.loads(listing)}
    return _version(files, {"revision": revision, "md5": f"{md5}.dir"}, remote)


def _of_repository(root: str, revision: str) -> Version:
    repository, _, path = root.rpartition("//")
    if not repository or repository.endswith(":") or not path:
        raise UsageError(
            f"data.root {root}: with data.revision {revision} expected REPOSITORY//PATH, e.g. "
            "https://git.example/scans.git//raw or /data/scans//raw, or s3://BUCKET/PREFIX with a DVC hash"
        )
    from dvc.api import DVCFileSystem

    files = DVCFileSystem(repository, rev=revision)
    path = path.strip("/")
    found: dict[str, str] = {}
    for name, info in files.find(path, detail=True).items():
        relative = posixpath.relpath(name, path)
        found[relative] = str(info.get("dvc_info", {}).get("md5") or _md5_of_stream(files, name))
    if not found:
        raise UsageError(f"data.root {root}: nothing lies at {path} in revision {revision}; mend the path")
    whole = files.info(path).get("dvc_info", {}).get("md5")
    record = {"revision": revision, "commit": files.repo.get_rev(), "md5": whole}
    return _version(found, record, _Repository(files, path))


def _version(files: dict[str, str], record: dict[str, Any], store: _Store) -> Version:
    for name, md5 in files.items():
        parts = name.split("/")
        if name.startswith("/") or "\\" in name or {"", ".", ".."} & set(parts) or not re.fullmatch(_MD5, md5):
            raise CovidnetError(
                f"data.revision {record['revision']} lists a file outside of its folder, or without an MD5"
            )
    ordered = dict(sorted(files.items()))
    digest = hashlib.sha256("".join(f"{md5} {name}\n" for name, md5 in ordered.items()).encode()).hexdigest()
    return Version(ordered, {**record, "files": len(ordered), "sha256": digest}, store)


def _provide(store: _Store, name: str, md5: str, root: Path, kept: Path) -> None:
    """Put one file in its place, from those that are here already or from the store; checked in any case."""
    target, file = root / name, kept / md5[:2] / md5[2:]
    if _is(target, md5):
        return
    target.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not _is(file, md5):
        file.parent.mkdir(parents=True, exist_ok=True)
        # files of equal content, and pods that share the folder, come here at once
        new = file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial")
        try:
            store.get(name, md5, new)
            found = _md5(new)
            if found != md5:
                raise _Fault(f"{store.place(name, md5)} is corrupted: its MD5 is {found}")
            os.chmod(new, 0o444)
            # the time of change stands for the content, so that a file that didn't change isn't read again
            os.utime(new, ns=(int(md5[:14], 16),) * 2)
            os.replace(new, file)
        except FileNotFoundError:
            raise _Fault(f"{store.place(name, md5)} is missing") from None
        finally:
            new.unlink(missing_ok=True)
    with suppress(FileExistsError):  # another shard was faster
        _link(file, target)


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except PermissionError:  # no hard links on this file system
        shutil.copy2(file, target)
    except FileNotFoundError:
        if not file.is_file():
            raise
        _link(file, target)  # just replaced by its equal: what the name stood for before had no name left to link


def _is(path: Path, md5: str) -> bool:
    return path.is_file() and not path.is_symlink() and _md5(path) == md5


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, _new_md5).hexdigest()


def _md5_of_stream(files: Any, name: str) -> str:
    with files.open(name, "rb") as stream:
        total = _new_md5()
        while block := stream.read(2**20):
            total.update(block)
        return total.hexdigest()


def _new_md5() -> "hashlib._Hash":
    return hashlib.md5(usedforsecurity=False)


def _cache() -> Path:
    root = os.environ.get(WORKSPACE) or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root) / "covidnet3d" / "raw"
    try:
        (folder / "files").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"data.revision: can't keep raw scans in {folder} ({error.strerror}); set XDG_CACHE_HOME"
        ) from None
    return folder


@contextmanager
def _explained(data: Data) -> Iterator[None]:
    """Whatever git, DVC or the S3 client raise becomes a message that says what to give."""
    try:
        yield
    except CovidnetError:
        raise
    except ImportError as error:
        raise UsageError(f"data.revision needs DVC ({error}): pip install 'covidnet3d[pipelines]'") from None
    except Exception as error:
        if fault_of_machine(error):
            raise  # a full disk here is no fault of the remote
        if type(error).__name__ == "RevError":
            hint = "give a branch, tag or commit that the repository has"
        elif isinstance(error, FileNotFoundError):
            hint = "mend the path in data.root, or give a revision that has it"
        else:
            hint = "look at the address, the network, and the credentials (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...)"
        raise UsageError(
            f"data.revision {data.revision}: can't be read from {data.root} ({type(error).__name__}: {error}); {hint}"
        ) from None
