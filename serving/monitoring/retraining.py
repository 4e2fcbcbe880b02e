"""From an alert to a retraining run: a webhook for Alertmanager that runs a command, at most once a day.

    python -m serving.monitoring.retraining --record retraining.jsonl \\
        --command 'python -m pipelines submit --host https://kubeflow.example/pipeline --no-cached --run-name {run}'

A process of its own, since the endpoint needs no rights in Kubeflow. Without ``--command`` nothing is ever run: what would
have been asked for is recorded. An alert asks where it fires and has the label ``retrain="true"``. Every decision is a line
of the record, which also limits the rate over restarts. Without ``--no-cached`` a run on the same raw scans would take all
of its results from the cache.
"""

import json
import re
import shlex
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any

import typer

MAX_BODY_BYTES = 2**20
MAX_RUN_S = 600


class Retraining:
    """Decides about alerts, and keeps the record.

    Args:
        command: to run, with ``{run}`` for the alert's name and the time; None runs nothing.
        record: JSON lines.
        least_s: seconds between two runs.
    """

    def __init__(self, command: str | None, record: Path, least_s: float = 86_400.0) -> None:
        self._arguments = None if command is None else shlex.split(command)
        self._record = record
        self._least_s = least_s
        self._lock = threading.Lock()

    def decide(self, notice: Any) -> str:
        """Handle what Alertmanager sent: ``ignored``, ``off``, ``limited``, ``submitted`` or ``failed``."""
        alerts = notice.get("alerts") if isinstance(notice, dict) else None
        names = [_name(alert) for alert in alerts or [] if _asks(alert)]
        if not names:
            return "ignored"
        with self._lock:
            run = f"{names[0]}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
            entry: dict[str, Any] = {"at": time.time(), "alerts": names, "run": run}
            entry |= self._run(run)
            with self._record.open("a") as stream:
                stream.write(json.dumps(entry) + "\n")
        return str(entry["decision"])

    def _run(self, run: str) -> dict[str, Any]:
        if self._arguments is None:
            return {"decision": "off"}
        if abs(time.time() - self._last_run()) < self._least_s:
            return {"decision": "limited"}
        arguments = [argument.replace("{run}", run) for argument in self._arguments]
        try:
            done = subprocess.run(arguments, capture_output=True, text=True, timeout=MAX_RUN_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return {"decision": "failed", "reason": type(error).__name__}
        decision = "failed" if done.returncode else "submitted"
        return {"decision": decision, "exit_code": done.returncode, "output": (done.stdout + done.stderr)[-2000:]}

    def _last_run(self) -> float:
        """When a run was last submitted; a failed one doesn't count, for Alertmanager repeats."""
        if not self._record.exists():
            return 0.0
        entries = map(json.loads, self._record.read_text().splitlines())
        return max((entry["at"] for entry in entries if entry["decision"] == "submitted"), default=0.0)


def server(retraining: Retraining, port: int, host: str = "127.0.0.1") -> ThreadingHTTPServer:
    """A server that is bound and not started; any path takes Alertmanager's POST."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 30

        def do_POST(self) -> None:  # the name is the library's
            length = self.headers.get("content-length", "")
            if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
                return self._say(413, "too large")
            try:
                notice = json.loads(self.rfile.read(int(length)))
            except ValueError:
                return self._say(400, "not JSON")
            decision = retraining.decide(notice)
            return self._say(500 if decision == "failed" else 200, decision)  # at 500 Alertmanager tries again

        def log_message(self, format: str, *arguments: Any) -> None:
            """The record has it all."""

        def _say(self, status: int, decision: str) -> None:
            body = json.dumps({"decision": decision}).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return ThreadingHTTPServer((host, port), Handler)


def _asks(alert: Any) -> bool:
    labels = alert.get("labels") if isinstance(alert, dict) else None
    return isinstance(labels, dict) and alert.get("status") == "firing" and labels.get("retrain") == "true"


def _name(alert: dict[str, Any]) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", str(alert["labels"].get("alertname", "")))[:64] or "alert"


def main(
    record: Annotated[Path, typer.Option(help="JSON lines of every decision.")],
    command: Annotated[str | None, typer.Option(help="To run; {run} is filled in. Default: nothing.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 9095,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    least_hours: Annotated[float, typer.Option(help="Between two runs.")] = 24.0,
) -> None:
    """Listen for Alertmanager until Ctrl-C."""
    listening = server(Retraining(command, record, least_hours * 3600), port, host)
    print(
        f"http://{host}:{port} takes alerts, {'runs nothing' if command is None else 'runs the command'}",
        file=sys.stderr,
    )
    try:
        listening.serve_forever()
    except KeyboardInterrupt:
        print("stopping", file=sys.stderr)


if __name__ == "__main__":
    typer.run(main)
