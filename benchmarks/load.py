"""The endpoint under load: what it adds to the network's time, a whole DICOM series, sixteen clients for ten minutes.

    python -m benchmarks.load                                   # 12 minutes, on an otherwise idle machine
    python -m benchmarks.load --minutes 0.2 --seconds 2         # to try it
    python -m benchmarks.load --series DIR                      # a folder of one DICOM series of yours

* One caller over gRPC, one prepared scan a call, against the same network run alone, in turns.
* Upload of a zip of a series of 133 slices of 512x512: from the first byte sent to the answer, and which part of that is
  decoding and preprocessing by the server's own account. Without a series at hand one is made of noise around a body.
* Sixteen callers over gRPC, each with its next scan as soon as it has its answer: errors, latency, memory of the server
  and its children, and scans per second beside those of the network alone in batches. The callers run on the same cores,
  which the network alone has to itself; so the CPU time that they take is measured too, and the second share is of what the
  network alone would do on the cores that they leave: its throughput times (cores - cores that callers keep busy) / cores.

Exit code 1 where a target is missed. The figures go to benchmarks/results/load.json.
"""

import http.client
import json
import os
import sys
import tempfile
import threading
import time
import zipfile
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from benchmarks.fuzz_readers import saved, slice_of
from benchmarks.headlines import judge
from benchmarks.servers import HOST, ROOT, Target, add_bundle_option, endpoint, opened, served
from covidnet.export.bundle import Bundle
from covidnet.inference import engine
from covidnet.inference.engine import Engine

RESULTS = ROOT / "benchmarks" / "results" / "load.json"
SERIES = ROOT.parent / "shared" / "data" / "covid-ct-md" / "dicom" / "P002"
SLICES, SIDE = 133, 512  # of a series that is made
METHOD = "/inference.GRPCInferenceService/ModelInfer"
CALLERS = 16
BATCHES = (1, 2, 4, 8)
WARM_UP = 0.1  # share of the load's time before memory is compared


