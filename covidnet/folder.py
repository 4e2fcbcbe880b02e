"""A stage's output folder: written beside the target and renamed, with provenance; complete or not there at all.

    with folder.write(out, "search", parameters, inputs) as work:
        if work is None: return            # complete for the same inputs already
        (work / "genotype.json").write_text(...)

An interrupted stage leaves `<out>.partial`, which the same stage with the same key finds again (checkpoints live there).
Where the output folder goes with the task, as in a pod, `COVIDNET_WORKSPACE` names a folder that stays: stages work there
under their key and hand over a copy, so that a killed task goes on in its successor.
"""

import hashlib
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from covidnet import __version__
from covidnet.errors import CovidnetError, fault_of_machine

PROVENANCE = "provenance.json"
WORKSPACE = "COVIDNET_WORKSPACE"
_VERSIONED = ("torch", "numpy", "monai", "onnx", "onnxruntime-gpu", "openvino", "pydicom", "scikit-learn")


@contextmanager
def write(out: Path, stage: str, parameters: Mapping[str, Any], inputs: Mapping[str, Path]) -> Iterator[Path | None]:
    """Write a stage's output folder as a whole.

    Args:
        out: the target folder.
        stage: name written to the provenance.
        parameters: everything that the result depends on beside the inputs; JSON values.
        inputs: name to file or folder.

    Yields:
        the work folder to write into, or None when ``out`` is complete for the same parameters and inputs.

    Raises:
        CovidnetError: the disk is full or read-only, or memory ran out; what is done so far is kept.
    """
    digests = {name: digest(path) for name, path in inputs.items()}
    key = _key(stage, parameters, digests)
    if is_complete(out, key):
        yield None
        return
    target = Path(os.environ[WORKSPACE]) / f"{stage}-{key[:16]}" if os.environ.get(WORKSPACE) else out
    if target != out and is_complete(target, key):
        _replace(out, lambda new: shutil.copytree(target, new))
        yield None
        return
    work = target.with_name(target.name + ".partial")
    _claim(work, key)
    with _explained(stage, work):
        started = time.monotonic()
        yield work
        provenance = {
            "stage": stage,
            "key": key,
            "parameters": parameters,
            "inputs": digests,
            "versions": versions(),
            "git_revision": git_revision(),
            "seconds": round(time.monotonic() - started, 2),
            "peak_memory_mib": peak_memory_mib(),
            "outputs": sorted(str(p.relative_to(work)) for p in work.rglob("*") if p.is_file() and p.name != ".key"),
        }
        (work / PROVENANCE).write_text(json.dumps(provenance, indent=2, sort_keys=True) + "\n")
        _replace(target, lambda new: os.replace(work, new))
        (target / ".key").unlink()  # as the last, so that a kill or a full disk before costs nothing
        if target != out:
            _replace(out, lambda new: shutil.copytree(target, new))


def is_complete(out: Path, key: str | None = None) -> bool:
    """Whether a stage finished here, with every output still there; with ``key``, for the same inputs."""
    try:
        provenance = json.loads((out / PROVENANCE).read_text())
    except (OSError, ValueError):
        return False
    return (key is None or provenance.get("key") == key) and all((out / p).is_file() for p in provenance["outputs"])


def require(path: Path, verb: str) -> Path:
    """The output folder of an earlier stage.

    Raises:
        CovidnetError: it isn't there or isn't whole; says which verb makes it.
    """
    if not is_complete(path):
        raise CovidnetError(f"{path} is missing or incomplete; run `covidnet {verb}` first (or `dvc repro` for all)")
    return path


def provenance(path: Path) -> dict[str, Any]:
    """What a finished stage says of itself."""
    tree: dict[str, Any] = json.loads((path / PROVENANCE).read_text())
    return tree


def write_json(path: Path, tree: Any) -> None:
    """Stable JSON with a closing newline."""
    path.write_text(json.dumps(tree, indent=2) + "\n")


@contextmanager
def replacing(path: Path, ending: str = ".partial") -> Iterator[Path]:
    """Where to write a file's new content: the file is its old self until the block ends, and whole at any moment.

    Args:
        ending: of the name meanwhile; one of the process's own where several may write at a time.
    """
    partial = path.with_name(path.name + ending)
    yield partial
    partial.replace(path)


def finite(tree: Any) -> Any:
    """JSON has no NaN: undefined figures become null."""
    if isinstance(tree, Mapping):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    if isinstance(tree, float):  # NumPy's float64 too
        return float(tree) if math.isfinite(tree) else None
    return tree


def digest(path: Path) -> str:
    """sha256 of a file, or of a folder's relative names and contents (provenance and hidden files have times in them)."""
    if path.is_file():
        return _sha256(path)
    total = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file() and p.name != PROVENANCE and p.name[0] != "."):
        total.update(f"{file.relative_to(path)}\0{_sha256(file)}\n".encode())
    return total.hexdigest()


def code_digest() -> str:
    """First 12 hex digits of the sha256 of this package's sources: what a cached result must have in common."""
    package, total = Path(__file__).parent, hashlib.sha256()
    for file in sorted(p for p in package.rglob("*") if p.suffix in (".py", ".j2")):
        total.update(f"{file.relative_to(package)}\0{_sha256(file)}\n".encode())
    return total.hexdigest()[:12]


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"covidnet3d": __version__, "python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """Commit of the working directory, with ``+changes`` if it differs; None outside a repository."""
    try:
        command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def peak_memory_mib() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


@contextmanager
def _explained(stage: str, work: Path) -> Iterator[None]:
    """A full disk and the like end a stage with a message, whichever library met them."""
    try:
        yield
    except CovidnetError:
        raise
    except Exception as error:
        reason = fault_of_machine(error, work)
        if reason is None:
            raise
        raise CovidnetError(
            f"{stage} stopped: {reason}. What it had done is kept in {work}, the same command goes on from there"
        ) from None


def _replace(out: Path, make: Callable[[Path], object]) -> None:
    """Put what ``make`` makes in the place of ``out``, which is whole at any moment but that of the renaming."""
    old, new = out.with_name(out.name + ".old.partial"), out.with_name(out.name + ".new.partial")
    for leftover in (old, new):
        shutil.rmtree(leftover, ignore_errors=True)
    make(new)
    if out.exists():
        out.rename(old)
    os.replace(new, out)
    shutil.rmtree(old, ignore_errors=True)


def _key(stage: str, parameters: Mapping[str, Any], digests: Mapping[str, str]) -> str:
    text = json.dumps([stage, __version__, parameters, digests], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _claim(work: Path, key: str) -> None:
    """Keep a partial folder of the same key, empty one of any other."""
    stamp = work / ".key"
    if not (stamp.is_file() and stamp.read_text() == key):
        shutil.rmtree(work, ignore_errors=True)
        try:
            work.mkdir(parents=True)
        except OSError as error:
            raise CovidnetError(f"can't write to {work.parent}: {error.strerror}") from None
        stamp.write_text(key)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
