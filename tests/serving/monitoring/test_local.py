"""`make monitor` as a whole: it comes up, every part finds the others, and one signal ends all of it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serving.monitoring import local


def answer(url: str) -> str:
    return (local.get(url) or b"").decode()


@pytest.mark.slow
def test_it_comes_up_and_ends_whole(bundle_dir: Path, tmp_path: Path) -> None:
    if shutil.which("prometheus-alertmanager") is None:
        pytest.skip("prometheus is not installed; apt-get install prometheus prometheus-alertmanager")
    printed = tmp_path / "printed"
    with printed.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "serving.monitoring.local", "--bundle", str(bundle_dir)],
            stdout=stream,
            stderr=stream,
            env={**os.environ, "TMPDIR": str(tmp_path)},
            start_new_session=True,
        )
    try:
        local.wait_for(lambda: "Ctrl-C" in printed.read_text(), "everything", process)
        found = dict(re.findall(r"^(\S.*?)  +(\S+)$", printed.read_text(), re.MULTILINE))
        prometheus = found["Prometheus"].removesuffix("/alerts")
        local.wait_for(lambda: '"health":"up"' in answer(f"{prometheus}/api/v1/targets"), "scrape", process)
        local.wait_for(lambda: "/api/v2/alerts" in answer(f"{prometheus}/api/v1/alertmanagers"), "alerting", process)
        local.wait_for(lambda: "covidnet_predictions_total" in answer(found["metrics"]), "traffic", process)
        assert json.loads(answer(f"{found['Alertmanager']}/api/v2/status"))["config"]["original"]
        process.terminate()  # as Ctrl-C, which reaches the parts too
        assert process.wait(60) == 0
        assert printed.read_text().endswith("stopped\n")
        assert not list(tmp_path.glob("covidnet-monitor-*"))
        assert members(process.pid) == []
    finally:
        if process.poll() is None or members(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def members(session: int) -> list[int]:
    """Processes of a session that are left a moment after its leader ended."""
    for _ in range(50):
        listed = subprocess.run(["ps", "-o", "pid=", "-s", str(session)], capture_output=True, text=True, check=False)
        if not listed.stdout.split():
            return []
        time.sleep(0.1)
    return [int(pid) for pid in listed.stdout.split()]
