"""An architecture as an ONNX graph with random weights: what an engine is timed on, made in milliseconds.

Its interface is that of an exported network (`covidnet.export.onnx`); normalisation is folded into the convolutions, as
every engine does with it when it loads a graph.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from covidnet.inference.engine import OUTPUTS
from covidnet.models.covidnet3d import Space

Size = tuple[int, int, int]
CLASSES = 3


class _Graph:
    """Nodes and weights in the order in which they were added; methods return the name of their output."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self._random = np.random.default_rng(0)

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: object) -> str:
        output = output or f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, value: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def convolution(
        self, x: str, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, groups: int = 1, output: str = ""
    ) -> str:
        shape = (c_out, c_in // groups, kernel, kernel, kernel)
        scale = 1 / np.sqrt(np.prod(shape[1:]))
        weight = self.constant((self._random.standard_normal(shape) * scale).astype(np.float32))
        bias = self.constant(np.full(c_out, 0.1, np.float32))
        attributes = {"strides": [stride] * 3, "pads": [kernel // 2] * 6, "group": groups}
        return self.add("Conv", x, weight, bias, output=output, kernel_shape=[kernel] * 3, **attributes)

    def relu6(self, x: str) -> str:
        return self.add("Clip", x, self.constant(np.array(0, np.float32)), self.constant(np.array(6, np.float32)))


def network(space: Space, path: Sequence[int], size: Size, channels: int) -> ModelProto:
    """The graph of one architecture.

    Args:
        path: index into ``space.operations`` per block.
        size: ``(D, H, W)`` of the input.
        channels: of the first convolution.

    Returns:
        input ``volume`` uint8 ``(B, 1, D, H, W)``, outputs ``logits``, ``probabilities`` and ``cam``.
    """
    graph = _Graph()
    x = graph.add("Cast", "volume", to=TensorProto.FLOAT)
    x = graph.add("Mul", x, graph.constant(np.array(1 / 127.5, np.float32)))
    x = graph.add("Concat", *[x] * channels, axis=1) if channels > 1 else x
    x = graph.relu6(graph.convolution(x, channels, space.stem, 3, space.stem_stride))
    width_in = space.stem
    for width, stride, layer in zip(space.widths, space.strides, space.layers(path), strict=True):
        x = graph.relu6(graph.convolution(x, width_in, width, stride=stride))
        for operation in (space.operations[i] for i in layer):
            if not operation.kernel:
                continue
            hidden = width * operation.expansion
            y = graph.relu6(graph.convolution(x, width, hidden))
            y = graph.relu6(graph.convolution(y, hidden, hidden, operation.kernel, groups=hidden))
            x = graph.add("Add", x, graph.convolution(y, hidden, width))
        width_in = width
    x = graph.relu6(graph.convolution(x, width_in, space.last))
    maps = graph.convolution(x, space.last, CLASSES, output="cam")
    axes = graph.constant(np.array([2, 3, 4], np.int64))
    logits = graph.add("ReduceMean", maps, axes, output="logits", keepdims=0)
    graph.add("Softmax", logits, output="probabilities", axis=1)
    volume = helper.make_tensor_value_info("volume", TensorProto.UINT8, ["batch", 1, *size])
    scores = ["batch", CLASSES]
    shapes = {"logits": scores, "probabilities": scores, "cam": [*scores, "d", "h", "w"]}
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in OUTPUTS]
    made = helper.make_graph(graph.nodes, space.name, [volume], outputs, graph.weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=onnx.IR_VERSION_2023_5_5)
