"""The store in Postgres, which several replicas share: the same answers as SQLite's, and a database that goes away."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.errors import Conflict, StoreUnavailable, UnknownRequest
from serving.monitoring.store import Prediction, Store

pytestmark = pytest.mark.slow


class Cluster:
    """A Postgres of its own, which takes anyone from this machine.

    Args:
        programs: folder of Postgres' programs.
        folder: for its data.
    """

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._data = programs, folder / "data"
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
        self.url = f"postgresql://postgres@127.0.0.1:{self._port}/postgres"
        if os.getuid() == 0:  # Postgres refuses to run as root
            shutil.chown(folder, "postgres")
        self._run("initdb", "-D", str(self._data), "-A", "trust", "-U", "postgres", "--no-sync")

    def start(self) -> None:
        """Accept connections."""
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
        self._run("pg_ctl", "-D", str(self._data), "-w", "-l", str(self._data / "log"), "-o", options, "start")

    def stop(self) -> None:
        """End all connections."""
        self._run("pg_ctl", "-D", str(self._data), "-w", "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        who = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        command = [*who, str(self._programs / program), *arguments]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/", check=False)
        assert done.returncode == 0, done.stderr.decode()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("postgresql is not installed; apt-get install postgresql")
    with tempfile.TemporaryDirectory(prefix="covidnet-postgres-") as folder:  # pytest's own are closed to others
        made = Cluster(found[-1].parent, Path(folder))
        made.start()
        yield made
        made.stop()


def one(request_id: str) -> Prediction:
    return Prediction(request_id, "v1", {"NCP": 0.2, "CP": 0.7, "Normal": 0.1}, {"slices": 40.0})


def test_replicas_share_predictions_and_feedback(cluster: Cluster) -> None:
    here, there = Store(cluster.url), Store(cluster.url)
    here.add(one("a"))
    assert [prediction.request_id for prediction in here.predictions("v1", 10)] == ["a"]
    assert there.feedback("a", "NCP") == "CP"  # told to another replica than the one that answered
    assert here.feedback("a", "NCP") is None
    with pytest.raises(Conflict):
        here.feedback("a", "Normal")
    with pytest.raises(UnknownRequest):
        there.feedback("nobody's", "NCP")
    assert [outcome.label for outcome in here.outcomes("v1", 10)] == ["NCP"]
    here.close()
    there.close()


def test_a_database_that_goes_away_refuses_feedback_and_loses_nothing(cluster: Cluster) -> None:
    store = Store(cluster.url)
    store.add(one("b"))
    assert store.feedback("b", "CP") == "CP"
    cluster.stop()
    for number in range(3):
        store.add(one(f"c{number}"))
    with pytest.raises(StoreUnavailable):
        store.feedback("c0", "NCP")
    cluster.start()
    assert store.feedback("c0", "NCP") == "CP"
    assert {"b", "c0", "c1", "c2"} <= {prediction.request_id for prediction in store.predictions("v1", 10)}
    assert [outcome.label for outcome in store.outcomes("v1", 2)] == ["CP", "NCP"]
    store.close()
