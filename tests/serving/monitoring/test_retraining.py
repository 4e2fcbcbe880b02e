"""From an alert to a run."""

import json
import re
import shlex
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from pipelines.__main__ import app
from serving.monitoring import retraining
from serving.monitoring.retraining import Retraining


def notice(status: str = "firing", **labels: str) -> dict[str, Any]:
    return {"alerts": [{"status": status, "labels": {"alertname": "CovidnetDrift", "retrain": "true", **labels}}]}


def writing(path: Path) -> str:
    """A command that notes its last argument."""
    return f'{sys.executable} -c \'import sys; open(sys.argv[1], "a").write(sys.argv[2] + "\\n")\' {path} {{run}}'


def decisions(record: Path) -> list[str]:
    return [json.loads(line)["decision"] for line in record.read_text().splitlines()]


def test_it_is_off_without_a_command_and_says_what_it_would_have_done(tmp_path: Path) -> None:
    assert Retraining(None, tmp_path / "record").decide(notice()) == "off"
    assert decisions(tmp_path / "record") == ["off"]


def test_a_run_is_submitted_once_a_day_and_over_restarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, runs = tmp_path / "record", tmp_path / "runs"
    assert Retraining(writing(runs), record).decide(notice()) == "submitted"
    assert Retraining(writing(runs), record).decide(notice()) == "limited"
    now = retraining.time.time()
    for step in (-3_600, 3_600):  # a clock that steps an hour either way asks for nothing more
        monkeypatch.setattr(retraining.time, "time", lambda step=step: now + step)
        assert Retraining(writing(runs), record).decide(notice()) == "limited"
    monkeypatch.setattr(retraining.time, "time", lambda: now + 90_000)
    assert Retraining(writing(runs), record).decide(notice()) == "submitted"
    assert decisions(record) == ["submitted", "limited", "limited", "limited", "submitted"]
    assert len(runs.read_text().splitlines()) == 2


def test_the_documented_command_is_one_that_pipelines_take_and_that_computes_anew() -> None:
    command = re.search(r"--command '(.*)'", retraining.__doc__ or "")
    assert command is not None
    python, module, pipelines, verb, *options = shlex.split(
        command[1].replace("{run}", "CovidnetDrift-20261127T031500Z")
    )
    assert (python, module, pipelines, verb) == ("python", "-m", "pipelines", "submit")
    context = get_command(app).commands["submit"].make_context("submit", options)
    assert context.params["cached"] is False
    assert context.params["run_name"] == "CovidnetDrift-20261127T031500Z"
    assert not context.params["data_revision"], "the run would end where the raw scans have another digest"


@pytest.mark.parametrize(
    "ignored", [notice("resolved"), notice(retrain="false"), {"alerts": [1]}, {"alerts": None}, {}, [], "x", None]
)
def test_other_alerts_ask_for_nothing(ignored: Any, tmp_path: Path) -> None:
    assert Retraining(writing(tmp_path / "runs"), tmp_path / "record").decide(ignored) == "ignored"
    assert not (tmp_path / "runs").exists()


def test_an_alert_can_not_add_to_the_command(tmp_path: Path) -> None:
    Retraining(writing(tmp_path / "runs"), tmp_path / "record").decide(notice(alertname="x; touch /tmp/y --host evil"))
    assert (tmp_path / "runs").read_text().startswith("xtouchtmpyhostevil-")


def test_a_failed_run_is_recorded_and_tried_again(tmp_path: Path) -> None:
    record = tmp_path / "record"
    assert Retraining("/no/such/program", record).decide(notice()) == "failed"
    assert Retraining(f"{sys.executable} -c 'import sys; sys.exit(3)'", record).decide(notice()) == "failed"
    assert Retraining(writing(tmp_path / "runs"), record).decide(notice()) == "submitted"


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    listening = retraining.server(Retraining(None, tmp_path / "record"), 0)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    listening.server_close()


def test_the_webhook_answers_alertmanager(url: str) -> None:
    def post(body: bytes) -> int:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body)) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert post(json.dumps(notice()).encode()) == 200
    assert post(b"{") == 400
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=10) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n")
        assert b" 413 " in connection.recv(64)
