"""Are memory and the number of series flat over a million scans? The observer with real answers, then a real server.

    python -m benchmarks.flat                          # four minutes, half a GB of disk; writes benchmarks/results
    python -m benchmarks.flat --scans 20000 --requests 1000

The scans pass through all that the server does after the network: metrics, drift, and the store on disk. The requests go
over HTTP, and a third of them are what a careless or hostile client sends: unknown paths, classes, models and files.
"""

import argparse
import json
import logging
import os
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks import planted
from benchmarks.machine import facts
from covidnet.data.preprocess import Prepared
from covidnet.export.bundle import Bundle
from covidnet.inference import engine
from covidnet.inference.predict import interpret
from serving import metrics
from serving.answers import Answer
from serving.errors import Invalid
from serving.monitoring import local
from serving.monitoring.observer import STATE, Observer

POOL = 500  # different scans
LOOKS = 20
FLAT = 1.05  # most that memory may grow after the first tenth
PLACES = {"slices": (16, 400), "spacing_z_mm": (0.5, 10), "spacing_y_mm": (0.4, 1.2), "spacing_x_mm": (0.4, 1.2)}


def main() -> None:
    """Print the figures, and keep them in `benchmarks/results/flat.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=5_000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/flat.json"))
    options = parser.parse_args()
    logging.disable()
    with tempfile.TemporaryDirectory(prefix="covidnet-flat-") as name:
        bundle = planted.write(Path(name))
        found = {
            **facts(),
            "observed": observed(bundle, Path(name) / "observed", options.scans),
            "asked": asked(bundle, Path(name), options.requests),
        }
    print(json.dumps(found, indent=1))
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    faults = [part for part in ("observed", "asked") if not found[part]["flat"]]
    if faults:
        raise SystemExit(f"not flat: {', '.join(faults)}")


def observed(path: Path, state: Path, scans: int) -> dict[str, Any]:
    """Series and resident MiB while so many scans pass through the observer of this process."""
    os.environ[STATE] = str(state)
    bundle = Bundle.load(path)
    observer, pool = Observer(bundle, "none"), _answers(bundle)
    started, looks = time.perf_counter(), []
    for number in range(scans):
        answer, prepared = pool[number % POOL]
        try:
            with metrics.request("v2_infer", ("http", "grpc")[number % 2]):
                for phase in metrics.PHASES:
                    metrics.phase(phase, 0.001 * (number % 997))
                observer.answered(answer, prepared)
                if number % 10 == 9:
                    raise Invalid("expected another request")
        except Invalid:
            pass
        if (number + 1) % (scans // LOOKS) == 0:
            looks.append(_look(metrics.exposition().decode(), _resident_mib()))
    seconds = time.perf_counter() - started
    observer.close()
    disk = sum(file.stat().st_size for file in state.iterdir()) / 2**20
    return {"scans": scans, "us_per_scan": round(1e6 * seconds / scans), "disk_mib": round(disk), **_verdict(looks)}


def asked(bundle: Path, folder: Path, requests: int) -> dict[str, Any]:
    """The same of a server's process, over HTTP."""
    looks = []
    with local.server(bundle, folder) as (url, _), httpx.Client(base_url=url, timeout=60) as client:
        body, headers = planted.request(planted.volumes(1, seed=1)[0])
        for number in range(requests):
            if number % 3:
                client.post(planted.INFER, content=body, headers=headers).raise_for_status()
            else:
                _careless(client, secrets.token_hex(8), number)
            if (number + 1) % (requests // LOOKS) == 0:
                text = client.get("/metrics").text
                (line,) = (line for line in text.splitlines() if line.startswith("process_resident_memory_bytes "))
                looks.append(_look(text, float(line.split()[1]) / 2**20))
    return {"requests": requests, **_verdict(looks)}


def _careless(client: httpx.Client, word: str, number: int) -> None:
    """One of the requests that no server can answer, another each time."""
    wrong = (
        lambda: client.get(f"/{word}"),
        lambda: client.post(f"/v1/phantoms/{word}"),
        lambda: client.post(f"/v2/models/{word}/infer", content=b"{}"),
        lambda: client.post("/v1/scans", content=word.encode(), headers={"user-agent": word}),
        lambda: client.post("/v1/feedback", json={"request_id": word, "label": "CP"}),
        lambda: client.request(word.upper(), "/v1/scans"),
    )
    answer = wrong[number // 3 % len(wrong)]()
    if not 400 <= answer.status_code < 500:
        raise SystemExit(f"expected a refusal, found {answer.status_code}")


def _answers(bundle: Bundle) -> list[tuple[Answer, Prepared]]:
    network, rng = engine.load(bundle), np.random.default_rng(0)
    pool = []
    for volume in planted.volumes(POOL, seed=1)[0]:
        places = {name: float(rng.uniform(*ends)) for name, ends in PLACES.items()}
        prepared = Prepared(volume, ((0, 1),) * 3, places, ())
        outputs = network.run(volume[None, None])
        says = interpret(outputs.logits[0], outputs.probabilities[0], prepared, bundle)
        told = {name: says[name] for name in ("label", "probabilities", "energy", "novelty")}
        pool.append((Answer(**told, flags=tuple(says["flags"]), cam=outputs.cam[0], seconds={}), prepared))
    return pool


def _look(exposition: str, resident_mib: float) -> tuple[int, float]:
    return sum(not line.startswith("#") for line in exposition.splitlines()), round(resident_mib, 1)


def _verdict(looks: list[tuple[int, float]]) -> dict[str, Any]:
    """Against the look after the first tenth, when caches are warm and all kinds of requests were seen."""
    series, memory = zip(*looks[LOOKS // 10 - 1 :], strict=True)
    growth = max(memory) / memory[0]
    flat = len(set(series)) == 1 and growth <= FLAT
    return {"series": [series[0], series[-1]], "resident_mib": list(memory), "growth": round(growth, 3), "flat": flat}


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


if __name__ == "__main__":
    main()
