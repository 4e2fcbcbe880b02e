"""A bundle from wherever it lies: a folder, or a URI as KServe's ``storageUri`` takes it.

In a cluster KServe's own initializer has fetched the URI into ``/mnt/models`` before the server starts. This does the
same on one machine, through fsspec: ``s3://`` and ``http(s)://`` with what `covidnet3d[serving]` installs, ``gs://``,
``hf://``, ``abfs://`` and others where gcsfs, huggingface_hub or adlfs are. Endpoints and keys come from the usual
variables (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ...). The bundle is verified after it was fetched, as always.
"""

import re
from pathlib import Path

import fsspec

from covidnet.errors import CovidnetError, UsageError
from covidnet.export.bundle import FILES, OPTIONAL, SIGNATURE, SUMS

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://")


def fetch(uri: str, into: Path) -> Path:
    """The bundle's folder; a remote one is copied into ``into``, which the caller removes.

    Args:
        uri: a path, ``file://``, or what fsspec has a file system for.
        into: an empty folder.

    Raises:
        UsageError: no file system for the scheme, or its package isn't installed.
        CovidnetError: a file of the bundle isn't there, the storage refuses the keys, or it can't be reached.
    """
    scheme = _SCHEME.match(uri)
    if scheme is None:
        return Path(uri)
    if scheme[1] == "file":
        return Path(uri.removeprefix("file://"))
    try:
        system, root = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise UsageError(
            f"--bundle: can't read {scheme[1]}:// here ({error}); give a folder, s3:// or https://"
        ) from None
    try:
        system.get_file(f"{root.rstrip('/')}/{SUMS}", str(into / SUMS))
        listed = [line.split()[-1] for line in (into / SUMS).read_text().splitlines() if line.strip()]
        for name in {*listed} & {*FILES, *OPTIONAL}:
            system.get_file(f"{root.rstrip('/')}/{name}", str(into / name))
        if system.exists(f"{root.rstrip('/')}/{SIGNATURE}"):
            system.get_file(f"{root.rstrip('/')}/{SIGNATURE}", str(into / SIGNATURE))
    except FileNotFoundError:
        raise CovidnetError(
            f"no bundle at this {scheme[1]}:// address; expected {SUMS} there and the files that it lists"
        ) from None
    except PermissionError:
        raise CovidnetError(
            f"the {scheme[1]}:// storage refuses to give the bundle; check the keys in the environment, and their rights"
        ) from None
    except Exception as error:  # each storage has exceptions of its own
        raise CovidnetError(
            f"can't fetch the bundle from {scheme[1]}:// storage ({type(error).__name__}); "
            "check the address, and the endpoint in the environment"
        ) from None
    return into
