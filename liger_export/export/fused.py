"""The ``fused`` lowering: each layer's attention is one operator of this project's ONNX Runtime library.

``liger::Attention`` computes gla and hgrn2, on CPU and CUDA. The operator of a mixer that CUDA has no kernels for keeps
its name in the traced graph, and only loses its body.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from liger_export.config import MIXERS, LigerConfig
from liger_export.errors import UnsupportedModelError
from liger_export.kernels.shapes import KERNEL_MIXERS
from liger_export.onnx_functions.schemas import DOMAIN
from liger_export.ops.signatures import SIGNATURES
from liger_export.package.contract import CANDIDATES, MOST_LIKELY, TEMPERATURE, Port

__all__ = ["lower_to_fused", "remove_unused", "require_fusable"]

MIXER_OF = {SIGNATURES[mixer].onnx_name: mixer for mixer in MIXERS}
# Operators that the library implements, and that need no function body.
NATIVE = ("Attention", "Candidates", "GatedSiLU", "LastPositions", "MostLikely", "RotaryAngles", *MIXER_OF)
VECTOR = 8  # the library's CPU kernels compute vectors of this many values


def require_fusable(config: LigerConfig) -> None:
    """Check that the fused operators support a model's head size.

    Raises:
        UnsupportedModelError: it does not.
    """
    if config.head_dim % VECTOR:
        raise UnsupportedModelError(
            f"head_dim is {config.head_dim}, and the fused operators need a multiple of {VECTOR}.",
            "Convert with --lowering stock.",
        )


def lower_to_fused(model: ir.Model) -> None:
    """Rewrite a stock graph in place. The weights stay.

    - An operator of the library computes the attention of every layer with a mixer. It reads q, k and v packed, as the
      product writes them. Layers that keep softmax do not change.
    - ``liger::GatedSiLU`` replaces the four nodes between the products of the feed-forward.
    - A new output ``most_likely``, int64 [B, kept], holds the argmax of each position's logits; -1 if a logit is NaN or
      the largest is infinite.
    - A new output ``candidates``, float32 [B, 513], holds the top logits of the last position, as ``liger::Candidates``
      computes them at the new input ``temperature``, float32 []. At 0 they are not computed.

    Args:
        model: a model from ``lower_to_stock``.
    """
    graph = model.graph
    for node in list(graph):
        if node.domain == DOMAIN and node.op_type in MIXER_OF:
            _fuse_attention(node)
        elif node.op_type == "Mul" and (split := _gated_by(node)):
            gated = ir.node("GatedSiLU", [split.inputs[0]], domain=DOMAIN, name=node.name)
            ir.convenience.replace_nodes_and_values(graph, node, [node], [gated], node.outputs, gated.outputs)
    _add_argmax(graph)
    _add_top_logits(graph)
    remove_unused(graph)
    kept = {node.op_identifier() for node in graph if node.op_type not in NATIVE}
    for identifier in [identifier for identifier in model.functions if identifier not in kept]:
        del model.functions[identifier]


def _fuse_attention(node: ir.Node) -> None:
    packed = _split_into(node.inputs[:3])
    if packed is not None:
        for place, value in enumerate((packed, None, None)):
            node.replace_input_with(place, value)
    mixer = MIXER_OF[node.op_type]
    if mixer in KERNEL_MIXERS:
        node.op_type = "Attention"
        node.attributes["mixer"] = ir.AttrString("mixer", mixer)
        node.attributes.setdefault("gate_normalizer", ir.AttrFloat32("gate_normalizer", 1.0))  # hgrn2 has none


def _add_argmax(graph: ir.Graph) -> None:
    logits = next(value for value in graph.outputs if value.name == "logits")
    node = ir.node("MostLikely", [logits], domain=DOMAIN, name=MOST_LIKELY.name)
    graph.append(node)
    graph.outputs.append(_declare(node.outputs[0], MOST_LIKELY))


def _add_top_logits(graph: ir.Graph) -> None:
    logits = next(value for value in graph.outputs if value.name == "logits")
    temperature = _declare(ir.Value(), TEMPERATURE)
    graph.inputs.append(temperature)
    node = ir.node("Candidates", [logits, temperature], domain=DOMAIN, name=CANDIDATES.name)
    graph.append(node)
    graph.outputs.append(_declare(node.outputs[0], CANDIDATES))


def _declare(value: ir.Value, port: Port) -> ir.Value:
    """Give a value the name, dtype and shape of an input or output of the contract."""
    value.name, value.shape = port.name, ir.Shape(port.shape)
    value.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(port.dtype)))
    return value


def _split_into(values: Sequence[ir.Value | None]) -> ir.Value | None:
    """The value that a Split splits into exactly these values, in this order; None if there is none."""
    split = values[0].producer() if values[0] is not None else None
    if split is None or split.op_type != "Split" or list(split.outputs) != list(values):
        return None
    return split.inputs[0]


def _gated_by(node: ir.Node) -> ir.Node | None:
    """The Split of x into gate and up, if ``node`` computes (gate * sigmoid(gate)) * up."""
    silu, up = node.inputs
    product = silu.producer() if silu is not None else None
    if product is None or product.op_type != "Mul" or up is None:
        return None
    gate, sigmoid = product.inputs
    activation = sigmoid.producer() if sigmoid is not None else None
    if gate is None or activation is None or activation.op_type != "Sigmoid" or activation.inputs[0] is not gate:
        return None
    if _split_into([gate, up]) is None:
        return None
    split = gate.producer()
    sizes = split.inputs[1].const_value if split is not None and split.inputs[1] is not None else None
    return split if sizes is not None and int(sizes.numpy()[0]) % VECTOR == 0 else None


def remove_unused(graph: ir.Graph) -> None:
    """Remove nodes and initializers that nothing reads."""
    outputs = set(graph.outputs)
    for node in reversed(list(graph)):
        if not any(value.uses() or value in outputs for value in node.outputs):
            graph.remove(node, safe=True)
    for name in list(_unread(graph)):
        del graph.initializers[name]


def _unread(graph: ir.Graph) -> Iterator[str]:
    for name, value in graph.initializers.items():
        if not value.uses() and value not in graph.inputs:
            yield name
