"""From request bodies to scans, validated before anything is computed.

V1 is JSON, one object per scan in ``instances``. V2 (the Open Inference Protocol) has named tensors; KServe's
`InferRequest` stands for both of its forms, REST and gRPC. Each has the same three ways to give a scan:

* prepared volume: ``volume``, in V1 a nested list (D, H, W), in V2 UINT8 (B, D, H, W) or (B, 1, D, H, W);
* Hounsfield units: ``scan_hu``, in V1 a nested list (D, H, W), in V2 INT16 or FP32, and ``spacing_mm`` [z, y, x];
* a NIfTI file or a zip of a DICOM series: ``file``, in V1 {"b64": base64}, in V2 BYTES (1), in JSON as base64.
"""

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson
from kserve import InferInput, InferRequest
from kserve.protocol.infer_type import RequestedOutput

from covidnet.data.scan import Scan
from serving.errors import Invalid

MAX_SCANS = 64
MAX_JSON_BYTES = 16 * 2**20  # a prepared volume of 40 x 256 x 256 is 10 MiB
SCAN_SIDES = (8, 1024)  # voxels of a scan in Hounsfield units, per axis
SPACING_MM = (0.05, 20.0)
INPUTS = ("volume", "scan_hu", "spacing_mm", "file")
OUTPUTS = ("probabilities", "label", "energy", "novelty", "flags")
MAPS = ("cam", "cam_scan")  # of an answer where they are asked for
MAX_TIMEOUT_US = 10**9
_NUMBER_TYPES: dict[str, type[np.generic]] = {"UINT8": np.uint8, "INT16": np.int16, "FP32": np.float32}

Size = tuple[int, int, int]
# A prepared volume uint8 (D, H, W), a scan in memory, or the bytes of a file.
Source = np.ndarray | Scan | bytes


@dataclass(frozen=True, slots=True)
class Request:
    """A validated request.

    Args:
        sources: one per scan to classify.
        id: the caller's, given back in V2.
        outputs: tensors of the answer in V2; none in V1.
        binary: names among them to send as binary data: behind the JSON in V2 over REST, all of them over gRPC.
        maps: those asked for, of ``cam``, ``cam_scan`` and, in V1, ``cam_nifti``.
        timeout_s: how long the caller is ready to wait, where it says so.
    """

    sources: tuple[Source, ...]
    id: str = ""
    outputs: tuple[str, ...] = ()
    binary: frozenset[str] = frozenset()
    maps: frozenset[str] = frozenset()
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class V1Body:
    """A V1 request as it came."""

    content: bytes


@dataclass(frozen=True, slots=True)
class V2Body:
    """A V2 request as it came over REST; ``json_bytes`` is its header ``Inference-Header-Content-Length``."""

    content: bytes
    json_bytes: str | None


def parse(payload: V1Body | V2Body | InferRequest, size: Size) -> Request:
    """Validate a request of any protocol.

    Args:
        payload: `InferRequest` comes over gRPC.
        size: ``(D, H, W)`` of prepared volumes.

    Raises:
        Invalid: saying what was expected and found.
    """
    if isinstance(payload, V1Body):
        return parse_v1(read_json(payload.content), size)
    if isinstance(payload, V2Body):
        return parse_v2(read_v2(payload.content, payload.json_bytes), size)
    request = parse_v2(payload, size)
    return replace(request, binary=frozenset(request.outputs))


def is_brief(request: InferRequest) -> bool:
    """Whether it is checked in less time than handing it to another thread takes: a prepared volume of raw bytes."""
    return all(tensor.name == "volume" and tensor._raw_data is not None for tensor in request.inputs)


def parse_v1(payload: object, size: Size) -> Request:
    """Validate a V1 body, decoded from JSON.

    Raises:
        Invalid: saying what was expected and found.
    """
    tree = payload if isinstance(payload, dict) else {}
    instances = tree.get("instances")
    if not isinstance(instances, list) or not 1 <= len(instances) <= MAX_SCANS:
        raise Invalid(f'expected {{"instances": [...]}} with 1 to {MAX_SCANS} scans')
    parameters = _object(tree.get("parameters"), "parameters")
    sources = tuple(_instance(item, size) for item in instances)
    return Request(sources, maps=_v1_maps(parameters.get("cam", "model")), timeout_s=_timeout(parameters))


