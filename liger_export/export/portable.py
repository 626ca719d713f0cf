"""The ``portable`` lowering: only ai.onnx operators, one sequence, and a fixed number of tokens per call.

Other engines can parse it: there is no other domain, no model-local function and no size that depends on an input.
Decoding (one token per call) and prefill (many) are two graphs over the same weights. In a prefill call the last tokens
may be padding.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx import FunctionProto
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants

from liger_export.errors import InputError
from liger_export.export.weights import DenseWeight, SignedWeight, Weight, declare_weight
from liger_export.onnx_functions.portable import CHUNK, Sizes, portable_function
from liger_export.onnx_functions.rotary_angles import ROTARY_ANGLES, rotary_angles_function
from liger_export.onnx_functions.schemas import DOMAIN
from liger_export.ops.signatures import SIGNATURES_BY_OPERATOR
from liger_export.precision import Scheme

__all__ = ["check_prefill_length", "lower_to_portable"]

SHARED_CONSTANT = 1 << 16  # elements; above the size of every constant in a body, so that layers share them all


def check_prefill_length(length: int) -> None:
    """Check the number of tokens per prefill call. Raises InputError if it is not a multiple of ``CHUNK``."""
    if length < CHUNK or length % CHUNK:
        raise InputError(f"A prefill call cannot have {length} tokens.", f"Choose a multiple of {CHUNK}.")


def lower_to_portable(
    model: ir.Model, length: int, schemes: Mapping[str, Scheme | None], *, keep: Collection[str] = ()
) -> list[Weight]:
    """Rewrite a traced model in place for calls of ``length`` tokens, with logits of all of them, padding included.

    Args:
        model: a model from ``trace``.
        length: 1, or a multiple of ``CHUNK``.
        schemes: how to quantize each matrix, by checkpoint name; None keeps it in the activations' dtype. A quantized
            embedding table is stored dequantized, in the activations' dtype.
        keep: ``liger`` operators whose nodes stay, for an engine that has them; their bodies stay as functions.

    Returns:
        The weights that the graph now reads, to be written by ``attach_weights``. They do not depend on ``length``.
    """
    graph = model.graph
    _fix_sizes(graph, length)
    weights = _store_weights(graph, schemes)
    _expand_attention(model, length, keep)
    passes.InlinePass(criteria=lambda function: function.name not in keep)(model)
    fold_constants(model)
    for clean in (
        passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        passes.IdentityEliminationPass(),
        passes.CommonSubexpressionEliminationPass(size_limit=SHARED_CONSTANT),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
    ):
        clean(model)
    return weights


def _fix_sizes(graph: ir.Graph, length: int) -> None:
    """Fix the batch to one sequence and the length to ``length``, and compute the logits of every token."""
    kept = graph.inputs[2]
    for node in list(graph):
        if node.op_type == "LastPositions":
            hidden_states = node.inputs[0]
            assert hidden_states is not None
            node.outputs[0].replace_all_uses_with(hidden_states)
            graph.remove(node, safe=True)
    graph.inputs.remove(kept)
    graph.initializers.pop(str(kept.name), None)  # older packages give it a default
    for node in graph:
        for value in node.outputs:
            value.shape = None if value not in graph.outputs else value.shape  # inferred again, without symbols
    for value in (*graph.inputs, *graph.outputs):
        assert value.shape is not None
        sizes = {"batch": 1, "length": length, "kept": length}
        dims = [dim if isinstance(dim, int) else sizes[str(dim)] for dim in value.shape]
        value.shape = ir.Shape(dims)


def _expand_attention(model: ir.Model, length: int, keep: Collection[str]) -> None:
    """Add a function per operator and set of sizes, and call it from each node, for the inliner; kept nodes stay."""
    written: dict[tuple[str, Sizes], str] = {}
    for node in list(model.graph):
        if node.domain != DOMAIN:
            continue
        if node.op_type == ROTARY_ANGLES:
            _add_function(model, rotary_angles_function())
            continue
        mixer, sizes = SIGNATURES_BY_OPERATOR[node.op_type].mixer, _sizes(node, length)
        is_kept = node.op_type in keep  # its layers all have the same sizes, so one function serves them
        name = written.setdefault((mixer, sizes), node.op_type if is_kept else f"{node.op_type}{len(written)}")
        body = portable_function(mixer, name, sizes)
        body.attribute.extend(node.attributes if is_kept else ())
        _add_function(model, body)
        if is_kept:
            continue
        call = ir.node(name, node.inputs, domain=DOMAIN, num_outputs=len(node.outputs), name=node.name)
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [call], node.outputs, call.outputs)


def _add_function(model: ir.Model, body: FunctionProto) -> None:
    function = ir.serde.deserialize_function(body)
    model.functions[function.identifier()] = function


def _sizes(node: ir.Node, length: int) -> Sizes:
    attributes, signature = node.attributes, SIGNATURES_BY_OPERATOR[node.op_type]
    inputs = dict(zip(signature.inputs, node.inputs, strict=True))
    window_value = inputs["window_value"]
    assert window_value is not None
    assert window_value.dtype is not None
    feature_dim = 0
    if (query_map := inputs.get("query_map")) is not None:
        assert query_map.shape is not None
        feature_dim = query_map.shape.numpy()[-1]
    return Sizes(
        length,
        attributes.get_int("num_heads", 0),
        attributes.get_int("num_key_value_heads", 0),
        attributes.get_int("head_dim", 0),
        attributes.get_int("window_size", 0),
        int(window_value.dtype),
        num_slots=attributes.get_int("num_slots", 0),
        feature_dim=feature_dim,
        gate_normalizer=attributes.get_float("gate_normalizer", 1.0),
        recurrent_weight=attributes.get_float("recurrent_weight", 0.5),
    )


def _store_weights(graph: ir.Graph, schemes: Mapping[str, Scheme | None]) -> list[Weight]:
    """Make products read W [out, in] as the checkpoint stores it, quantized ones through DequantizeLinear."""
    names = [name for name, value in graph.initializers.items() if value.const_value is None]
    products = _Products(graph)
    for node in list(graph):
        transpose = node.inputs[1].producer() if node.op_type == "MatMul" and node.inputs[1] is not None else None
        weight = transpose.inputs[0] if transpose is not None and transpose.op_type == "Transpose" else None
        if weight is not None and transpose is not None and (scheme := schemes.get(str(weight.name))):
            products.quantize(node, transpose, weight, scheme)
    dense: list[Weight] = []
    for name in names:
        value = graph.initializers[name]
        if value.uses():
            dense.append(DenseWeight(value, (name,)))
        else:
            graph.initializers.pop(name)
    return [*dense, *products.stored]


@dataclass
class _Products:
    """The linear layers of a graph whose weights are quantized."""

    graph: ir.Graph
    stored: list[SignedWeight] = field(default_factory=list)

    def quantize(self, product: ir.Node, transpose: ir.Node, weight: ir.Value, scheme: Scheme) -> None:
        """Read a weight through DequantizeLinear, and add the contribution of its zero points as a second product.

        Engines support only signed integers with zero point 0. In a block of 4-bit integers, u - z = (u - 8) + (8 - z),
        so x W^T is exactly a product with s (u - 8) plus a small product of each block's sum of x with s (8 - z).
        Symmetric 8-bit integers need the second product too, because engines reject negative scales (``SignedWeight``).
        """
        assert weight.shape is not None
        rows, columns = weight.shape.numpy()
        name, blocks = str(weight.name), scheme.blocks(columns)
        assert weight.dtype is not None
        integers = declare_weight(self.graph, f"{name}.integers", [rows, columns], ir.DataType[f"INT{scheme.bits}"])
        scales = declare_weight(self.graph, f"{name}.scales", [rows, blocks], weight.dtype)
        attributes = {"axis": 1, "block_size": scheme.block_size}
        dequantized = ir.node("DequantizeLinear", [integers, scales], attributes, name=f"{name}.dequantized")
        self.graph.insert_before(transpose, dequantized)
        transpose.replace_input_with(0, dequantized.outputs[0])
        offsets = None
        if not scheme.symmetric or scheme.bits == 8:
            offsets = declare_weight(self.graph, f"{name}.offsets", [rows, blocks], weight.dtype)
            self._add_offsets(product, offsets, scheme)
        self.stored.append(SignedWeight((name,), scheme, integers, scales, offsets))

    def _add_offsets(self, product: ir.Node, offsets: ir.Value, scheme: Scheme) -> None:
        activations, weight, blocks = product.inputs[0], product.inputs[1], offsets.shape
        assert activations is not None
        assert blocks is not None
        split, axis = _numbers([1, -1, blocks.numpy()[1], scheme.block_size]), _numbers([-1])
        by_block = ir.node("Reshape", [activations, split.outputs[0]])
        sums = ir.node("ReduceSum", [by_block.outputs[0], axis.outputs[0]], {"keepdims": 0})
        columns = ir.node("Transpose", [offsets], {"perm": [1, 0]})
        above = ir.node("MatMul", [sums.outputs[0], columns.outputs[0]])
        centred = ir.node("MatMul", [activations, weight], name=product.name)
        total = ir.node("Add", [centred.outputs[0], above.outputs[0]])
        nodes = [split, axis, by_block, sums, columns, above, centred, total]
        ir.convenience.replace_nodes_and_values(self.graph, product, [product], nodes, product.outputs, total.outputs)


def _numbers(values: list[int]) -> ir.Node:
    return ir.node("Constant", [], {"value": ir.tensor(np.array(values, dtype=np.int64))})
