"""The truth that comes later, told to the real server."""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
from toy_volumes import volumes

from serving.errors import StoreUnavailable
from serving.monitoring.store import Prediction, Store

if TYPE_CHECKING:
    from conftest import Server

CLASSES = ("NCP", "CP", "Normal")


def predict(server: "Server", count: int = 1, seed: int = 1) -> tuple[str, list[str]]:
    """Request id and predicted classes of so many scans."""
    data = volumes(count, seed)
    head = {"name": "volume", "shape": list(data.shape), "datatype": "UINT8", "data": data.ravel().tolist()}
    answer = httpx.post(f"{server.http}/v2/models/covidnet/infer", json={"inputs": [head]}, timeout=60)
    labels = next(output["data"] for output in answer.json()["outputs"] if output["name"] == "label")
    return answer.headers["x-request-id"], labels


def tell(server: "Server", request_id: str, label: str) -> httpx.Response:
    return httpx.post(f"{server.http}/v1/feedback", json={"request_id": request_id, "label": label}, timeout=60)


def test_feedback_moves_the_live_figures(server: "Server") -> None:
    request_id, labels = predict(server, count=3)
    labelled = zip((request_id, f"{request_id}.1", f"{request_id}.2"), labels, strict=True)
    scans = server.metric("covidnet_live_scans")
    for name, label in labelled:
        assert tell(server, name, label).status_code == 201
    assert server.metric("covidnet_live_scans") == scans + 3
    assert server.metric("covidnet_live_sensitivity_ratio", label=labels[0], bound="value") > 0
    assert server.metric("covidnet_feedback_total", label=labels[0], predicted=labels[0]) >= 1


def test_what_feedback_is_answered(server: "Server") -> None:
    request_id, _ = predict(server)
    assert tell(server, "0" * 32, "CP").status_code == 404  # an id that nobody was given
    assert tell(server, request_id, "Pox").status_code == 400  # a class that the model hasn't
    assert tell(server, request_id, "CP").status_code == 201
    assert tell(server, request_id, "CP").status_code == 200  # twice
    assert tell(server, request_id, "NCP").status_code == 409  # and now something else
    for body in (
        b"",
        b"[]",
        b'{"request_id": 1, "label": "CP"}',
        b'{"label": "CP"}',
        b'{"patient": "Doe", "label": "CP"}',
    ):
        refused = httpx.post(f"{server.http}/v1/feedback", content=body)
        assert refused.status_code == 400
        assert "Doe" not in refused.text
    assert httpx.post(f"{server.http}/v1/feedback", content=b" " * 2000).status_code == 413


def test_nothing_acknowledged_is_lost_when_the_server_is_killed(start: Callable[..., "Server"], tmp_path: Path) -> None:
    server = start(state=tmp_path)
    acknowledged = []
    for seed in range(10):
        request_id, labels = predict(server, seed=seed)
        if tell(server, request_id, labels[0]).status_code == 201:
            acknowledged.append(request_id)
    server.process.kill()
    server.process.wait()
    again = start(state=tmp_path)
    assert len(acknowledged) == 10
    assert again.metric("covidnet_live_scans") == 10
    assert all(tell(again, request_id, "CP").status_code in (200, 409) for request_id in acknowledged)


def one(request_id: str = "a") -> Prediction:
    return Prediction(request_id, "v1", {"NCP": 0.2, "CP": 0.7, "Normal": 0.1}, {"slices": 40.0})


def test_a_full_disk_refuses_feedback_and_takes_it_once_there_is_room(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.add(one())
    assert store.feedback("a", "CP") == "CP"
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count={pages}")  # SQLite's own way to be out of disk
    for number in range(500):
        store._waiting.append(one(f"b{number}"))
    with pytest.raises(StoreUnavailable, match="OperationalError"):
        store.feedback("b1", "NCP")
    assert store.feedback("b1", "NCP") == "CP"  # it connected anew, and nothing that waited was lost
    assert len(store.predictions("v1", 1000)) == 501
    store.close()


def test_a_folder_that_cannot_be_written_refuses_feedback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(str(tmp_path / "file"))
    store.add(one())
    with pytest.raises(StoreUnavailable):
        store.feedback("a", "CP")


def test_a_clock_that_steps_back_changes_no_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    for number, now in enumerate((2_000_000_000.0, 1_000_000_000.0, 0.0)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        store.add(one(str(number)))
        store.feedback(str(number), CLASSES[number])
    assert [outcome.label for outcome in store.outcomes("v1", 2)] == ["CP", "Normal"]  # the last two told
    assert [prediction.request_id for prediction in store.predictions("v1", 2)] == ["1", "2"]
    store.close()


def test_the_store_holds_numbers_and_nothing_of_the_request(server: "Server", nifti: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.add(one())
    store.close()
    with sqlite3.connect(tmp_path / "monitoring.sqlite") as connection:
        columns = {row[1] for row in connection.execute("PRAGMA table_info(predictions)")}
    assert columns == {"seq", "request_id", "recorded_at", "version", "probabilities", "features"}
    assert (tmp_path / "monitoring.sqlite").stat().st_mode & 0o077 == 0  # for the server's account alone


def test_predictions_on_disk_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.monitoring.store.MOST_KEPT", 50)
    monkeypatch.setattr("serving.monitoring.store.PRUNE_EVERY", 100)
    store = Store(str(tmp_path))
    for number in np.arange(300):
        store._waiting.append(one(str(number)))
        store.predictions("v1", 1)
    assert 50 <= len(store.predictions("v1", 1000)) < 150
    store.close()
