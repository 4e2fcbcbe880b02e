"""A bundle in an S3 bucket, as KServe's `storageUri` names it, served from there."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import s3_server

from covidnet.export.bundle import Bundle

if TYPE_CHECKING:
    from conftest import Server

pytestmark = [pytest.mark.slow, s3_server.needs_s3]


@pytest.fixture(scope="module")
def uri(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the tests' bundle lies on a running S3 server, which the environment names."""
    with s3_server.running(tmp_path_factory.mktemp("s3"), "models"):
        for path in bundle_dir.iterdir():
            s3_server.client().put_file(str(path), f"models/run/bundle/{path.name}")
        yield "s3://models/run/bundle"


def refused(repository: Path, uri: str, **variables: str) -> str:
    """What the server says to a bundle that it can't get."""
    command = [sys.executable, "-m", "serving", "--bundle", uri]
    done = subprocess.run(command, cwd=repository, env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_bundle_in_a_bucket_is_served(start: "Callable[..., Server]", uri: str, bundle_dir: Path) -> None:
    server = start("--bundle", uri)
    answer = httpx.post(f"{server.http}/v1/phantoms/NCP", timeout=60)
    assert answer.status_code == 200
    version = Bundle.load(bundle_dir).version
    assert f"bundle {version}:" in server.log.read_text()
    assert server.stop() == 0


def test_what_is_wrong_with_a_bucket_is_said(repository: Path, uri: str) -> None:
    assert "no bundle at this s3:// address" in refused(repository, f"{uri}/nothing")
    assert "no bundle at this s3:// address" in refused(repository, "s3://nosuchbucket/bundle")
    assert "refuses to give the bundle" in refused(repository, uri, AWS_SECRET_ACCESS_KEY="wrong")
    closed = refused(repository, uri, AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_MAX_ATTEMPTS="1")
    assert "check the address, and the endpoint" in closed


def test_a_bundle_that_was_changed_in_the_bucket_is_refused(repository: Path, uri: str) -> None:
    with s3_server.client().open("models/run/bundle/labels.json", "wb") as stream:
        stream.write(b'["NCP", "CP", "other"]')
    assert "labels.json" in refused(repository, uri)
