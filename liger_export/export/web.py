"""The ``web`` lowering: the stock graph as ``onnxruntime-web`` runs it fast, or at all.

Both graphs read the weights of the stock graph.

- On WebAssembly, MatMulNBits has no kernel of its own: every call dequantizes the whole matrix. The ``wasm`` graph has
  a DequantizeLinear per matrix instead. ONNX Runtime computes it once, when it opens the graph, if the session option
  ``session.disable_quant_qdq`` is 1.
- On WebGPU, GroupQueryAttention lacks ``sliding_window_cache``. The ``webgpu`` graph has the window in ai.onnx
  operators. It runs one sequence.
"""

from math import prod

import numpy as np
import onnx_ir as ir

from liger_export.export.fused import remove_unused
from liger_export.onnx_functions.schemas import DOMAIN, OPSET
from liger_export.onnx_functions.window import WINDOW_ATTENTION, window_attention_function

__all__ = ["dequantized_table", "lower_to_wasm", "lower_to_webgpu"]


def lower_to_wasm(model: ir.Model) -> None:
    """Replace the quantized products of a stock graph whose weights are attached."""
    for node in list(model.graph):
        if node.op_type == "MatMulNBits":
            _dequantize(model.graph, node)
    remove_unused(model.graph)


def _dequantize(graph: ir.Graph, product: ir.Node) -> None:
    rows, columns, bits, block_size = (product.attributes.get_int(name, 0) for name in ("N", "K", "bits", "block_size"))
    activations, packed, scales = product.inputs[:3]
    zero_points, bias = (product.inputs[at] if len(product.inputs) > at else None for at in (3, 5))
    if columns % block_size or columns // block_size * bits % 8:
        return  # rows are padded to whole bytes, which a tensor of 4-bit integers is not
    matrix = _matrix(graph, (packed, scales, zero_points), [rows, columns], bits, block_size)
    transposed = ir.node("Transpose", matrix.outputs, {"perm": [1, 0]})
    nodes = [matrix, transposed, ir.node("MatMul", [activations, transposed.outputs[0]], name=product.name)]
    if bias is not None:
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], bias]))
    ir.convenience.replace_nodes_and_values(graph, product, [product], nodes, product.outputs, nodes[-1].outputs)


def dequantized_table(graph: ir.Graph, gather: ir.Node) -> ir.Node:
    """A node that dequantizes the whole table of a GatherBlockQuantized."""
    packed, _, scales = gather.inputs[:3]
    zero_points = gather.inputs[3] if len(gather.inputs) > 3 else None
    bits, block_size = (gather.attributes.get_int(name, 0) for name in ("bits", "block_size"))
    assert packed is not None
    assert packed.shape is not None
    rows, row_bytes = packed.shape.numpy()
    return _matrix(graph, (packed, scales, zero_points), [rows, row_bytes * 8 // bits], bits, block_size)


def _matrix(
    graph: ir.Graph, stored: tuple[ir.Value | None, ...], shape: list[int], bits: int, block_size: int
) -> ir.Node:
    """A node that dequantizes a matrix: its integers, scales and zero points, as ONNX Runtime's operators read them."""
    packed, scales, zero_points = stored
    assert packed is not None
    dtype, blocks = ir.DataType[f"UINT{bits}"], [shape[0], shape[1] // block_size]
    zeros = _middle(graph, bits, blocks) if zero_points is None else _view(graph, zero_points, dtype, blocks)
    inputs = [_view(graph, packed, dtype, shape), scales, zeros]
    return ir.node("DequantizeLinear", inputs, {"axis": 1, "block_size": block_size})


def _view(graph: ir.Graph, stored: ir.Value, dtype: ir.DataType, shape: list[int]) -> ir.Value:
    """An initializer of another type and shape over the bytes of ``stored``."""
    name = f"{stored.name}.{dtype.name.lower()}"
    if name not in graph.initializers:
        data = stored.const_value
        assert isinstance(data, ir.ExternalTensor)
        assert data.length == prod(shape) * dtype.bitwidth // 8
        view = ir.ExternalTensor(
            data.location, data.offset, data.length, dtype, shape=ir.Shape(shape), name=name, base_dir=data.base_dir
        )
        graph.initializers[name] = _initializer(view, shape)
    return graph.initializers[name]


def _middle(graph: ir.Graph, bits: int, shape: list[int]) -> ir.Value:
    """The zero points of symmetric integers, which MatMulNBits takes for granted."""
    name = f"middle.uint{bits}.{'x'.join(map(str, shape))}"
    if name not in graph.initializers:
        dtype = ir.DataType[f"UINT{bits}"]
        values = np.full(shape, 1 << (bits - 1), dtype.numpy())
        graph.initializers[name] = _initializer(ir.tensor(values, dtype, name=name), shape)
    return graph.initializers[name]


def _initializer(data: ir.TensorProtocol, shape: list[int]) -> ir.Value:
    return ir.Value(name=data.name, shape=ir.Shape(shape), type=ir.TensorType(data.dtype), const_value=data)


def lower_to_webgpu(model: ir.Model) -> None:
    """Replace the window of a stock graph, and fix its batch to one sequence."""
    bodies = dict(model.functions)
    function = ir.serde.deserialize_function(window_attention_function())
    model.functions.clear()
    model.functions[function.identifier()] = function  # before its callers, as onnx's reference evaluator reads them
    model.functions.update(bodies)
    for body in bodies.values():
        for node in list(body):
            if node.op_type == "GroupQueryAttention":
                _replace_window(body, node)
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.shape is not None
        value.shape = ir.Shape([1 if dim == "batch" else dim for dim in value.shape])


def _replace_window(body: ir.Function, node: ir.Node) -> None:
    position_ids = next(value for value in body.inputs if value.name == "position_ids")
    attributes = [node.attributes[name] for name in ("kv_num_heads", "local_window_size")]
    call = ir.Node(
        DOMAIN, WINDOW_ATTENTION, [*node.inputs[:5], position_ids], attributes, num_outputs=3, name=node.name
    )
    ir.convenience.replace_nodes_and_values(body, node, [node], [call], node.outputs, call.outputs)
    body.opset_imports[DOMAIN] = OPSET