def parse_v2(request: InferRequest, size: Size) -> Request:
    """Validate a V2 request, from REST or gRPC.

    Raises:
        Invalid: saying what was expected and found.
    """
    tensors = {tensor.name: tensor for tensor in request.inputs}
    names = frozenset(tensors)
    sources: tuple[Source, ...]
    if len(tensors) != len(request.inputs) or not names <= set(INPUTS):
        raise Invalid(f"expected input tensors with different names among {', '.join(INPUTS)}")
    if names == {"volume"}:
        sources = _volumes(_numbers(tensors["volume"], ("UINT8",)), size)
    elif names == {"scan_hu", "spacing_mm"}:
        scan_hu = _numbers(tensors["scan_hu"], ("INT16", "FP32"))
        sources = (_scan(scan_hu, _numbers(tensors["spacing_mm"], ("FP32",))),)
    elif names == {"file"}:
        sources = (_file(tensors["file"]),)
    else:
        raise Invalid("expected the inputs volume, or scan_hu with spacing_mm, or file")
    wanted = request.request_outputs or [RequestedOutput(name) for name in OUTPUTS]
    outputs = tuple(output.name for output in wanted)
    if len(set(outputs)) != len(outputs) or not set(outputs) <= {*OUTPUTS, *MAPS}:
        raise Invalid(f"expected requested outputs with different names among {', '.join((*OUTPUTS, *MAPS))}")
    every = request.use_binary_outputs
    binary = frozenset(o.name for o in wanted if (every if o.binary_data is None else o.binary_data))
    maps = frozenset(MAPS) & frozenset(outputs)
    return Request(sources, request.id or "", outputs, binary, maps, _timeout(request.parameters or {}))


def read_v2(body: bytes, json_bytes: str | None) -> InferRequest:
    """Parse a V2 REST body, with or without tensors as binary data behind the JSON.

    KServe's own parser turns each binary element into a Python object, and answers malformed bodies with status 500.

    Args:
        body: whole body.
        json_bytes: the header ``Inference-Header-Content-Length``: bytes of JSON before the binary data.

    Raises:
        Invalid: not the protocol's form.
    """
    if json_bytes is not None and not (json_bytes.isdecimal() and int(json_bytes) <= len(body)):
        raise Invalid("Inference-Header-Content-Length: expected the length of the JSON at the start of the body")
    end = len(body) if json_bytes is None else int(json_bytes)
    tree = read_json(body[:end])
    items = tree.get("inputs") if isinstance(tree, dict) else None
    if not isinstance(items, list) or not 1 <= len(items) <= len(INPUTS):
        raise Invalid(f'expected {{"inputs": [...]}} with 1 to {len(INPUTS)} tensors')
    inputs = []
    for item in items:
        tensor, taken = _tensor(item, memoryview(body)[end:])
        inputs.append(tensor)
        end += taken
    if end != len(body):
        raise Invalid(f"{len(body) - end} bytes follow the last tensor, expected none; check each binary_data_size")
    identity = tree.get("id", "")
    if not isinstance(identity, str) or len(identity) > 256:
        raise Invalid("id: expected a text of at most 256 characters")
    parameters = _object(tree.get("parameters"), "parameters")
    outputs = _requested(tree.get("outputs"))
    return InferRequest("", inputs, identity, parameters=parameters, request_outputs=outputs)


def read_json(body: bytes) -> Any:
    """Decode JSON.

    Raises:
        Invalid: it isn't, or so long that its numbers, as Python objects, would take gigabytes.
    """
    if len(body) > MAX_JSON_BYTES:
        raise Invalid(f"expected at most {MAX_JSON_BYTES // 2**20} MiB of JSON; send larger tensors as binary data")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Invalid("the body is not JSON") from None


def _v1_maps(resolution: object) -> frozenset[str]:
    if resolution not in ("model", "scan"):
        raise Invalid('parameters: cam: expected "model" (the network\'s own grid) or "scan"')
    return frozenset({"cam"} if resolution == "model" else {"cam_nifti"})


