import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
REAL_SCANS = REPOSITORY.parent / "shared" / "data"

if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # what a shell starts in the background, and all its children, ignore
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C, which some tests send


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def real_scans() -> Path:
    """Real chest CTs, which are no part of the repository."""
    if not REAL_SCANS.is_dir():
        pytest.skip(f"real scans are not here: expected {REAL_SCANS}")
    return REAL_SCANS


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small tensors gain nothing from a second thread, and tests run side by side."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No measurement or engine that a user's cache holds decides a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of a given size at `results`, or mounts it anew with other options."""
    place = tmp_path / "results"
    place.mkdir()

    def mount(options: str) -> Path:
        again = "remount," if place.is_mount() else ""
        command = ["mount", "-t", "tmpfs", "-o", again + options, "drill", str(place)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting a file system needs root; run the tests with sudo")
        return place

    yield mount
    subprocess.run(["umount", str(place)], check=False, capture_output=True)
