"""What monitoring costs: the same requests to a server that watches itself and is scraped, and to one that doesn't.

    python -m benchmarks.overhead                       # five minutes; writes benchmarks/results/overhead.json
    python -m benchmarks.overhead --blocks 4 --seconds 1 --small    # a try

Both servers run all the time, and blocks of load go to them in turn, in changing order, so that a busy moment of the
machine hits both alike. Load is a few connections that ask again as soon as they are answered. Aims: at most 1 % of
throughput, and 2 ms at the 99th percentile.
"""

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client.metrics import MetricWrapperBase

from benchmarks import planted
from benchmarks.machine import facts
from serving import metrics
from serving.monitoring import local
from serving.monitoring.observer import Observer

SIZE = (32, 128, 128)
CONNECTIONS = 2
SCRAPE_S = 5.0  # three times as often as Prometheus by default
DRAWS = 2_000
Block = list[float]  # latencies in seconds


def main() -> None:
    """Print the figures, and keep them in `benchmarks/results/overhead.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="default: CovidNet3D-S of 32x128x128 with random weights")
    parser.add_argument("--small", action="store_true", help="a network that takes next to no time: the worst case")
    parser.add_argument("--blocks", type=int, default=40, help="of load per server")
    parser.add_argument("--seconds", type=float, default=3.0, help="per block")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/overhead.json"))
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="covidnet-overhead-")))
        bundle = options.bundle or (planted.write(folder) if options.small else _covidnet3d(folder))
        urls = {}
        for name, program in {"on": ("-m", "serving"), "off": ("-m", "benchmarks.overhead", "--unwatched")}.items():
            (folder / name).mkdir()
            urls[name], _ = stack.enter_context(local.server(bundle, folder / name, program))
        size = json.loads((bundle / "preprocess.json").read_text())["size"]
        body, headers = planted.request(planted.volumes(1, seed=1, size=tuple(size))[0])
        blocks = _measure(urls, body, headers, options.blocks, options.seconds)
    found = {**facts(), "network": "small" if options.small else str(options.bundle or "S 32x128x128"), **_cost(blocks)}
    print(json.dumps(found, indent=1))
    options.out.write_text(json.dumps(found, indent=1) + "\n")


def _measure(
    urls: dict[str, str], body: bytes, headers: dict[str, str], count: int, seconds: float
) -> dict[str, list[Block]]:
    """Latencies of each block, by server; the first pair warms up and isn't kept."""
    blocks: dict[str, list[Block]] = {name: [] for name in urls}
    scraped = local.every(SCRAPE_S, lambda: local.get(f"{urls['on']}/metrics"))
    with ThreadPoolExecutor(CONNECTIONS) as pool, scraped:
        for number in range(count + 1):
            for name in ("on", "off") if number % 2 else ("off", "on"):
                end = time.perf_counter() + seconds
                tasks = [pool.submit(_ask, urls[name], body, headers, end) for _ in range(CONNECTIONS)]
                latencies = [latency for task in tasks for latency in task.result()]
                if number:
                    blocks[name].append(latencies)
    return blocks


def _ask(url: str, body: bytes, headers: dict[str, str], end: float) -> Block:
    caller = planted.Caller(url)  # a new one: servers close those that rest for seconds
    latencies, now = list[float](), time.perf_counter()
    while now < end:
        status, _ = caller.post(planted.INFER, body, headers)
        if status != 200:
            raise SystemExit(f"expected 200, found {status}")
        before, now = now, time.perf_counter()
        latencies.append(now - before)
    return latencies


def _cost(blocks: dict[str, list[Block]]) -> dict[str, Any]:
    """Share of throughput and milliseconds of p50 and p99, with bootstrap intervals over pairs of blocks."""
    pairs = list(zip(blocks["on"], blocks["off"], strict=True))
    rng = np.random.default_rng(0)
    draws = [figures([pairs[i] for i in rng.integers(len(pairs), size=len(pairs))]) for _ in range(DRAWS)]
    low, high = np.percentile(draws, (2.5, 97.5), axis=0)
    names = ("throughput_lost_percent", "p50_more_ms", "p99_more_ms")
    told = zip(names, figures(pairs), low, high, strict=True)
    costs = {
        name: {"value": round(v, 3), "interval": [round(float(a), 3), round(float(b), 3)]} for name, v, a, b in told
    }
    servers = {
        name: {
            "requests": sum(map(len, found)),
            "per_second": round(1 / _mean(found) * CONNECTIONS, 1),
            "p99_ms": round(1e3 * float(np.percentile(np.concatenate(found), 99)), 2),
        }
        for name, found in blocks.items()
    }
    return {"blocks": len(pairs), "connections": CONNECTIONS, **servers, **costs}


def figures(pairs: list[tuple[Block, Block]]) -> tuple[float, float, float]:
    """Throughput lost in percent, and how many milliseconds p50 and p99 lie higher, of (on, off) blocks."""
    on, off = map(list, zip(*pairs, strict=True))
    p50, p99 = (
        1e3 * float(np.percentile(np.concatenate(on), q) - np.percentile(np.concatenate(off), q)) for q in (50, 99)
    )
    return 100 * (1 - _mean(off) / _mean(on)), p50, p99


def _mean(blocks: list[Block]) -> float:
    """Mean latency: with connections that never rest, throughput is their number over it."""
    return float(np.concatenate(blocks).mean())


def _covidnet3d(folder: Path) -> Path:
    from covidnet.models.covidnet3d import SPACES, Genotype, build

    blocks = tuple(("5x5_MBConv4",) * blocks for blocks in SPACES["S"].blocks)
    network = build(Genotype("S", planted.CLASSES, 1, SIZE, blocks)).eval()
    return planted.write(folder, network=network, size=SIZE, known=40)


class _Nothing:
    """Stands for every metric where nothing is counted."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *arguments: object, **options: object) -> "_Nothing":
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


def _serve_unwatched() -> None:
    """The server without metrics, drift and store."""
    from serving.__main__ import app

    for name, metric in list(vars(metrics).items()):
        if isinstance(metric, MetricWrapperBase):
            setattr(metrics, name, _Nothing())
    Observer.answered = lambda self, answer, prepared: None  # type: ignore[method-assign]
    app()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--unwatched"]:
        sys.argv.pop(1)
        _serve_unwatched()
    else:
        main()