def _timeout(parameters: Mapping[str, Any]) -> float | None:
    """Triton's request parameter ``timeout``, in microseconds, as seconds."""
    value = parameters.get("timeout")
    value = getattr(value, "int64_param", value)  # over gRPC a message
    if value is None or value == 0:  # 0 is Triton's "none"
        return None
    if type(value) is not int or not 0 < value <= MAX_TIMEOUT_US:
        raise Invalid(f"parameters: timeout: expected whole microseconds, at most {MAX_TIMEOUT_US}")
    return value / 1e6


def _instance(item: object, size: Size) -> Source:
    if not isinstance(item, dict):
        raise Invalid("instances: expected one object per scan")
    names = frozenset(item)
    if names == {"volume"}:
        return _volumes(_from_list(item["volume"], "UINT8", "volume")[None], size)[0]
    if names == {"scan_hu", "spacing_mm"}:
        scan_hu = _from_list(item["scan_hu"], "FP32", "scan_hu")
        return _scan(scan_hu, _from_list(item["spacing_mm"], "FP32", "spacing_mm"))
    if names == {"file"} and isinstance(item["file"], dict) and set(item["file"]) == {"b64"}:
        return _base64(item["file"]["b64"])
    raise Invalid('instances: expected volume, or scan_hu with spacing_mm, or file as {"b64": base64}')


def _volumes(batch: np.ndarray, size: Size) -> tuple[np.ndarray, ...]:
    """Prepared volumes, from (B, D, H, W) or (B, 1, D, H, W)."""
    shape = batch.shape
    if shape[1:] == (1, *size):
        batch = batch[:, 0]
    if batch.shape[1:] != size or not 1 <= len(batch) <= MAX_SCANS:
        raise Invalid(f"volume: expected (B, {', '.join(map(str, size))}) with B of 1 to {MAX_SCANS}, found {shape}")
    return tuple(batch)


def _scan(voxels: np.ndarray, spacing_mm: np.ndarray) -> Scan:
    low, high = SCAN_SIDES
    if voxels.ndim != 3 or not all(low <= side <= high for side in voxels.shape):
        raise Invalid(f"scan_hu: expected (D, H, W) with sides of {low} to {high}, found {voxels.shape}")
    if voxels.dtype != np.int16:
        limits = np.iinfo(np.int16)
        if not (np.isfinite(voxels).all() and limits.min <= voxels.min() and voxels.max() <= limits.max):
            raise Invalid(f"scan_hu: expected finite values of {limits.min} to {limits.max}")
        voxels = np.rint(voxels).astype(np.int16)
    low_mm, high_mm = SPACING_MM
    if spacing_mm.shape != (3,) or not ((spacing_mm >= low_mm) & (spacing_mm <= high_mm)).all():
        raise Invalid(f"spacing_mm: expected three numbers [z, y, x] of {low_mm} to {high_mm}")
    z, y, x = (float(mm) for mm in spacing_mm)
    return Scan(np.ascontiguousarray(voxels), (z, y, x), format="tensor", orientation="assumed")


def _numbers(tensor: InferInput, datatypes: Sequence[str]) -> np.ndarray:
    """The tensor's numbers in its shape, whichever way they came."""
    if tensor.datatype not in datatypes:
        raise Invalid(f"{tensor.name}: expected datatype {' or '.join(datatypes)}")
    shape = _shape(tensor)
    raw = _raw(tensor)
    if raw is None:
        numbers = _from_list(tensor.data, tensor.datatype, tensor.name)
    else:
        dtype = np.dtype(_NUMBER_TYPES[tensor.datatype])
        if len(raw) % dtype.itemsize:
            raise Invalid(f"{tensor.name}: expected whole elements of {dtype.itemsize} bytes, found {len(raw)} bytes")
        numbers = np.frombuffer(raw, dtype)
    if numbers.size != math.prod(shape):
        raise Invalid(f"{tensor.name}: the shape has {math.prod(shape)} elements, the data {numbers.size}")
    return numbers.reshape(shape)


