"""The ``standard`` lowering: only operators of ONNX itself, so that the graph outlives ONNX Runtime's own.

The recurrence is LinearAttention of ai.onnx, which opset 27 defines. The weights are those of the stock graph, read
through DequantizeLinear. It runs one sequence.
"""

import onnx
import onnx_ir as ir

from liger_export.config import SOFTMAX, LigerConfig
from liger_export.errors import EnvironmentMismatchError, UnsupportedModelError
from liger_export.export.fuse import MICROSOFT
from liger_export.export.fused import remove_unused
from liger_export.export.web import dequantized_table, lower_to_wasm, lower_to_webgpu

__all__ = ["STANDARD_OPSET", "lower_to_standard", "require_standard"]

STANDARD_OPSET = 27  # the first with LinearAttention
STANDARD_MIXERS = ("gla", "hgrn2", SOFTMAX)  # the other bodies use ONNX Runtime's FusedMatMul


def require_standard(config: LigerConfig) -> None:
    """Check that a model can be written in ONNX's own operators.

    Raises:
        UnsupportedModelError: A layer's body has others.
        EnvironmentMismatchError: The installed onnx does not know the opset.
    """
    if config.mixer not in STANDARD_MIXERS:
        raise UnsupportedModelError(
            f"The mixer {config.mixer} is written in operators of ONNX Runtime.",
            f"Omit --opset {STANDARD_OPSET}, or linearize with --mixer gla or hgrn2.",
        )
    if onnx.defs.onnx_opset_version() < STANDARD_OPSET:
        raise EnvironmentMismatchError(
            f"The installed onnx {onnx.__version__} has no opset {STANDARD_OPSET}.", "Run: pip install 'onnx>=1.23'"
        )


def lower_to_standard(model: ir.Model) -> None:
    """Rewrite a stock graph whose weights are attached.

    Raises:
        UnsupportedModelError: A weight cannot be stored as ONNX stores integers.
    """
    lower_to_webgpu(model)
    lower_to_wasm(model)
    for node in list(model.graph):
        if node.domain == MICROSOFT:
            _replace(model.graph, node)
    remove_unused(model.graph)
    for body in model.functions.values():
        for node in body:
            if node.op_type == "LinearAttention":
                node.domain = ""
    for imports in (model.opset_imports, *(body.opset_imports for body in model.functions.values())):
        imports.pop(MICROSOFT, None)
        imports[""] = STANDARD_OPSET


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    match node.op_type:
        case "FusedMatMul":
            transposed = ir.node("Transpose", [node.inputs[1]], {"perm": [1, 0]})
            nodes = [transposed, ir.node("MatMul", [node.inputs[0], transposed.outputs[0]], name=node.name)]
            old, new = [node.outputs[0]], [nodes[-1].outputs[0]]
        case "SkipSimplifiedLayerNormalization":
            total = ir.node("Add", node.inputs[:2])
            epsilon = {"epsilon": node.attributes.get_float("epsilon", 1e-5)}
            normal = ir.node("RMSNormalization", [total.outputs[0], node.inputs[2]], epsilon, name=node.name)
            nodes = [total, normal]
            old, new = [node.outputs[0], node.outputs[3]], [normal.outputs[0], total.outputs[0]]
        case "GatherBlockQuantized":
            table = dequantized_table(graph, node)
            nodes = [table, ir.node("Gather", [table.outputs[0], node.inputs[1]], name=node.name)]
            old, new = [node.outputs[0]], [nodes[-1].outputs[0]]
        case _:
            raise UnsupportedModelError(
                f"{node.name} has rows of integers that end within a byte, which ONNX cannot store.",
                "Choose another --block-size, or int8 for this weight.",
            )
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, old, new)
