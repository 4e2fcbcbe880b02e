"""A fault becomes a call of the webhook, over real Prometheus and Alertmanager; `benchmarks.alerts` shows it for each."""

import shutil

import pytest

from benchmarks import alerts


def test_the_faults_of_the_benchmark_are_there_for_every_rule() -> None:
    raised = [alert for site in alerts.sites() for alert in site.alerts]
    assert sorted(raised) == sorted(alerts._waits())


@pytest.mark.slow
def test_a_fault_reaches_the_webhook() -> None:
    if shutil.which("prometheus-alertmanager") is None:
        pytest.skip("prometheus is not installed; apt-get install prometheus prometheus-alertmanager")
    broken = [site for site in alerts.sites() if site.job == "covidnet-broken"]
    rows, _ = alerts.measure(broken)
    assert len(rows) == 4
    assert all(row["seconds"] for row in rows.values())