def main() -> None:
    """Measure, compare with the targets, write."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add_bundle_option(parser)
    parser.add_argument("--minutes", type=float, default=10.0, help="of sixteen callers")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each of the other figures")
    parser.add_argument(
        "--series", type=Path, default=SERIES if SERIES.exists() else None, help="folder of DICOM files"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with opened(options.bundle) as bundle, tempfile.TemporaryDirectory(prefix="covidnet-load-") as work:
        found = measure(bundle, Path(work), options)
        missed = judge("load", found)
        print(json.dumps(found))
        options.out.parent.mkdir(exist_ok=True)
        options.out.write_text(json.dumps({**served(bundle), **found, "missed": missed}, indent=2) + "\n")
    sys.exit(bool(missed))


def measure(bundle: Bundle, work: Path, options: Namespace) -> dict[str, Any]:
    """All figures."""
    series = zipped(options.series, work / "series.zip")
    network = engine.load(bundle, "cpu")
    content = message(bundle.preprocess["size"])
    with endpoint(bundle, work) as target:
        found = latency(target, network, content, options.seconds)
        found |= upload(target, series, options.seconds)
        before = batch_throughput(network, options.seconds)
        load = under_load(target, content, 60 * options.minutes)
        after = batch_throughput(network, options.seconds)
    alone = (before + after) / 2  # the machine's speed may have changed meanwhile
    cores = len(os.sched_getaffinity(0))
    left = 1 - load["callers_cpu_ms_per_scan"] / 1e3 * load["scans_per_s"] / cores
    return {
        **found,
        **load,
        "engine": network.name,
        "engine_scans_per_s": round(alone, 1),
        "throughput_to_engine": round(load["scans_per_s"] / alone, 3),
        "throughput_to_engine_beside_callers": round(load["scans_per_s"] / (alone * left), 3),
        "minutes": options.minutes,
    }


def message(size: Sequence[int]) -> bytes:
    """A request with one prepared scan ``(D, H, W)``, as it goes over the wire: packing it is no work of the server."""
    volume = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    tensor = pb.ModelInferRequest.InferInputTensor(name="volume", datatype="UINT8", shape=[1, *size])
    request = pb.ModelInferRequest(model_name="covidnet", inputs=[tensor], raw_input_contents=[volume.tobytes()])
    content: bytes = request.SerializeToString()
    return content


def latency(target: Target, network: Engine, content: bytes, seconds: float) -> dict[str, Any]:
    """Milliseconds of a call over gRPC and of the network alone, in turns so that both see the same machine."""
    request = pb.ModelInferRequest.FromString(content)
    volume = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(1, 1, *request.inputs[0].shape[1:])
    calls: list[float] = []
    runs: list[float] = []
    own: list[float] = []
    with grpc.insecure_channel(target.grpc) as channel:
        ask = channel.unary_unary(METHOD, None, pb.ModelInferResponse.FromString)
        for _ in range(10):
            ask(content)
            network.run(volume)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            runs.append(timed(lambda: network.run(volume))[0])
            took, response = timed(lambda: ask(content))
            calls.append(took)
            own.append(response.parameters["inference_us"].int64_param / 1e6)
    call, run, by_server = (1e3 * float(np.median(times)) for times in (calls, runs, own))
    return {
        "grpc_p50_ms": round(call, 2),
        "grpc_p99_ms": round(1e3 * float(np.percentile(calls, 99)), 2),
        "engine_p50_ms": round(run, 2),
        "engine_in_server_p50_ms": round(by_server, 2),
        "grpc_overhead_ms": round(call - run, 2),
    }


def upload(target: Target, series: Path, seconds: float) -> dict[str, Any]:
    """Median seconds from sending to the answer, and the part of reading in it."""
    times: list[float] = []
    reading: list[float] = []
    post(target, series)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        took, answer = timed(lambda: post(target, series))
        times.append(took)
        reading.append((answer["seconds"]["decode"] + answer["seconds"]["preprocess"]) / took)
    return {
        "upload_s": round(float(np.median(times)), 2),
        "upload_worst_s": round(max(times), 2),
        "upload_share_of_reading": round(float(np.median(reading)), 3),
        "upload_mib": round(series.stat().st_size / 2**20, 1),
        "uploads": len(times),
    }


def post(target: Target, path: Path) -> dict[str, Any]:
    """The answer to a file, sent from disk piece by piece.

    Raises:
        RuntimeError: it is no answer.
    """
    connection = http.client.HTTPConnection(HOST, target.port, timeout=90)
    with path.open("rb") as stream:
        connection.request("POST", "/v1/scans", stream, {"Content-Length": str(path.stat().st_size)})
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
    connection.close()
    if response.status != 200:
        raise RuntimeError(f"expected status 200, found {response.status}: {answer['error']}")
    return answer


def batch_throughput(network: Engine, seconds: float) -> float:
    """Scans per second of the network alone, in the batches that suit it best."""
    best = 0.0
    for count in BATCHES:
        batch = np.random.default_rng(0).integers(0, 256, (count, 1, *network.size), np.uint8)
        network.run(batch)
        runs, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds / len(BATCHES):
            network.run(batch)
            runs += 1
        best = max(best, runs * count / (time.perf_counter() - began))
    return best


def under_load(target: Target, content: bytes, seconds: float) -> dict[str, Any]:
    """What `CALLERS` see, and how much memory the server takes meanwhile."""
    times: list[float] = []
    errors: Counter[str] = Counter()
    end = time.perf_counter() + seconds

    def call() -> None:
        # a connection of its own, as callers on different machines have
        with grpc.insecure_channel(target.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            ask = channel.unary_unary(METHOD)
            while time.perf_counter() < end:
                began = time.perf_counter()
                try:
                    ask(content, timeout=60)
                    times.append(time.perf_counter() - began)
                except grpc.RpcError as error:
                    errors[error.code().name] += 1

    callers = [threading.Thread(target=call) for _ in range(CALLERS)]
    began, own_s, server_s = time.perf_counter(), time.process_time(), cpu_s(target)
    for caller in callers:
        caller.start()
    memory = []
    while time.perf_counter() < end:
        time.sleep(min(1.0, seconds / 40))
        memory.append(memory_mib(target))
    for caller in callers:
        caller.join()
    took, own_s, server_s = time.perf_counter() - began, time.process_time() - own_s, cpu_s(target) - server_s
    p50, p99 = np.percentile(times, [50, 99]) * 1e3
    warm = memory[int(WARM_UP * len(memory)) :]
    part = max(1, len(warm) // 10)
    first, last = float(np.median(warm[:part])), float(np.median(warm[-part:]))
    return {
        "callers": CALLERS,
        "requests": len(times) + errors.total(),
        "errors": errors.total(),
        "statuses": dict(errors),
        "p50_ms": round(p50, 1),
        "p99_ms": round(p99, 1),
        "p99_to_p50": round(p99 / p50, 2),
        "memory_first_mib": round(first),
        "memory_last_mib": round(last),
        "memory_growth": round(last / first - 1, 4),
        "scans_per_s": round(len(times) / took, 1),
        "server_cpu_ms_per_scan": round(1e3 * server_s / len(times), 2),
        "callers_cpu_ms_per_scan": round(1e3 * own_s / len(times), 2),
    }


def cpu_s(target: Target) -> float:
    """CPU seconds that the server's own process has taken."""
    assert target.process is not None
    times = psutil.Process(target.process.pid).cpu_times()
    return times.user + times.system


def memory_mib(target: Target) -> float:
    """Resident memory of the server and its children."""
    assert target.process is not None
    server = psutil.Process(target.process.pid)
    found = 0
    for process in (server, *server.children(recursive=True)):
        try:
            found += process.memory_info().rss
        except psutil.NoSuchProcess:  # a decoder that has just ended
            continue
    return found / 2**20


def zipped(folder: Path | None, path: Path) -> Path:
    """A zip of the series in the folder, or of one that is made."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        if folder is not None:
            for number, file in enumerate(sorted(folder.iterdir())):
                archive.write(file, f"{number}.dcm")
            return path
        rng = np.random.default_rng(0)
        rows, columns = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
        body = np.where(np.hypot(rows / 0.7, columns / 0.9) < 1, 40, -1000)
        body[np.hypot(rows / 0.5, (abs(columns) - 0.4) / 0.3) < 1] = -800
        for number in range(SLICES):
            ds = slice_of((body + rng.normal(0, 20, body.shape)).astype(np.int16)[None])
            ds.SeriesInstanceUID, ds.PixelSpacing = "1.2.3", [0.7, 0.7]
            ds.ImagePositionPatient = [0, 0, 2.5 * number]
            archive.writestr(f"{number}.dcm", saved(ds, path.parent))
    return path


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result."""
    began = time.perf_counter()
    result = run()
    return time.perf_counter() - began, result


if __name__ == "__main__":
    main()
