"""Graphs rewritten for an engine: the numbers of the original, by other operators."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import toy_bundle
from onnx import helper, numpy_helper
from scipy.ndimage import correlate

from covidnet.export.bundle import Bundle
from covidnet.inference.variants import half, planar_depthwise


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)


def convolution(
    kernel: np.ndarray, grid: tuple[int, ...], bias: np.ndarray | None = None, **attributes: object
) -> onnx.ModelProto:
    channels = len(kernel)
    tensors = {"w": kernel} | ({} if bias is None else {"b": bias})
    node = helper.make_node("Conv", ["x", *tensors], ["y"], group=channels, **attributes)
    # shapes within the graph are inferred, as those of an exported network are: two identities make x and y inner values
    nodes = [helper.make_node("Identity", ["in"], ["x"]), node, helper.make_node("Identity", ["y"], ["out"])]
    values = [
        helper.make_tensor_value_info(
            name, onnx.TensorProto.FLOAT, ["batch", channels, *(grid if name == "in" else "dhw")]
        )
        for name in ("in", "out")
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("side", [3, 5, 7])
@pytest.mark.parametrize("grid", [(1, 4, 4), (2, 3, 5), (9, 8, 7)])
def test_planes_give_the_numbers_of_the_definition(side: int, grid: tuple[int, int, int]) -> None:
    random = np.random.default_rng(side)
    kernel = random.normal(size=(3, 1, side, side, side)).astype(np.float32)
    bias = random.normal(size=3).astype(np.float32)
    x = random.normal(size=(2, 3, *grid)).astype(np.float32)
    model = planar_depthwise(convolution(kernel, grid, bias, pads=[side // 2] * 6))
    expected = [[correlate(x[b, c], kernel[c, 0], mode="constant") + bias[c] for c in range(3)] for b in range(2)]
    np.testing.assert_allclose(run(model, {"in": x})[0], expected, atol=1e-4)
    kernels = [tensor.dims for tensor in model.graph.initializer if len(tensor.dims) == 4]
    assert kernels == [[3, 1, side, side]] * min(side, 2 * grid[0] - 1)  # taps that meet padding only are left out


@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        ((4, 1, 3, 3, 3), {"pads": [1] * 6, "strides": [2, 2, 2]}),
        ((4, 1, 3, 3, 3), {"pads": [0] * 6}),
        ((4, 1, 3, 3, 3), {"pads": [2] * 6, "dilations": [2, 2, 2]}),
        ((4, 1, 1, 3, 3), {"pads": [0, 1, 1, 0, 1, 1]}),
    ],
)
def test_other_convolutions_are_left_alone(shape: tuple[int, ...], attributes: dict[str, object]) -> None:
    model = convolution(np.ones(shape, np.float32), (4, 4, 4), **attributes)
    assert planar_depthwise(model).graph.node == model.graph.node


def test_no_depthwise_3d_convolution_is_left_of_an_exported_network(toy: Bundle) -> None:
    model = onnx.load(toy.model)
    before = model.SerializeToString()
    rewritten = planar_depthwise(model)
    assert model.SerializeToString() == before
    volume = np.random.default_rng(0).integers(0, 256, (3, 1, *toy_bundle.SIZE), dtype=np.uint8)
    for expected, found in zip(run(model, {"volume": volume}), run(rewritten, {"volume": volume}), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    groups = {
        (len(tensor.dims), helper.get_node_attr_value(node, "group"))
        for node in rewritten.graph.node
        for tensor in rewritten.graph.initializer
        if node.op_type == "Conv" and tensor.name == node.input[1]
    }
    assert groups == {(5, 1), (4, 8)}


def test_half_keeps_the_input_and_the_outputs_and_halves_the_weights(toy: Bundle) -> None:
    model = onnx.load(toy.model)
    halved = half(model)
    volume = np.random.default_rng(0).integers(0, 256, (3, 1, *toy_bundle.SIZE), dtype=np.uint8)
    expected, found = run(model, {"volume": volume}), run(halved, {"volume": volume})
    assert [output.dtype for output in found] == [np.float32] * 3
    assert 0 < np.abs(found[0] - expected[0]).max() < 0.02
    np.testing.assert_allclose(found[1].sum(axis=1), 1, atol=1e-6)
    types = Counter(tensor.data_type for tensor in halved.graph.initializer if len(tensor.dims) > 1)
    assert set(types) == {onnx.TensorProto.FLOAT16}


def test_file_on_disk_is_not_touched(toy: Bundle) -> None:
    content = Path(toy.model).read_bytes()
    half(onnx.load(toy.model))
    assert Path(toy.model).read_bytes() == content
