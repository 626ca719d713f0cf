"""The ``plugin`` lowering: one token per call, and each layer's attention is one node that an engine's plugin computes.

Other nodes, layers whose mixer has no plugin, and the weights are those of the ``portable`` lowering. A plugin's node
has the attributes by which TensorRT's parser finds the plugin. Its portable body stays in the file as a function of the
same name, so ONNX Runtime can run the graph and check the engine.
"""

from collections.abc import Collection, Mapping

import onnx_ir as ir

from liger_export.export.portable import lower_to_portable
from liger_export.export.weights import Weight
from liger_export.onnx_functions.schemas import DOMAIN
from liger_export.ops.signatures import HEAD_SIZES, SIGNATURES_BY_OPERATOR
from liger_export.precision import Scheme

__all__ = ["lower_to_plugins"]


def lower_to_plugins(model: ir.Model, schemes: Mapping[str, Scheme | None], operators: Collection[str]) -> list[Weight]:
    """Rewrite a traced model in place for calls of one token.

    Args:
        model: a model from ``trace``.
        schemes: as for ``lower_to_portable``.
        operators: the ``liger`` operators for which the engine has plugins.

    Returns:
        The weights that the graph now reads, the same as in the ``portable`` lowering.
    """
    for node in model.graph:
        if node.domain == DOMAIN and node.op_type in operators:
            _name_plugin(node)
    return lower_to_portable(model, 1, schemes, keep=operators)


def _name_plugin(node: ir.Node) -> None:
    """Add the attributes that the parser reads, and order the others as the plugin registers them."""
    signature = SIGNATURES_BY_OPERATOR[node.op_type]
    ordered = [node.attributes.pop(name) for name in (*HEAD_SIZES, *signature.sizes, *signature.options)]
    for attribute in ordered:
        node.attributes.add(attribute)
    node.attributes.add(ir.AttrString("plugin_namespace", DOMAIN))
    node.attributes.add(ir.AttrInt64("aot", 1))  # reject a plugin that calls Python at run time
