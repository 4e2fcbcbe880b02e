"""Malformed requests by the thousand: none may get a 5xx, its own text back, no answer at all, or end the server.

    python -m benchmarks.fuzz_endpoint                        # 10,000 requests, about 15 minutes on two cores
    python -m benchmarks.fuzz_endpoint --requests 300 --seed 7

Four sorts: JSON and binary tensors in both protocols (trees that Hypothesis draws, and sound bodies with a part replaced),
gRPC messages (drawn fields, and sound messages with damaged bytes), uploads (files of every format, damaged as in
`benchmarks.fuzz_readers`, bare and in damaged forms), and HTTP itself (damaged heads, lengths and chunks on a raw
connection). All carry a patient's name, which no answer and no line of the log may have. Now and then a sound request has
to get the same answer as before. Exit code 1 on any fault. Figures: benchmarks/results/fuzz_endpoint.json.
"""

import base64
import http.client
import json
import random
import socket
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from benchmarks.fuzz_readers import mutate, seeds
from benchmarks.load import METHOD, memory_mib, message
from benchmarks.servers import HOST, ROOT, Target, endpoint, served, untrained
from benchmarks.torchserve import request

RESULTS = ROOT / "benchmarks" / "results" / "fuzz_endpoint.json"
SIZE = (16, 64, 64)  # (D, H, W)
SECRET = "Doe^Jane^1950"
SHARES = {"json": 0.4, "grpc": 0.3, "upload": 0.2, "http": 0.1}
CALLERS = 4
HANGS_S = 30
EVERY = 200  # requests between two sound ones
V1, V2, SCANS = "/v1/models/covidnet:predict", "/v2/models/covidnet/infer", "/v1/scans"
PATHS = (
    V1,
    "/v1/models/covidnet:explain",
    V2,
    f"/v1/phantoms/{SECRET}",
    "/v1/feedback",
    f"/v1/models/{SECRET}:predict",
)

Call = Callable[[], tuple[str, bytes]]  # sends a request; gives the status and all that came back


@dataclass
class Found:
    """What was answered, and what shouldn't have been.

    Args:
        statuses: by sort and status.
        faults: by kind, and an example of each.
    """

    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def fault(self, kind: str, example: str) -> None:
        self.faults[kind] += 1
        self.examples.setdefault(kind, example)


