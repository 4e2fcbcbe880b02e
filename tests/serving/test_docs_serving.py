"""The examples of docs/serving.md, run as they stand against a real server."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel
import pytest

if TYPE_CHECKING:
    from conftest import Server

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text()
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in re.split(r"\n(?=curl|echo)", block)]
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, nifti: Path) -> Path:
    """Where a reader would be: with a scan and a zip beside them."""
    made = tmp_path_factory.mktemp("reader")
    shutil.copy(nifti, made / "scan.nii.gz")
    with zipfile.ZipFile(made / "series.zip", "w") as archive:
        archive.write(nifti, "scan.nii.gz")
    return made


def addressed(text: str, server: "Server") -> str:
    return text.replace("http://127.0.0.1:8080", server.http).replace("127.0.0.1:8081", server.grpc)


def test_there_are_examples() -> None:
    assert len(SHELL) == 8
    assert len(PYTHON) == 2


@pytest.mark.parametrize("command", SHELL)
def test_a_curl_example_is_answered(server: "Server", folder: Path, command: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed; apt-get install curl")
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", addressed(command, server)], cwd=folder, capture_output=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr.decode()
    if "-o " in command:
        written = folder / re.findall(r"-o (\S+)", command)[0]
        if written.suffix == ".gz":
            assert nibabel.load(written).shape == nibabel.load(folder / "scan.nii.gz").shape
        else:
            assert written.read_bytes().startswith(b"\x89PNG")
    else:
        assert b"NCP" in ended.stdout


@pytest.mark.parametrize("program", PYTHON)
def test_a_python_example_is_answered(server: "Server", folder: Path, repository: Path, program: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    command = [sys.executable, "-c", addressed(program, server)]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip()
