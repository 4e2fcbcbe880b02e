"""The dashboards: fresh, and every panel answered by a real Prometheus that scrapes the real server under traffic."""

import json
import shutil
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import promql_parser
import pytest
from toy_volumes import volumes

from serving.monitoring import dashboards, local

if TYPE_CHECKING:
    from conftest import Server

ELSEWHERE = ("sum by (model_name) (rate(ts_", "sum(rate(ts_", "covidnet_gpu_")  # TorchServe's, and where there is a GPU


def queries(name: str) -> Iterator[tuple[str, str]]:
    """Panel's title and query, with the variables filled in."""
    board = json.loads((dashboards.FOLDER / f"{name}.json").read_text())
    for row in board["panels"]:
        for panel in row.get("panels") or [row]:
            for target in panel.get("targets", []):
                yield panel["title"], target["expr"].replace("$__rate_interval", "1m").replace("$job", "covidnet")


@pytest.mark.parametrize("name", dashboards.DASHBOARDS)
def test_the_committed_dashboard_is_what_the_code_makes(name: str) -> None:
    committed = (dashboards.FOLDER / f"{name}.json").read_text()
    assert committed == dashboards.render(name), "run `python -m serving.monitoring.dashboards` and commit"


@pytest.mark.parametrize("name", dashboards.DASHBOARDS)
def test_every_query_is_promql(name: str) -> None:
    found = list(queries(name))
    assert len(found) >= 8
    for _, query in found:
        promql_parser.parse(query)


def traffic(server: "Server", nifti: Path) -> None:
    """Something of everything that a panel shows."""
    batch = volumes(60, seed=7)
    head = {"name": "volume", "shape": list(batch.shape), "datatype": "UINT8", "data": batch.ravel().tolist()}
    httpx.post(f"{server.http}/v2/models/covidnet/infer", json={"inputs": [head]}, timeout=60).raise_for_status()
    for _ in range(2):
        answer = httpx.post(f"{server.http}/v1/scans", content=nifti.read_bytes(), timeout=60)
        local.tell(server.http, answer.headers["x-request-id"], answer.json()["label"])
        httpx.post(f"{server.http}/v1/scans", content=b"no scan")
        time.sleep(1.5)


@pytest.mark.slow
def test_every_panel_has_data(start: Callable[..., "Server"], nifti: Path, tmp_path: Path) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed; apt-get install prometheus")
    server = start()
    with local.prometheus(tmp_path, {"covidnet": [server.http]}, faster=60) as url:
        traffic(server, nifti)
        traffic(server, nifti)
        time.sleep(3)
        silent = {
            (name, title, query)
            for name in dashboards.DASHBOARDS
            for title, query in queries(name)
            if not query.startswith(ELSEWHERE) and not answered(url, query)
        }
    assert not silent


def answered(url: str, query: str) -> bool:
    """Whether a query has at least one number for an answer."""
    encoded = urllib.parse.urlencode({"query": query})
    reply: dict[str, Any] = json.loads(local.get(f"{url}/api/v1/query?{encoded}") or b"{}")
    return any(row["value"][1] != "NaN" for row in reply.get("data", {}).get("result", []))