def _from_list(data: object, datatype: str, name: str) -> np.ndarray:
    """Numbers from JSON or gRPC's typed contents, without NumPy's conversions of text, truth values and overflow."""
    dtype = np.dtype(_NUMBER_TYPES[datatype])
    try:
        numbers = np.array(data)
    except (ValueError, OverflowError):
        raise Invalid(f"{name}: expected a list of equally long lists") from None
    if numbers.dtype.kind not in ("iu" if dtype.kind in "iu" else "iuf"):
        raise Invalid(f"{name}: expected numbers of datatype {datatype}")
    if dtype.kind in "iu" and numbers.size:
        limits = np.iinfo(dtype)
        if numbers.min() < limits.min or numbers.max() > limits.max:
            raise Invalid(f"{name}: expected values of {limits.min} to {limits.max}")
    with np.errstate(over="ignore"):  # becomes infinite, which every user of it refuses
        return numbers.astype(dtype)


def _file(tensor: InferInput) -> bytes:
    if tensor.datatype != "BYTES" or _shape(tensor) not in ([1], [1, 1]):
        raise Invalid("file: expected datatype BYTES and shape [1]")
    raw = _raw(tensor)
    if raw is not None:  # one element: its length in 4 bytes, little-endian, then itself
        if len(raw) < 4 or int.from_bytes(raw[:4], "little") != len(raw) - 4:
            raise Invalid("file: expected one element, its length before it")
        return bytes(raw[4:])
    data = tensor.data
    if not isinstance(data, list) or len(data) != 1:
        raise Invalid("file: expected one element")
    return data[0] if isinstance(data[0], bytes) else _base64(data[0])


def _base64(text: object) -> bytes:
    if not isinstance(text, str):
        raise Invalid("file: expected a text in base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Invalid("file: the text is not base64") from None


def _shape(tensor: InferInput) -> list[int]:
    shape = list(tensor.shape)
    if not 1 <= len(shape) <= 5 or not all(type(side) is int and side > 0 for side in shape):
        raise Invalid(f"{tensor.name}: shape: expected 1 to 5 whole numbers above 0")
    return shape


def _raw(tensor: InferInput) -> bytes | memoryview | None:
    # KServe has no accessor for it, and `as_numpy` takes shape [-1] and fails on others with an unspecific error
    raw: bytes | memoryview | None = tensor._raw_data
    return raw


def _tensor(item: object, binary: memoryview) -> tuple[InferInput, int]:
    """One input tensor and how much of the binary data is its own."""
    tree = _object(item, "inputs")
    name, datatype, shape = (tree.get(key) for key in ("name", "datatype", "shape"))
    if not isinstance(name, str) or not isinstance(datatype, str) or not isinstance(shape, list):
        raise Invalid("inputs: expected name, datatype and shape of each tensor")
    if name not in INPUTS:
        raise Invalid(f"expected input tensors with different names among {', '.join(INPUTS)}")
    tensor = InferInput(name, shape, datatype, tree.get("data"))
    taken = _object(tree.get("parameters"), "parameters").get("binary_data_size")
    if ("data" in tree) == (taken is not None):
        raise Invalid(f"{name}: expected either data, or the parameter binary_data_size")
    if taken is None:
        return tensor, 0
    if type(taken) is not int or not 0 <= taken <= len(binary):
        raise Invalid(f"{name}: binary_data_size: expected at most the {len(binary)} bytes that follow")
    tensor._raw_data = binary[:taken]
    return tensor, taken


def _requested(items: object) -> list[RequestedOutput] | None:
    if items is None or items == []:
        return None
    if not isinstance(items, list):
        raise Invalid("outputs: expected a list")
    outputs = []
    for item in items:
        tree = _object(item, "outputs")
        if tree.get("name") not in (*OUTPUTS, *MAPS):
            raise Invalid(f"expected requested outputs with different names among {', '.join((*OUTPUTS, *MAPS))}")
        outputs.append(RequestedOutput(tree["name"], _object(tree.get("parameters"), "parameters")))
    return outputs


def _object(tree: object, name: str) -> dict[str, Any]:
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise Invalid(f"{name}: expected an object")
    return tree
