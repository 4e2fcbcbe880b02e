import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kserve import InferInput, InferRequest

from covidnet.data.scan import Scan
from serving import protocol
from serving.answers import Answer, answer_v1, answer_v2
from serving.errors import Invalid
from serving.protocol import Request

SIZE = (2, 3, 4)
VOLUME = np.arange(24, dtype=np.uint8).reshape(SIZE)
HU = np.full((8, 8, 8), -800, np.int16)


def tensor(name: str, data: np.ndarray, datatype: str, shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape or list(data.shape), "data": data.ravel().tolist()}


def parse(*tensors: dict[str, Any], **more: Any) -> Request:
    body = json.dumps({"inputs": tensors, **more}).encode()
    return protocol.parse_v2(protocol.read_v2(body, None), SIZE)


def test_a_volume_is_the_same_in_every_form() -> None:
    v1 = protocol.parse_v1({"instances": [{"volume": VOLUME.tolist()}]}, SIZE)
    flat = parse(tensor("volume", VOLUME, "UINT8", [1, 2, 3, 4]))
    channel = parse(tensor("volume", VOLUME, "UINT8", [1, 1, 2, 3, 4]))
    header = {"inputs": [{"name": "volume", "datatype": "UINT8", "shape": [1, 2, 3, 4]}]}
    header["inputs"][0]["parameters"] = {"binary_data_size": 24}
    text = json.dumps(header).encode()
    binary = protocol.parse_v2(protocol.read_v2(text + VOLUME.tobytes(), str(len(text))), SIZE)
    grpc = InferInput("volume", [1, 2, 3, 4], "UINT8")
    grpc.set_data_from_numpy(VOLUME[None])
    rpc = protocol.parse_v2(InferRequest.from_grpc(InferRequest("covidnet", [grpc]).to_grpc()), SIZE)
    for request in (v1, flat, channel, binary, rpc):
        (source,) = request.sources
        assert isinstance(source, np.ndarray)
        assert source.dtype == np.uint8
        assert np.array_equal(source, VOLUME)


def test_a_batch_becomes_one_source_per_volume() -> None:
    batch = np.stack([VOLUME, VOLUME + 1, VOLUME + 2])
    sources = parse(tensor("volume", batch, "UINT8")).sources
    assert [int(source[0, 0, 0]) for source in sources if isinstance(source, np.ndarray)] == [0, 1, 2]


@pytest.mark.parametrize("datatype", ["INT16", "FP32"])
def test_hounsfield_units_become_a_scan(datatype: str) -> None:
    spacing = tensor("spacing_mm", np.array([5.0, 0.5, 0.75]), "FP32")
    (scan,) = parse(tensor("scan_hu", HU, datatype), spacing).sources
    assert isinstance(scan, Scan)
    assert np.array_equal(scan.voxels, HU)
    assert scan.voxels.dtype == np.int16
    assert scan.spacing_mm == (5.0, 0.5, 0.75)


def test_a_file_is_base64_in_json() -> None:
    text = base64.b64encode(b"\x1f\x8bscan").decode()
    v1 = protocol.parse_v1({"instances": [{"file": {"b64": text}}]}, SIZE)
    v2 = parse({"name": "file", "datatype": "BYTES", "shape": [1], "data": [text]})
    assert v1.sources == v2.sources == (b"\x1f\x8bscan",)


def test_the_maps_come_on_request_only() -> None:
    volume = tensor("volume", VOLUME, "UINT8", [1, 2, 3, 4])
    assert parse(volume).outputs == ("probabilities", "label", "energy", "novelty", "flags")
    assert parse(volume, outputs=[{"name": "cam"}]).outputs == ("cam",)


def spacing_of(*mm: float) -> dict[str, Any]:
    return {"name": "spacing_mm", "datatype": "FP32", "shape": [len(mm)], "data": list(mm)}


BAD_V2: dict[str, list[dict[str, Any]]] = {
    "shape doesn't match the data": [tensor("volume", VOLUME, "UINT8", [1, 2, 3, 5])],
    "shape -1": [tensor("volume", VOLUME, "UINT8", [-1])],
    "shape true": [tensor("volume", VOLUME[:, :1, :1], "UINT8", [True, 2])],
    "huge shape": [tensor("volume", VOLUME, "UINT8", [2**40, 2**40])],
    "another size": [tensor("volume", VOLUME, "UINT8", [1, 4, 3, 2])],
    "no volume": [tensor("volume", VOLUME[:0], "UINT8", [0, 2, 3, 4])],
    "another datatype": [tensor("volume", VOLUME, "FP32", [1, 2, 3, 4])],
    "unknown datatype": [tensor("volume", VOLUME, "COMPLEX", [1, 2, 3, 4])],
    "fractions": [tensor("volume", VOLUME / 2, "UINT8", [1, 2, 3, 4])],
    "beyond 255": [tensor("volume", VOLUME.astype(int) + 250, "UINT8", [1, 2, 3, 4])],
    "text": [{"name": "volume", "datatype": "UINT8", "shape": [1, 2, 3, 4], "data": ["7"] * 24}],
    "truth values": [{"name": "volume", "datatype": "UINT8", "shape": [1, 2, 3, 4], "data": [True] * 24}],
    "ragged": [{"name": "volume", "datatype": "UINT8", "shape": [1, 2, 3, 4], "data": [[1], [1, 2]]}],
    "objects": [{"name": "volume", "datatype": "UINT8", "shape": [1, 2, 3, 4], "data": [{"a": 1}] * 24}],
    "no data": [{"name": "volume", "datatype": "UINT8", "shape": [1, 2, 3, 4]}],
    "unknown name": [tensor("image", VOLUME, "UINT8")],
    "twice": [tensor("volume", VOLUME, "UINT8", [1, 2, 3, 4])] * 2,
    "no spacing": [tensor("scan_hu", HU, "INT16")],
    "spacing 0": [tensor("scan_hu", HU, "INT16"), spacing_of(0, 1, 1)],
    "two spacings": [tensor("scan_hu", HU, "INT16"), spacing_of(1, 1)],
    "spacing beyond float32": [tensor("scan_hu", HU, "INT16"), spacing_of(1e300, 1, 1)],
    "hu beyond int16": [tensor("scan_hu", HU.astype(int) * 1000, "FP32"), spacing_of(1, 1, 1)],
    "flat scan": [tensor("scan_hu", HU[0], "INT16"), spacing_of(1, 1, 1)],
    "thin scan": [tensor("scan_hu", HU[:2], "INT16"), spacing_of(1, 1, 1)],
    "not base64": [{"name": "file", "datatype": "BYTES", "shape": [1], "data": ["~~~~"]}],
    "two files": [{"name": "file", "datatype": "BYTES", "shape": [1], "data": ["YQ==", "YQ=="]}],
    "file of numbers": [{"name": "file", "datatype": "BYTES", "shape": [1], "data": [7]}],
}


