"""The ``plugin`` lowering: one token a call, a layer's attention one node that a plugin of the engine computes.

All other nodes, and layers whose mixer has no plugin, are as in the ``portable`` lowering, over the same weights. A
plugin's node carries what TensorRT's parser looks a plugin up by, and its portable body stays in the file as a function
of the node's name, so that ONNX Runtime computes what the engine must.
"""

from collections.abc import Mapping

import onnx_ir as ir

from liger_export.config import LigerConfig
from liger_export.errors import KernelError
from liger_export.export.portable import lower_portable
from liger_export.export.weights import Weight
from liger_export.kernels.shapes import MIXERS, AttentionShape
from liger_export.ops.forms import FORMS
from liger_export.ops.onnx_forms import DOMAIN
from liger_export.quantize import Scheme

__all__ = ["lower_to_plugins", "plugin_operators"]


def plugin_operators(config: LigerConfig, activations: str) -> tuple[str, ...]:
    """The ``liger`` operators of a model that have a plugin; none if no kernel computes the model's attention."""
    if config.mixer not in MIXERS:
        return ()
    groups = config.num_key_value_heads
    repeats = config.num_attention_heads // groups
    try:
        AttentionShape(config.mixer, groups, repeats, config.head_dim, config.window_size, activations)
    except KernelError:
        return ()
    return (FORMS[config.mixer].onnx_name,)


def lower_to_plugins(
    model: ir.Model, schemes: Mapping[str, Scheme | None], operators: tuple[str, ...]
) -> list[Weight]:
    """Rewrite a traced model in place for calls of one token.

    Args:
        model: what ``trace`` returned.
        schemes: as ``lower_portable``.
        operators: what ``plugin_operators`` returned.

    Returns:
        The weights that the graph now reads: those of the ``portable`` lowering.
    """
    for node in model.graph:
        if node.domain == DOMAIN and node.op_type in operators:
            node.attributes["plugin_namespace"] = ir.AttrString("plugin_namespace", DOMAIN)
            node.attributes["aot"] = ir.AttrInt64("aot", 1)  # refuse a plugin that would call Python when it runs
    return lower_portable(model, 1, schemes, keep=operators)