def main() -> None:
    """Send, judge, write."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="covidnet-fuzz-") as work:
        bundle = untrained(Path(work), SIZE)
        began = time.perf_counter()
        with endpoint(bundle, Path(work)) as target:
            first_mib = memory_mib(target)
            found = fuzz(target, options.requests, options.seed, Path(work))
            ended = "the server ended" in found.faults
            memory = {"first": round(first_mib), "last": 0 if ended else round(memory_mib(target))}
        seconds = round(time.perf_counter() - began)
    for sort, statuses in found.statuses.items():
        print(f"{sort:>8} | {', '.join(f'{times} x {status}' for status, times in statuses.most_common())}")
    print(f"{options.requests} requests in {seconds} s, {found.faults.total()} faults")
    for kind, example in found.examples.items():
        print(f"  {found.faults[kind]:>6} x {kind}: {example[:400]}")
    result = {"requests": options.requests, "seed": options.seed, "seconds": seconds, "memory_mib": memory}
    result |= {"faults": dict(found.faults), "statuses": {name: dict(by) for name, by in found.statuses.items()}}
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps({**served(bundle), **result}, indent=2) + "\n")
    sys.exit(found.faults.total() > 0)


def fuzz(target: Target, count: int, number: int, work: Path) -> Found:
    """Send ``count`` malformed requests, a few at a time, and sound ones between them."""
    found = Found()
    rng = random.Random(number)
    sound = Sound(target)
    expected = sound.ask()
    made = {
        "json": json_calls(target, rng),
        "grpc": grpc_calls(target, rng),
        "upload": upload_calls(target, rng, work),
        "http": http_calls(target, rng),
    }
    sorts = rng.choices(list(SHARES), list(SHARES.values()), k=count)
    with ThreadPoolExecutor(CALLERS) as pool:
        for start in range(0, count, EVERY):
            chunk = [(sort, *next(made[sort])) for sort in sorts[start : start + EVERY]]
            for (sort, told, _), answer in zip(chunk, pool.map(lambda item: answered(item[2]), chunk), strict=True):
                judge(sort, told, *answer, found)
            if target.process is not None and target.process.poll() is not None:
                found.fault("the server ended", f"status {target.process.returncode}")
                return found
            if not expected or sound.ask() != expected:
                found.fault("a sound request was answered otherwise", f"after {start + EVERY} requests")
    if target.log is not None:
        log = target.log.read_text()
        if SECRET in log:
            found.fault("echo in the log", next(line for line in log.splitlines() if SECRET in line))
        for line in log.splitlines():
            if "unexpected" in line or "Traceback" in line:
                found.fault("unforeseen", line)
    return found


def answered(call: Call) -> tuple[str, bytes, float]:
    """Status, all that came back, and seconds."""
    began = time.perf_counter()
    try:
        status, answer = call()
    except TimeoutError:
        status, answer = "none", b""
    return status, answer, time.perf_counter() - began


def judge(sort: str, told: str, status: str, answer: bytes, took_s: float, found: Found) -> None:
    """Note what is wrong with an answer."""
    found.statuses.setdefault(sort, Counter())[status] += 1
    if took_s > HANGS_S or status in ("none", "DEADLINE_EXCEEDED"):
        found.fault(f"{sort}: no answer", f"{took_s:.0f} s: {told}")
    elif (status.isdigit() and status >= "500") or status in ("INTERNAL", "UNKNOWN", "UNAVAILABLE", "CANCELLED"):
        found.fault(f"{sort}: {status}", f"{told}: {answer[-300:]!r}")
    if SECRET.encode() in answer and status not in ("200", "OK"):  # V2 gives a request's id back
        found.fault(f"{sort}: echo", f"{status}: {told}: {answer[-300:]!r}")


class Sound:
    """A request that must always get the same answer."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._content = message(SIZE)

    def ask(self) -> bytes:
        """Its probabilities, as bytes; none where it fails."""
        with grpc.insecure_channel(self._target.grpc) as channel:
            try:
                response = channel.unary_unary(METHOD, None, pb.ModelInferResponse.FromString)(
                    self._content, timeout=60
                )
            except grpc.RpcError:
                return b""
        probabilities: bytes = response.raw_output_contents[0]
        return probabilities


# Values that a reader may stumble over, anywhere in a tree.
ODD: tuple[Any, ...] = (None, True, -1, 0, 2**31, 2**63 - 1, -(2**63), 1e308, -0.0, "", SECRET, "\x00", "😀" * 50, [], {},
                        [[]], [[1], [1, 2]], {"b64": SECRET}, {"b64": "QQ=="}, [SECRET], {SECRET: SECRET}, "UINT8", "BYTES",
                        [1, *SIZE], [0], [-1], [2**62, 2**62], "file", "volume")  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=20)
TREES = st.recursive(
    LEAVES | st.sampled_from(ODD),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=25,
)


def trees(rng: random.Random) -> Iterator[Any]:
    """Drawn JSON trees without end."""
    drawn: list[Any] = []
    draw = given(TREES)(lambda tree: drawn.append(tree))
    draw = settings(max_examples=100, database=None, deadline=None, phases=[Phase.generate])(draw)
    while True:
        if not drawn:
            seed(rng.randrange(2**32))(draw)()
        yield drawn.pop()


