"""The ``fused`` lowering: a layer's attention is one operator of this project's library, fed by packed products."""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from liger_export.config import LigerConfig
from liger_export.errors import UnsupportedModelError
from liger_export.kernels.plans import TOP_LOGITS
from liger_export.kernels.shapes import KERNEL_MIXERS
from liger_export.onnx_functions.schemas import DOMAIN
from liger_export.ops.signatures import HEAD_SIZES, SIGNATURES

__all__ = ["lower_to_fused", "remove_unused", "require_fusable"]

MIXER_OF = {SIGNATURES[mixer].onnx_name: mixer for mixer in KERNEL_MIXERS}
MOST_LIKELY = "most_likely"
TEMPERATURE = "temperature"
# The library's operators, which need no body.
NATIVE = ("Attention", "Candidates", "GatedSiLU", "LastPositions", "MostLikely")
VECTOR = 8  # values that the library's CPU kernels compute at a time


def require_fusable(config: LigerConfig) -> None:
    """Check, before any work, that the fused operator computes a model's attention.

    Raises:
        UnsupportedModelError: it has no such mixer, or not of this head size.
    """
    if config.mixer not in KERNEL_MIXERS:
        raise UnsupportedModelError(
            f"The fused lowering has no mixer {config.mixer}; it has {', '.join(KERNEL_MIXERS)}.",
            "Convert with --lowering stock.",
        )
    if config.head_dim % VECTOR:
        raise UnsupportedModelError(
            f"head_dim is {config.head_dim}, and the fused operators need a multiple of {VECTOR}.",
            "Convert with --lowering stock.",
        )


def lower_to_fused(model: ir.Model) -> None:
    """Rewrite a stock graph in place, over the same weights.

    ``liger::Attention`` takes the place of every layer whose mixer it has; it reads q, k and v as the packed product
    leaves them. ``liger::GatedSiLU`` takes the place of the four nodes between the feed-forward's products, and
    ``most_likely``, int64 [B, kept], is an output more: each position's likeliest token. ``candidates``, float32
    [B, 513], is another: what ``liger::Candidates`` makes of the last position's logits at the input ``temperature``,
    float32 [], whose default 0 asks for nothing. Layers that keep softmax stay as they are.

    Args:
        model: what ``lower`` made of a traced model.
    """
    graph = model.graph
    for node in list(graph):
        if node.domain == DOMAIN and node.op_type in MIXER_OF:
            _fuse_attention(graph, node)
        elif node.op_type == "Mul" and (split := _gated_by(node)):
            gated = ir.node("GatedSiLU", [split.inputs[0]], domain=DOMAIN, name=node.name)
            ir.convenience.replace_nodes_and_values(graph, node, [node], [gated], node.outputs, gated.outputs)
    _add_most_likely(graph)
    _add_candidates(graph)
    remove_unused(graph)
    kept = {node.op_identifier() for node in graph if node.op_type not in NATIVE}
    for identifier in [identifier for identifier in model.functions if identifier not in kept]:
        del model.functions[identifier]


def _fuse_attention(graph: ir.Graph, node: ir.Node) -> None:
    projections, rest = node.inputs[:3], node.inputs[3:]
    packed = _split_into(projections)
    inputs = [*([packed, None, None] if packed else projections), *rest]
    attributes: dict[str, int | float | str] = {"mixer": MIXER_OF[node.op_type]}
    attributes |= {name: node.attributes.get_int(name, 0) for name in HEAD_SIZES}
    # hgrn2's gates have no normalizer.
    attributes |= {name: node.attributes.get_float(name, 1.0) for name in ("gate_normalizer", "recurrent_weight")}
    fused = ir.node("Attention", inputs, attributes, domain=DOMAIN, num_outputs=len(node.outputs), name=node.name)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [fused], node.outputs, fused.outputs)


def _add_most_likely(graph: ir.Graph) -> None:
    logits = next(value for value in graph.outputs if value.name == "logits")
    node = ir.node("MostLikely", [logits], domain=DOMAIN, name=MOST_LIKELY)
    chosen = node.outputs[0]
    chosen.name, chosen.type, chosen.shape = MOST_LIKELY, ir.TensorType(ir.DataType.INT64), ir.Shape(["batch", "kept"])
    graph.append(node)
    graph.outputs.append(chosen)


def _add_candidates(graph: ir.Graph) -> None:
    logits = next(value for value in graph.outputs if value.name == "logits")
    none = ir.tensor(np.array(0, dtype=np.float32), name=TEMPERATURE)
    scalar = ir.TensorType(ir.DataType.FLOAT)
    temperature = ir.Value(name=TEMPERATURE, shape=ir.Shape([]), type=scalar, const_value=none)
    graph.inputs.append(temperature)
    graph.register_initializer(temperature)  # the default: an optional input
    node = ir.node("Candidates", [logits, temperature], domain=DOMAIN, name="candidates")
    found = node.outputs[0]
    found.name, found.type = "candidates", ir.TensorType(ir.DataType.FLOAT)
    found.shape = ir.Shape(["batch", 1 + 2 * TOP_LOGITS])
    graph.append(node)
    graph.outputs.append(found)


def _split_into(values: Sequence[ir.Value | None]) -> ir.Value | None:
    """What was split into exactly these values, in this order; None if nothing was."""
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
    """Drop nodes, last to first, and initializers that nothing reads any more."""
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