@pytest.mark.parametrize("tensors", BAD_V2.values(), ids=BAD_V2)
def test_a_bad_tensor_is_refused(tensors: list[dict[str, Any]]) -> None:
    with pytest.raises(Invalid):
        parse(*tensors)


@pytest.mark.parametrize(
    "outputs", [[{"name": "nothing"}], [{"name": "cam"}, {"name": "cam"}], ["cam"], {"name": "cam"}, [{}]]
)
def test_unknown_outputs_are_refused(outputs: object) -> None:
    with pytest.raises(Invalid):
        parse(tensor("volume", VOLUME, "UINT8", [1, 2, 3, 4]), outputs=outputs)


@pytest.mark.parametrize("header", ["-1", "x", "999", "²"])
def test_a_wrong_json_length_is_refused(header: str) -> None:
    with pytest.raises(Invalid):
        protocol.read_v2(b'{"inputs": []}', header)


@pytest.mark.parametrize(("stated", "sent"), [(24, 23), (23, 24), (24, 25), (-1, 24), (True, 1), ("24", 24)])
def test_binary_data_of_another_length_is_refused(stated: object, sent: int) -> None:
    tree = {"name": "volume", "datatype": "UINT8", "shape": [1, 2, 3, 4], "parameters": {"binary_data_size": stated}}
    text = json.dumps({"inputs": [tree]}).encode()
    with pytest.raises(Invalid):
        protocol.parse_v2(protocol.read_v2(text + bytes(sent), str(len(text))), SIZE)


@pytest.mark.parametrize("raw", [b"", b"\x05\0\0", b"\xff\xff\xff\xffabc", b"\x01\0\0\0ab", bytes(64)])
def test_a_file_whose_length_is_wrong_is_refused(raw: bytes) -> None:
    file = InferInput("file", [1], "BYTES")
    file._raw_data = raw
    with pytest.raises(Invalid):
        protocol.parse_v2(InferRequest("covidnet", [file]), SIZE)


KEYS = ["inputs", "instances", "name", "datatype", "shape", "data", "parameters", "volume", "file", "b64", "outputs"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(json_values)
def test_any_json_is_either_understood_or_refused(tree: object) -> None:
    """Nothing but `Invalid` comes out of validation, so nothing in a body can be an internal error."""
    for attempt in (tree, {"inputs": tree}, {"inputs": [tree]}, {"instances": [tree]}):
        body = json.dumps(attempt).encode()
        for parse_it in (
            lambda b: protocol.parse_v1(protocol.read_json(b), SIZE),
            lambda b: protocol.parse_v2(protocol.read_v2(b, None), SIZE),
        ):
            try:
                parse_it(body)
            except Invalid:
                continue


def test_the_answers_of_both_protocols_say_the_same() -> None:
    answer = Answer(
        "b", {"a": 0.25, "b": 0.75}, -1.5, 0.5, ("odd",), np.ones((2, 1, 1, 1), np.float32), {"inference": 0.002}
    )
    v1 = answer_v1([answer], "v", explain=True)["predictions"][0]
    request = Request((VOLUME,), "7", protocol.OUTPUTS)
    response = answer_v2([answer], request, "covidnet", "v").to_rest()[0]
    rows = {output["name"]: output["data"] for output in response["outputs"]}
    assert v1["probabilities"] == {"a": 0.25, "b": 0.75}
    assert rows["probabilities"] == [0.25, 0.75]
    assert rows["label"] == [v1["label"]] == ["b"]
    assert [json.loads(text) for text in rows["flags"]] == [v1["flags"]] == [["odd"]]
    assert v1["cam"] == {"a": [[[1.0]]], "b": [[[1.0]]]}
    assert response["id"] == "7"
    assert response["parameters"] == {"classes": '["a","b"]', "inference_us": 2000}


def test_json_that_would_swell_is_refused_before_it_is_parsed() -> None:
    body = b'{"instances": [' + b"1," * (protocol.MAX_JSON_BYTES // 2) + b"1]}"
    with pytest.raises(Invalid, match="16 MiB"):
        protocol.parse(protocol.V1Body(body), SIZE)