def json_calls(target: Target, rng: random.Random) -> Iterator[tuple[str, Call]]:
    """V1 and V2 over HTTP."""
    drawn = trees(rng)
    volume = base64.b64encode(bytes(100) + SECRET.encode()).decode()
    tensor = {"name": "volume", "datatype": "UINT8", "shape": [1, *SIZE], "data": [0] * 20}
    sound: dict[str, Any] = {
        V1: {"instances": [{"file": {"b64": volume}}], "parameters": {"cam": "scan", "timeout": 10**7}},
        V2: {"id": SECRET, "inputs": [tensor], "outputs": [{"name": "label", "parameters": {"binary_data": True}}],
             "parameters": {"timeout": 10**7}},
    }  # fmt: skip
    binary, headers = request(SIZE)
    while True:
        kind = rng.randrange(4)
        path = rng.choice(PATHS)
        sent = {"X-Patient": SECRET, "Content-Type": rng.choice(("application/json", "text/plain", SECRET, "*/*"))}
        if kind == 0:
            body = dumped({rng.choice(("instances", "inputs", "id", SECRET)): next(drawn), SECRET: next(drawn)})
        elif kind == 1:
            body = dumped(replaced(sound[V1 if ":" in path else V2], next(drawn), rng))
        elif kind == 2:
            body = mutate(dumped(sound[V1 if ":" in path else V2]), rng)
        else:
            path = V2
            body = mutate(binary, rng)
            length = headers["Inference-Header-Content-Length"]
            sent["Inference-Header-Content-Length"] = rng.choice((length, length, length, "0", "-1", "9" * 30, SECRET))
        if rng.random() < 0.1:
            odd = rng.choice(
                ("X-Request-Timeout-Ms", "Content-Encoding", "Accept", "Traceparent", "Authorization", "Ce-Id")
            )
            sent[odd] = rng.choice((SECRET, "0", "-1", "9" * 40, "gzip", "application/json"))
        yield f"{path} {sent} {body[:150]!r}", over_http(target, path, body, sent)


def grpc_calls(target: Target, rng: random.Random) -> Iterator[tuple[str, Call]]:
    """Messages for every method that takes some; a channel each, as a broken one may be closed."""
    channel = grpc.insecure_channel(target.grpc)
    sound = pb.ModelInferRequest.FromString(message(SIZE))
    while True:
        changed = pb.ModelInferRequest()
        changed.CopyFrom(sound)
        changed.id = SECRET
        if rng.random() < 0.5:
            tensor = changed.inputs[0]
            for _ in range(rng.randrange(1, 4)):
                rng.choice(CHANGES)(changed, tensor, rng)
            content = changed.SerializeToString()
        else:
            changed.raw_input_contents[0] = SECRET.encode() * 3
            content = mutate(changed.SerializeToString(), rng)
        method = rng.choice((METHOD,) * 6 + tuple(METHOD.replace("ModelInfer", other) for other in OTHER_METHODS))
        yield f"{method} {content[:150]!r}", over_grpc(channel, method, content)


OTHER_METHODS = (
    "ModelMetadata",
    "ModelReady",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "ServerMetadata",
    SECRET,
)
Change = Callable[[pb.ModelInferRequest, Any, random.Random], object]
CHANGES: tuple[Change, ...] = (
    lambda whole, tensor, rng: setattr(whole, "model_name", rng.choice((SECRET, "", "covidnet"))),
    lambda whole, tensor, rng: setattr(whole, "model_version", SECRET),
    lambda whole, tensor, rng: setattr(tensor, "name", rng.choice((SECRET, "", "file", "scan_hu", "spacing_mm"))),
    lambda whole, tensor, rng: setattr(tensor, "datatype", rng.choice((SECRET, "", "BYTES", "FP32", "INT16", "FP16"))),
    lambda whole, tensor, rng: tensor.shape.append(rng.choice((-1, 0, 1, 2**62))),
    lambda whole, tensor, rng: tensor.shape.pop() if tensor.shape else None,
    lambda whole, tensor, rng: whole.raw_input_contents.append(SECRET.encode()),
    lambda whole, tensor, rng: whole.raw_input_contents.pop() if whole.raw_input_contents else None,
    lambda whole, tensor, rng: whole.inputs.add(name=rng.choice(("file", "volume", SECRET)), datatype="BYTES", shape=[1]),
    lambda whole, tensor, rng: tensor.contents.bytes_contents.append(SECRET.encode()),
    lambda whole, tensor, rng: tensor.contents.uint_contents.extend([2**32 - 1] * 3),
    lambda whole, tensor, rng: tensor.contents.fp32_contents.extend([float("nan"), float("inf")]),
    lambda whole, tensor, rng: setattr(whole.parameters["timeout"], "string_param", SECRET),
    lambda whole, tensor, rng: setattr(whole.parameters["timeout"], "int64_param", rng.choice((-1, 2**63 - 1))),
    lambda whole, tensor, rng: setattr(whole.parameters["binary_data_output"], "string_param", SECRET),
    lambda whole, tensor, rng: whole.outputs.add(name=rng.choice((SECRET, "cam", "cam_scan", "label"))),
)  # fmt: skip


