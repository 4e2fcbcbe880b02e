"""The exported graph rewritten for an engine that lacks a fast kernel: other operators, the same weights and numbers.

ONNX Runtime's CPU provider has no fast depthwise 3D convolution, but a fast depthwise 2D one. A k x k x k depthwise
convolution is the sum over its k depth taps of 2D convolutions of the shifted volume, depth folded into the batch:

    y[d] = sum over t of conv2d(x[d + t - k // 2], w[t])

which is about three times faster there and equal up to the order of additions. OpenVINO loses by it, so each engine
gets the graph that suits it, derived from the one file of the bundle when it is loaded.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper


def planar_depthwise(model: ModelProto) -> ModelProto:
    """Every depthwise 3D convolution of stride 1 as shifted 2D ones; the rest of the graph as it is.

    Args:
        model: left as it is. Shapes other than the batch are fixed, as `covidnet.export.onnx` writes them.
    """
    rewritten = onnx.shape_inference.infer_shapes(model)  # a copy
    graph = rewritten.graph
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.value_info}
    del graph.value_info[:]
    kernels = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[NodeProto] = []
    for node in graph.node:
        kernel = kernels.get(node.input[1]) if node.op_type == "Conv" else None
        if kernel is None or not _is_depthwise(node, kernel):
            nodes.append(node)
            continue
        added, tensors = _planes(node, numpy_helper.to_array(kernel), shapes[node.input[0]][1:])
        nodes += added
        graph.initializer.extend(tensors)
    del graph.node[:]
    graph.node.extend(nodes)
    _keep_used(graph)
    return rewritten


def _is_depthwise(node: NodeProto, kernel: onnx.TensorProto) -> bool:
    """Stride 1, same padding, one odd k x k x k kernel per channel."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    channels, per_group, *sides = kernel.dims
    return (
        len(sides) == 3
        and per_group == 1
        and channels > 1
        and attributes.get("group") == channels
        and all(side == sides[0] and side % 2 for side in sides)
        and attributes.get("pads") == [side // 2 for side in sides] * 2
        and set(attributes.get("strides", [1])) == set(attributes.get("dilations", [1])) == {1}
    )


def _planes(node: NodeProto, kernel: np.ndarray, grid: Sequence[int]) -> tuple[list[NodeProto], list[onnx.TensorProto]]:
    """Nodes and constants in the place of one convolution with ``kernel (C, 1, k, k, k)`` on a ``grid`` (C, D, H, W)."""
    channels, depth, height, width = grid
    side, name = kernel.shape[2], node.output[0]
    reach = min(side // 2, depth - 1)  # taps farther away meet padding only
    nodes: list[NodeProto] = []
    tensors: list[onnx.TensorProto] = []

    def constant(label: str, value: np.ndarray) -> str:
        tensors.append(numpy_helper.from_array(value, f"{name}/{label}"))
        return str(tensors[-1].name)

    def add(operator: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def integers(*values: int) -> np.ndarray:
        return np.array(values, np.int64)

    folded = constant("folded", integers(-1, channels, height, width))
    axis = constant("axis", integers(1))
    slices = add("Transpose", [node.input[0]], f"{name}/slices", perm=[0, 2, 1, 3, 4])  # (B, D, C, H, W)
    margin = constant("margin", integers(0, reach, 0, 0, 0, 0, reach, 0, 0, 0))
    padded = add("Pad", [slices, margin], f"{name}/padded")  # (B, reach + D + reach, C, H, W)
    total = ""
    for first, tap in enumerate(range(side // 2 - reach, side // 2 + reach + 1)):
        ends = [constant(f"{label}{tap}", integers(at)) for label, at in (("start", first), ("stop", first + depth))]
        shifted = add("Slice", [padded, *ends, axis], f"{name}/shifted{tap}")  # (B, D, C, H, W)
        planes = add("Reshape", [shifted, folded], f"{name}/planes{tap}")  # (B * D, C, H, W)
        inputs = [planes, constant(f"kernel{tap}", np.ascontiguousarray(kernel[:, :, tap]))]
        inputs += node.input[2:] if not total else []  # the bias, once
        pads = [side // 2] * 4
        part = add("Conv", inputs, f"{name}/part{tap}", group=channels, kernel_shape=[side, side], pads=pads)
        total = add("Add", [total, part], f"{name}/sum{tap}") if total else part
    stacked = constant("stacked", integers(-1, depth, channels, height, width))
    unfolded = add("Reshape", [total, stacked], f"{name}/unfolded")
    add("Transpose", [unfolded], name, perm=[0, 2, 1, 3, 4])  # (B, C, D, H, W)
    return nodes, tensors


def half(model: ModelProto) -> ModelProto:
    """The graph computed in float16 from the first convolution to the maps, with the same input and outputs.

    Input scaling, the average over a map and the softmax stay in float32: they cost nothing and lose digits.

    Args:
        model: left as it is.
    """
    converted = onnx.shape_inference.infer_shapes(model)  # a copy
    graph = converted.graph
    floats = {value.name for value in graph.value_info if _is_float(value)}
    del graph.value_info[:]
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    as_half: dict[str, str] = {}  # float32 tensor to its float16 twin
    computed: set[str] = set()  # tensors that are float16 themselves
    nodes: list[NodeProto] = []

    def cast(name: str, to: int) -> str:
        output = f"{name}/{'half' if to == TensorProto.FLOAT16 else 'float'}"
        nodes.append(helper.make_node("Cast", [name], [output], to=to))
        return output

    def halved(name: str) -> str:
        if name not in as_half:
            if name in constants:
                value = numpy_helper.to_array(constants[name]).astype(np.float16)
                graph.initializer.append(numpy_helper.from_array(value, f"{name}/half"))
                as_half[name] = f"{name}/half"
            else:
                as_half[name] = cast(name, TensorProto.FLOAT16)
        return as_half[name]

    outputs = {output.name for output in graph.output}
    for node in graph.node:
        is_half = node.op_type == "Conv" or not computed.isdisjoint(node.input)
        if not is_half or node.op_type in ("ReduceMean", "Softmax"):
            names = [cast(name, TensorProto.FLOAT) if name in computed else name for name in node.input]
        else:
            names = [halved(n) if n in constants or (n in floats and n not in computed) else n for n in node.input]
            computed.update(node.output)
        del node.input[:]
        node.input.extend(names)
        nodes.append(node)
        for name in outputs.intersection(node.output) & computed:
            node.output[list(node.output).index(name)] = f"{name}/half"
            computed.add(f"{name}/half")
            computed.discard(name)
            nodes.append(helper.make_node("Cast", [f"{name}/half"], [name], to=TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    _keep_used(graph)
    return converted


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == TensorProto.FLOAT)


def _keep_used(graph: onnx.GraphProto) -> None:
    """Drop constants that no node reads any more."""
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
