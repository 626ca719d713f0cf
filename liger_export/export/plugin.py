"""The ``plugin`` lowering: one token a call, a layer's attention one node that a plugin of the engine computes.

All other nodes, and layers whose mixer has no plugin, are as in the ``portable`` lowering, over the same weights. A
plugin's node carries what TensorRT's parser looks a plugin up by, and its portable body stays in the file as a function
of the node's name, so that ONNX Runtime computes what the engine must.
"""

from collections.abc import Collection, Mapping

import onnx_ir as ir

from liger_export.export.portable import lower_portable
from liger_export.export.weights import Weight
from liger_export.onnx_functions.schemas import DOMAIN
from liger_export.ops.signatures import HEAD_SIZES, SIGNATURES_BY_OPERATOR
from liger_export.precision import Scheme

__all__ = ["lower_to_plugins"]


def lower_to_plugins(model: ir.Model, schemes: Mapping[str, Scheme | None], operators: Collection[str]) -> list[Weight]:
    """Rewrite a traced model in place for calls of one token.

    Args:
        model: what ``trace`` returned.
        schemes: as ``lower_portable``.
        operators: those that the engine has plugins for.

    Returns:
        The weights that the graph now reads: those of the ``portable`` lowering.
    """
    for node in model.graph:
        if node.domain == DOMAIN and node.op_type in operators:
            _name_plugin(node)
    return lower_portable(model, 1, schemes, keep=operators)


def _name_plugin(node: ir.Node) -> None:
    """Give a node what the parser reads of it, attributes in the order in which the plugin is registered with them."""
    signature = SIGNATURES_BY_OPERATOR[node.op_type]
    ordered = [node.attributes.pop(name) for name in (*HEAD_SIZES, *signature.sizes, *signature.options)]
    for attribute in ordered:
        node.attributes.add(attribute)
    node.attributes.add(ir.AttrString("plugin_namespace", DOMAIN))
    node.attributes.add(ir.AttrInt64("aot", 1))  # refuse a plugin that would call Python when it runs
