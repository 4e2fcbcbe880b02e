"""What was answered, and the truth that comes later: SQLite in a folder of this machine, or Postgres for several replicas.

A prediction is kept with its request's id, which is made here at random, its probabilities and its numeric features.
Nothing else of a request is: no name, no file, no caller's text. Rows are ordered by their number, never by a clock.

Feedback is on disk before it is acknowledged. Predictions are written together, `FLUSH_S` after the first of them, so
that a crash loses at most the answers of that time; feedback for those is refused as unknown.
"""

import json
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from covidnet.errors import UsageError
from serving import metrics
from serving.errors import Conflict, StoreUnavailable, UnknownRequest

FLUSH_S = 0.1
MOST_WAITING = 10_000  # predictions in memory while the disk is full or the database away; the oldest are given up
MOST_KEPT = 1_000_000  # predictions on disk, about 500 MB; feedback is kept for good
PRUNE_EVERY = 10_000

_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS predictions (seq {serial}, request_id TEXT UNIQUE NOT NULL,
       recorded_at DOUBLE PRECISION NOT NULL, version TEXT NOT NULL, probabilities TEXT NOT NULL, features TEXT NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS feedback (seq {serial}, request_id TEXT UNIQUE NOT NULL,
       recorded_at DOUBLE PRECISION NOT NULL, version TEXT NOT NULL, label TEXT NOT NULL, probabilities TEXT NOT NULL)""",
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answered scan.

    Args:
        request_id: random, made by the server.
        version: of the bundle.
        probabilities: by class.
        features: numbers that describe the scan.
    """

    request_id: str
    version: str
    probabilities: Mapping[str, float]
    features: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A prediction of which the truth is known.

    Args:
        label: true class.
        probabilities: what was answered, by class.
    """

    label: str
    probabilities: Mapping[str, float]


class _Database(Protocol):
    """What SQLite and Postgres have in common here."""

    errors: type[Exception]

    def connect(self) -> Any: ...
    def sql(self, statement: str) -> str: ...


class _Sqlite:
    errors: type[Exception] = sqlite3.Error

    def __init__(self, path: Path) -> None:
        self._path = path

    def connect(self) -> Any:
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))  # for the server's account alone
        connection = sqlite3.connect(self._path, timeout=5, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    def sql(self, statement: str) -> str:
        return statement.replace("{serial}", "INTEGER PRIMARY KEY AUTOINCREMENT")


class _Postgres:
    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ModuleNotFoundError:
            raise UsageError("a postgresql:// URL as COVIDNET_STATE needs `pip install 'psycopg[binary]'`") from None
        self._url = url
        self._connect = psycopg.connect
        self.errors: type[Exception] = psycopg.Error

    def connect(self) -> Any:
        return self._connect(self._url, connect_timeout=5)

    def sql(self, statement: str) -> str:
        return statement.replace("?", "%s").replace("{serial}", "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY")


class Store:
    """Predictions and feedback; methods block, but `add`.

    Args:
        place: folder for `monitoring.sqlite`, made where it isn't there, or a ``postgresql://`` URL.

    Raises:
        UsageError: the driver for Postgres is not installed.
    """

    def __init__(self, place: str) -> None:
        remote = place.startswith(("postgresql://", "postgres://"))
        self._folder = None if remote else Path(place)
        self._database: _Database = _Postgres(place) if remote else _Sqlite(Path(place) / "monitoring.sqlite")
        self._connection: Any = None
        self._lock = threading.Lock()
        self._waiting = deque[Prediction](maxlen=MOST_WAITING)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._flushing = False
        self._written = 0

    def add(self, prediction: Prediction) -> None:
        """Keep a prediction; returns at once, and never fails: an answer doesn't wait for the disk."""
        if len(self._waiting) == MOST_WAITING:
            metrics.STORE_LOST.inc()
        self._waiting.append(prediction)
        if not self._flushing:
            self._flushing = True
            self._writer.submit(self._flush_soon)

    def feedback(self, request_id: str, label: str) -> str | None:
        """Keep the truth about a prediction.

        Returns:
            the class that was predicted, or None where the same truth was known already.

        Raises:
            UnknownRequest: no prediction of that id is kept.
            Conflict: another label was given before, which stays.
            StoreUnavailable: it could not be written; nothing was kept.
        """
        with self._lock, self._transaction() as connection:
            self._write_waiting(connection)
            rows = self._all(connection, "SELECT label FROM feedback WHERE request_id = ?", request_id)
            if rows:
                if rows[0][0] != label:
                    raise Conflict("another label was given for this request before, and stays")
                return None
            taken = "SELECT version, probabilities FROM predictions WHERE request_id = ?"
            rows = self._all(connection, taken, request_id)
            if not rows:
                raise UnknownRequest("no answer of this request id is kept here")
            columns = (
                "INSERT INTO feedback (request_id, recorded_at, version, label, probabilities) VALUES (?, ?, ?, ?, ?)"
            )
            self._run(connection, columns, (request_id, time.time(), rows[0][0], label, rows[0][1]))
        probabilities = json.loads(rows[0][1])
        return str(max(probabilities, key=probabilities.__getitem__))

    def outcomes(self, version: str, most: int) -> list[Outcome]:
        """The last predictions of a bundle of which the truth is known, oldest first.

        Raises:
            StoreUnavailable: it can't be read.
        """
        query = "SELECT label, probabilities FROM feedback WHERE version = ? ORDER BY seq DESC LIMIT ?"
        with self._lock, self._transaction() as connection:
            rows = self._all(connection, query, version, most)
        return [Outcome(label, json.loads(probabilities)) for label, probabilities in reversed(rows)]

    def predictions(self, version: str, most: int) -> list[Prediction]:
        """The last predictions of a bundle, oldest first.

        Raises:
            StoreUnavailable: it can't be read.
        """
        query = """SELECT request_id, version, probabilities, features FROM predictions
                   WHERE version = ? ORDER BY seq DESC LIMIT ?"""
        with self._lock, self._transaction() as connection:
            self._write_waiting(connection)
            rows = self._all(connection, query, version, most)
        return [Prediction(found, of, json.loads(p), json.loads(features)) for found, of, p, features in reversed(rows)]

    def close(self) -> None:
        """Write what waits."""
        self._writer.submit(self._flush).result()
        self._writer.shutdown()
        if self._connection is not None:
            self._connection.close()

    def _flush_soon(self) -> None:
        time.sleep(FLUSH_S)
        self._flush()

    def _flush(self) -> None:
        self._flushing = False
        try:
            with self._lock, self._transaction() as connection:
                self._write_waiting(connection)
        except StoreUnavailable:
            _log.warning("predictions can't be written; up to %d wait in memory", MOST_WAITING)

    def _write_waiting(self, connection: Any) -> None:
        waiting = tuple(self._waiting)
        rows = [
            (p.request_id, time.time(), p.version, json.dumps(dict(p.probabilities)), json.dumps(dict(p.features)))
            for p in waiting
        ]
        if not rows:
            return
        statement = """INSERT INTO predictions (request_id, recorded_at, version, probabilities, features)
                       VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"""
        with closing(connection.cursor()) as cursor:
            cursor.executemany(self._database.sql(statement), rows)
        self._written += len(rows)
        if self._written >= PRUNE_EVERY:
            self._written = 0
            self._run(
                connection, "DELETE FROM predictions WHERE seq <= (SELECT MAX(seq) FROM predictions) - ?", (MOST_KEPT,)
            )
        connection.commit()
        for prediction in waiting:
            if self._waiting and self._waiting[0] is prediction:  # it was not given up meanwhile
                self._waiting.popleft()

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        """A connection whose changes are on disk after the block, or undone."""
        try:
            if self._connection is None:
                self._connection = self._open()
            yield self._connection
            self._connection.commit()
        except (self._database.errors, OSError) as error:
            metrics.STORE_ERRORS.inc()
            self._forget_connection()
            raise StoreUnavailable(
                f"the store of predictions and feedback doesn't work: {type(error).__name__}"
            ) from None
        except BaseException:
            self._connection.rollback()
            raise

    def _open(self) -> Any:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        connection = self._database.connect()
        for statement in _SCHEMA:
            self._run(connection, statement, ())
        connection.commit()
        return connection

    def _forget_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()  # undoes what was not committed
            except self._database.errors:
                _log.warning("the connection to the store was lost")

    def _all(self, connection: Any, query: str, *values: Any) -> Sequence[Any]:
        with closing(connection.cursor()) as cursor:
            cursor.execute(self._database.sql(query), values)
            rows: Sequence[Any] = cursor.fetchall()
        return rows

    def _run(self, connection: Any, statement: str, values: Sequence[Any]) -> None:
        with closing(connection.cursor()) as cursor:
            cursor.execute(self._database.sql(statement), values)
