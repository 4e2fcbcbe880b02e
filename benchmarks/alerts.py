"""Each alert once, end to end: real servers, real Prometheus, real Alertmanager, and a webhook that notes what arrives.

    python -m benchmarks.alerts                       # two minutes; writes benchmarks/results/alerts.json
    python -m benchmarks.alerts --pictures docs/images    # with pictures of dashboards and status page

Seven deployments run side by side, each with its fault, one without any. The rules are those of manifests/monitoring with
every duration divided by 60: an hour passes in a minute. The answer is the time from the fault to the webhook.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import Popen
from typing import Any

import numpy as np
import yaml

from benchmarks import planted
from benchmarks.machine import facts
from serving.monitoring import local

FASTER = 60
PER_REQUEST = 5  # scans
PAUSE_S = 0.5  # between two requests
BEFORE_S = 20.0  # of ordinary traffic, where a fault needs something to differ from
CROWD = 48  # callers at once, where 32 requests are let in
MOST_S = 150


@dataclass
class Site:
    """One deployment and what is done to it.

    Args:
        job: its name in Prometheus.
        fault: in words.
        alerts: that it must raise.
        run: plays the fault until ``stop``; tells ``began`` when it begins.
        copies: bundle of each replica, ``v1`` or ``v2``.
        state_broken: the place of the store can't be written.
    """

    job: str
    fault: str
    alerts: frozenset[str]
    run: Callable[["Site"], None]
    copies: tuple[str, ...] = ("v1",)
    state_broken: bool = False
    urls: list[str] = field(default_factory=list)
    processes: "list[Popen[bytes]]" = field(default_factory=list)
    faults: list[Path] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    began: dict[str, float] = field(default_factory=dict)

    def begin(self, *alerts: str) -> None:
        """The fault begins that raises these; all of the site's where none is named."""
        for name in alerts or self.alerts:
            self.began[name] = time.monotonic()


class Heard:
    """What Alertmanager said, and when."""

    def __init__(self) -> None:
        self.first: dict[tuple[str, str], float] = {}

    def take(self, notice: Any) -> None:
        """Note the firing alerts of one call."""
        for alert in notice["alerts"]:
            if alert["status"] == "firing":
                labels = alert["labels"]
                self.first.setdefault((labels.get("job", ""), labels["alertname"]), time.monotonic())


def main() -> None:
    """Print the table, and keep it in `benchmarks/results/alerts.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="folder for pictures of the dashboards")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/alerts.json"))
    options = parser.parse_args()
    rows, stray = measure(sites(), options.pictures)
    print(f"{'alert':>32} | {'seconds':>7} | fault")
    for name, row in sorted(rows.items()):
        print(f"{name:>32} | {row['seconds'] or 'never':>7} | {row['fault']}")
    print("without a fault:", ", ".join(stray) or "no alert")
    found = {**facts(), "faster": FASTER, "alerts": rows, "without_a_fault": stray}
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    if stray or not all(row["seconds"] for row in rows.values()):
        raise SystemExit("an alert didn't fire, or one fired without a fault")


def sites() -> list[Site]:
    """All deployments; together their faults raise every alert."""
    return [
        Site("covidnet-healthy", "none", frozenset(), healthy),
        Site(
            "covidnet-broken",
            "every third run of the network fails; the store's folder can't be written",
            frozenset(
                {
                    "CovidnetAvailabilityFastBurn",
                    "CovidnetAvailabilitySlowBurn",
                    "CovidnetErrorRatioHigh",
                    "CovidnetStoreFailing",
                }
            ),
            broken,
            state_broken=True,
        ),
        Site(
            "covidnet-slow",
            f"the network takes 2.6 s; {CROWD} callers at once, 32 are let in",
            frozenset({"CovidnetLatencyFastBurn", "CovidnetLatencySlowBurn", "CovidnetQueueSaturated"}),
            slow,
        ),
        Site(
            "covidnet-changed",
            "intensities inverted and halved, and a file that is no scan with every request",
            frozenset({"CovidnetDrift", "CovidnetOutOfDistributionSurge", "CovidnetInputsRejected"}),
            changed,
        ),
        Site("covidnet-ward", "four fifths of one class", frozenset({"CovidnetPrevalenceShift"}), ward),
        Site(
            "covidnet-wrong",
            "the truth is another class than the predicted one",
            frozenset({"CovidnetCalibrationDecay", "CovidnetSensitivityLow"}),
            wrong,
        ),
        Site(
            "covidnet-replicas",
            "two replicas of different bundles, whom nobody asks; after 45 s one is killed",
            frozenset({"CovidnetVersionMismatch", "CovidnetNoTraffic", "CovidnetDown"}),
            replicas,
            copies=("v1", "v2"),
        ),
    ]


def measure(chosen: list[Site], pictures: Path | None = None) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Play the faults until all alerts were heard.

    Returns:
        by alert ``fault``, ``for`` of the rule and ``seconds`` from the fault to the webhook, None where it stayed
        silent; and the alerts of sites that have no fault.
    """
    heard = Heard()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="covidnet-alerts-")))
        versions = sorted({copy for site in chosen for copy in site.copies})
        bundles = {name: planted.write(folder / name, card=f"# Planted {name}\n") for name in versions}
        with ThreadPoolExecutor(2) as pool:
            for _ in pool.map(lambda site: _start(site, bundles, folder, stack), chosen):
                pass
        told = stack.enter_context(local.alertmanager(folder, stack.enter_context(_webhook(heard))))
        jobs = {site.job: site.urls for site in chosen}
        prometheus = stack.enter_context(local.prometheus(folder, jobs, told, faster=FASTER))
        with ThreadPoolExecutor(len(chosen)) as pool:
            runs = [pool.submit(site.run, site) for site in chosen]
            wanted = {(site.job, alert) for site in chosen for alert in site.alerts}
            deadline = time.monotonic() + MOST_S
            while not wanted <= set(heard.first) and time.monotonic() < deadline and not any(r.done() for r in runs):
                time.sleep(0.2)
            fired = sorted(heard.first)  # before the drawing, which leaves the servers too little of the machine
            if pictures is not None:
                from benchmarks import pictures as drawing

                (site,) = (site for site in chosen if site.job == "covidnet-changed")
                drawing.dashboards(prometheus, site.job, pictures)
                drawing.page(f"{site.urls[0]}/status", pictures / "status.png")
            for site in chosen:
                site.stop.set()
            for run in runs:
                run.result()
    stray = [alert for job, alert in fired for site in chosen if site.job == job and not site.alerts]
    return {alert: _row(site, alert, heard) for site in chosen for alert in site.alerts}, stray


