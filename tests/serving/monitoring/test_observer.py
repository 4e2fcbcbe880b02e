"""What the server tells Prometheus."""

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from covidnet.data.scan import Scan
from serving import errors, metrics
from serving.monitoring import documentation

if TYPE_CHECKING:
    from conftest import Server


def test_names_and_units_are_those_of_prometheus(server: "Server") -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; apt-get install prometheus")
    text = httpx.get(f"{server.http}/metrics").content
    lint = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert lint.returncode == 0, lint.stderr.decode()
    assert lint.stderr == b""


def test_every_answer_is_counted_with_what_it_says_and_what_it_was_asked(
    server: "Server", nifti: Path, scan: Scan
) -> None:
    names = {
        "covidnet_confidence_ratio_count": {},
        "covidnet_entropy_ratio_count": {},
        "covidnet_out_of_distribution_score_count": {},
        "covidnet_input_slices_sum": {},
        "covidnet_input_spacing_meters_count": {"axis": "z"},
        "covidnet_input_hounsfield_count": {"statistic": "p50"},
        "covidnet_phase_seconds_count": {"phase": "decode"},
    }
    before = {name: server.metric(name, **labels) for name, labels in names.items()}
    answer = httpx.post(f"{server.http}/v1/scans", content=nifti.read_bytes(), timeout=60).json()
    after = {name: server.metric(name, **labels) for name, labels in names.items()}
    grown = {name: after[name] - before[name] for name in names}
    assert grown.pop("covidnet_input_slices_sum") == scan.shape[0]
    assert set(grown.values()) == {1}
    assert server.metric("covidnet_bundle_info", version=answer["model_version"]) == 1


def test_a_refusal_is_counted_by_its_reason(server: "Server") -> None:
    before = server.metric("covidnet_rejected_requests_total", reason="unknown_format")
    assert httpx.post(f"{server.http}/v1/scans", content=b"no scan").status_code == 415
    assert server.metric("covidnet_rejected_requests_total", reason="unknown_format") == before + 1


def test_the_reasons_are_the_kinds_of_refusal_and_all_there_from_the_start() -> None:
    families = text_string_to_metric_families(metrics.exposition().decode())
    (rejected,) = (family for family in families if family.name == "covidnet_rejected_requests")
    reasons = {sample.labels["reason"] for sample in rejected.samples}
    assert {"busy", "draining", "too_large", "no_such_model"} <= reasons
    assert len(reasons) == len(errors.Refused.__subclasses__())


def test_the_documentation_lists_the_metrics_of_now() -> None:
    page = documentation.PAGE.read_text()
    assert page == documentation.render(page), "run `python -m serving.monitoring.documentation` and commit"
