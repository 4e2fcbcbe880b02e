"""The KServe predictor, a bare KServe model and TorchServe on one bundle: latency of one caller, throughput of sixteen.

    python -m benchmarks.torchserve                                  # three minutes; needs Java 17
    python -m benchmarks.torchserve --bundle results/export/bundle   # your own
    python -m benchmarks.torchserve --seconds 2                      # per figure, to try it

All get the same bytes: one prepared volume as a binary tensor of the Open Inference Protocol over HTTP. The servers run one
after the other. The bare model is `benchmarks.bare_kserve`, ONNX Runtime in a few lines as KServe's documentation shows it.
The table also goes to benchmarks/results/torchserve.json.
"""

import http.client
import json
import tempfile
import threading
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.servers import HOST, ROOT, add_bundle_option, bare_kserve, endpoint, opened, served, torch_serve
from covidnet.export.bundle import Bundle

RESULTS = ROOT / "benchmarks" / "results" / "torchserve.json"
CALLERS = 16
SERVERS = {"KServe predictor": endpoint, "bare KServe model": bare_kserve, "TorchServe": torch_serve}


def main() -> None:
    """Print the table and write it."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add_bundle_option(parser)
    parser.add_argument("--seconds", type=float, default=20.0, help="per figure")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with opened(options.bundle) as bundle:
        compare(bundle, options.seconds, options.out)


def compare(bundle: Bundle, seconds: float, out: Path) -> None:
    """One server after the other."""
    body, headers = request(bundle.preprocess["size"])
    rows: list[dict[str, Any]] = []
    print(f"{'server':>18} | {'p50 ms':>8} | {'p99 ms':>8} | {CALLERS} callers, scans/s")
    for name, start in SERVERS.items():
        with tempfile.TemporaryDirectory(dir="/tmp") as work, start(bundle, Path(work)) as target:
            sent = {**headers, **target.headers}
            run(target.port, body, sent, 1, min(seconds, 3.0))  # warms up
            alone = run(target.port, body, sent, 1, seconds)
            together = run(target.port, body, sent, CALLERS, seconds)
        p50, p99 = np.percentile(alone, [50, 99]) * 1e3
        rows.append({"server": name, "p50_ms": p50, "p99_ms": p99, "scans_per_s": len(together) / seconds})
        print(f"{name:>18} | {p50:8.2f} | {p99:8.2f} | {rows[-1]['scans_per_s']:.1f}", flush=True)
    first, *others = rows
    for row in others:
        p50, p99, scans = (row[key] / first[key] for key in ("p50_ms", "p99_ms", "scans_per_s"))
        print(f"{row['server']:>18} / {first['server']}: p50 {p50:.2f}x, p99 {p99:.2f}x, scans/s {scans:.2f}x")
    out.parent.mkdir(exist_ok=True)
    found = {**served(bundle), "seconds": seconds, "rows": rows}
    out.write_text(json.dumps(found, indent=2) + "\n")


def request(size: Sequence[int]) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a V2 request with one volume ``(D, H, W)`` as binary data."""
    volume = np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes()
    tensor = {
        "name": "volume",
        "datatype": "UINT8",
        "shape": [1, *size],
        "parameters": {"binary_data_size": len(volume)},
    }
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": "probabilities"}]}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return head + volume, headers


def run(port: int, body: bytes, headers: dict[str, str], callers: int, seconds: float) -> list[float]:
    """Seconds of every request that callers, one request after the other each, get answered in that time.

    Raises:
        RuntimeError: an answer other than 200.
    """
    times: list[float] = []
    failed: list[int] = []

    def call() -> None:
        connection = http.client.HTTPConnection(HOST, port, timeout=60)
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end and not failed:
            connection.request("POST", "/v2/models/covidnet/infer", body, headers)
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                failed.append(response.status)
            times.append(time.perf_counter() - began)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise RuntimeError(f"expected answers with status 200, found {failed[0]}")
    return times


if __name__ == "__main__":
    main()