def _row(site: Site, alert: str, heard: Heard) -> dict[str, Any]:
    arrived, began = heard.first.get((site.job, alert)), site.began.get(alert)
    seconds = None if arrived is None or began is None else round(arrived - began, 1)
    return {"fault": site.fault, "for": _waits()[alert], "seconds": seconds}


def healthy(site: Site) -> None:
    """Ordinary scans, of which the truth is told."""
    for number, caller in _rounds(site):
        _ask_and_tell(caller, *planted.volumes(PER_REQUEST, seed=number))


def broken(site: Site) -> None:
    """The engine fails, and the store does."""
    site.faults[0].write_text('{"fail_every": 3}')
    site.begin()
    for number, caller in _rounds(site):
        caller.infer(planted.volumes(1, seed=number)[0])
        caller.tell("0" * 32, "CP")


def slow(site: Site) -> None:
    """More callers than are let in, each of whom waits for a slow network."""
    site.faults[0].write_text('{"sleep_s": 2.6}')
    site.begin()

    def call(number: int) -> None:
        caller = planted.Caller(site.urls[0])
        scans, _ = planted.volumes(1, seed=number)
        while not site.stop.is_set():
            if caller.infer(scans)[0] != 200:
                site.stop.wait(1)  # as the answer's Retry-After says

    with ThreadPoolExecutor(CROWD) as pool:
        list(pool.map(call, range(CROWD)))


def changed(site: Site) -> None:
    """First ordinary scans, then inverted, paler ones and files that are no scans."""
    since = time.monotonic()
    for number, caller in _rounds(site):
        scans, truth = planted.volumes(PER_REQUEST, seed=number)
        if time.monotonic() - since < BEFORE_S:
            _ask_and_tell(caller, scans, truth)
            if number % 8 == 0:
                caller.post("/v1/phantoms/CP", b"")  # spacing and Hounsfield units for the dashboards
            continue
        if not site.began:
            site.begin()
        _ask_and_tell(caller, 255 - scans // 2, truth)
        caller.post("/v1/scans", b"no scan")


def ward(site: Site) -> None:
    """First ordinary shares of the classes, then much of one."""
    since = time.monotonic()
    for number, caller in _rounds(site):
        ordinary = time.monotonic() - since < BEFORE_S
        if not ordinary and not site.began:
            site.begin()
        caller.infer(planted.volumes(PER_REQUEST, number, (1 / 3,) * 3 if ordinary else (0.8, 0.1, 0.1))[0])


def wrong(site: Site) -> None:
    """First the truth, then another class."""
    since = time.monotonic()
    for number, caller in _rounds(site):
        scans, truth = planted.volumes(PER_REQUEST, seed=number)
        ordinary = time.monotonic() - since < BEFORE_S
        if not ordinary and not site.began:
            site.begin()
        _ask_and_tell(caller, scans, truth if ordinary else (truth + 1) % len(planted.CLASSES))


def replicas(site: Site) -> None:
    """Nobody asks; when the slower of the other two alerts has had its time, a replica dies."""
    site.begin("CovidnetVersionMismatch", "CovidnetNoTraffic")
    site.stop.wait(45)
    site.begin("CovidnetDown")
    site.processes[1].kill()
    site.stop.wait()


def _rounds(site: Site) -> Iterator[tuple[int, planted.Caller]]:
    """Numbers for seeds, and the connection, until the site's time is over."""
    caller, number = planted.Caller(site.urls[0]), 1
    while not site.stop.wait(PAUSE_S):
        yield number, caller
        number += 1


def _ask_and_tell(caller: planted.Caller, scans: np.ndarray, truth: np.ndarray) -> None:
    _, request_id = caller.infer(scans)
    for place, label in enumerate(truth):
        caller.tell(f"{request_id}.{place}" if place else request_id, planted.CLASSES[label])


def _start(site: Site, bundles: dict[str, Path], folder: Path, stack: ExitStack) -> None:
    for number, copy in enumerate(site.copies):
        place = folder / f"{site.job}-{number}"
        place.mkdir()
        if site.state_broken:
            (place / "state").write_text("a file where a folder should be")
        faults = place / "faults.json"
        program = ("-m", "benchmarks.faulty", str(faults))
        url, process = stack.enter_context(local.server(bundles[copy], place, program))
        site.urls.append(url)
        site.processes.append(process)
        site.faults.append(faults)


def _webhook(heard: Heard) -> AbstractContextManager[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name is the library's
            heard.take(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            """The table has it all."""

    return local.answering(ThreadingHTTPServer(("127.0.0.1", 0), Handler))


def _waits() -> dict[str, str]:
    groups = yaml.safe_load(local.RULES.read_text())["spec"]["groups"]
    return {rule["alert"]: rule["for"] for group in groups for rule in group["rules"] if "alert" in rule}


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
