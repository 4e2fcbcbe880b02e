"""The wheel: the same bytes from the same sources, the library and nothing else, and a command that answers at once."""

import os
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="pip install hatchling, which builds the wheel")

PACKED = ("covidnet", "pyproject.toml", "README.md", "LICENSE")


def run(*command: object, **options: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(repository: Path, folder: Path) -> Path:
    """The wheel of a copy of the sources."""
    folder.mkdir()
    for name in PACKED:
        if (repository / name).is_dir():
            shutil.copytree(repository / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(repository / name, folder / name)
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", cwd=folder)
    (wheel,) = (folder / "dist").iterdir()
    return wheel


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(repository, tmp_path_factory.mktemp("wheel") / "first")


def test_another_folder_on_another_day_gives_the_same_bytes(
    wheel: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    again = build(repository, tmp_path / "elsewhere")  # the copies have other times
    assert again.name == wheel.name
    assert again.read_bytes() == wheel.read_bytes()


def test_it_holds_the_library_with_its_templates_and_the_licence_and_nothing_else(
    wheel: Path, repository: Path
) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tracked = run("git", "ls-files", "covidnet", cwd=repository).split()
    assert {name for name in names if ".dist-info/" not in name} == set(tracked)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_it_installs_into_an_empty_environment_and_answers_at_once(wheel: Path, tmp_path: Path) -> None:
    """What it depends on is lent from here: `tests/test_images.py` installs that as well, where there is a network."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", "--no-deps", wheel)
    lent = {**os.environ, "PYTHONPATH": str(Path(pytest.__file__).parents[1])}
    place, version = run(
        python, "-c", "import covidnet; print(covidnet.__file__, covidnet.__version__)", env=lent, cwd=tmp_path
    ).split()
    assert place.startswith(str(tmp_path))
    assert version == wheel.name.split("-")[1]
    run(tmp_path / "venv" / "bin" / "covidnet", "--help", env=lent, cwd=tmp_path)  # compiles the modules
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "predict" in run(tmp_path / "venv" / "bin" / "covidnet", "--help", env=lent, cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # whatever else the machine does
    assert seconds < 0.5