ACCEPTED = ("application/json", "image/png", "application/x-nifti", "multipart/form-data", SECRET)


def upload_calls(target: Target, rng: random.Random, work: Path) -> Iterator[tuple[str, Call]]:
    """Files, and forms around them."""
    folder = work / "seeds"
    folder.mkdir()
    originals = seeds(folder)
    while True:
        kind = rng.choice(list(originals))
        content = mutate(originals[kind], rng)
        sent = {
            "Accept": rng.choice(
                ("application/json", "image/png", "application/x-nifti", "multipart/form-data", SECRET)
            )
        }
        if rng.random() < 0.3:
            sent["Content-Type"] = rng.choice(
                ("multipart/form-data; boundary=x", f"multipart/form-data; boundary={SECRET}")
            )
            head = f'--x\r\nContent-Disposition: form-data; name="{SECRET}"; filename="{SECRET}"\r\n\r\n'.encode()
            content = mutate(head + content + b"\r\n--x--\r\n", rng)
        yield f"{kind} {sent} {len(content)} bytes", over_http(target, SCANS, content, sent)


def http_calls(target: Target, rng: random.Random) -> Iterator[tuple[str, Call]]:
    """Damage to HTTP itself; an answer is not owed, a connection that ends is."""
    body, _ = request(SIZE)
    while True:
        path = rng.choice((*PATHS, SCANS, "/", "/metrics", "/static/../../etc/passwd", "/static/%2e%2e/routes.py", "*"))
        chunked = rng.random() < 0.3
        method = rng.choice(("POST", "POST", "GET", "PUT", "DELETE", "OPTIONS", "TRACE", SECRET))
        framing = (
            "Transfer-Encoding: chunked" if chunked else f"Content-Length: {rng.choice((200, 0, -1, 2**70, SECRET))}"
        )
        head = f"{method} {path} HTTP/1.{rng.choice('0119')}\r\nHost: x\r\nX-Patient: {SECRET}\r\n{framing}\r\n\r\n"
        sent = b"c8\r\n" + body[:200] + b"\r\n0\r\n\r\n" if chunked else body[:200]
        content = mutate(head.encode() + sent, rng) if rng.random() < 0.8 else head.encode() + sent
        yield repr(content[:200]), over_socket(target, content)


def over_http(target: Target, path: str, body: bytes, headers: dict[str, str]) -> Call:
    def call() -> tuple[str, bytes]:
        connection = http.client.HTTPConnection(HOST, target.port, timeout=HANGS_S)
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            return str(response.status), str(response.headers).encode() + response.read()
        except (ConnectionError, http.client.HTTPException) as error:
            return type(error).__name__, b""
        finally:
            connection.close()

    return call


def over_grpc(channel: grpc.Channel, method: str, content: bytes) -> Call:
    def call() -> tuple[str, bytes]:
        try:
            answer: bytes = channel.unary_unary(method)(content, timeout=HANGS_S)
        except grpc.RpcError as error:
            return error.code().name, (error.details() or "").encode()
        return "OK", answer

    return call


def over_socket(target: Target, content: bytes) -> Call:
    def call() -> tuple[str, bytes]:
        with socket.create_connection((HOST, target.port), timeout=HANGS_S) as connection:
            try:
                connection.sendall(content)
                connection.shutdown(socket.SHUT_WR)
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
            except ConnectionError:
                return "closed", b""
        return (answer.split()[1].decode() if answer.startswith(b"HTTP/1.") else "closed"), answer

    return call


def dumped(tree: Any) -> bytes:
    """JSON, with what isn't JSON (NaN, lone surrogates) as Python writes it."""
    return json.dumps(tree).encode()


def replaced(tree: Any, by: Any, rng: random.Random) -> Any:
    """The tree with one part of it replaced, or left out."""
    if isinstance(tree, dict) and tree and rng.random() < 0.8:
        key = rng.choice(list(tree))
        if rng.random() < 0.1:
            return {name: value for name, value in tree.items() if name != key}
        return {**tree, key: replaced(tree[key], by, rng)}
    if isinstance(tree, list) and tree and rng.random() < 0.8:
        index = rng.randrange(len(tree))
        return [*tree[:index], replaced(tree[index], by, rng), *tree[index + 1 :]]
    return by


if __name__ == "__main__":
    main()
