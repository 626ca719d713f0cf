"""Bodies of the ``liger`` operators in ai.onnx operators alone, for engines that have no others.

Every size is fixed in the text, the number of tokens too: one token, or a whole number of sub-chunks, of which the last
tokens may be padding (position -1). Batches are of one sequence.
"""

from collections.abc import Callable

from onnx import FunctionProto, parser

from liger_export.onnx_functions.portable.lolcats import lolcats
from liger_export.onnx_functions.portable.mixers import gla, gsa, hgrn2, softmax
from liger_export.onnx_functions.portable.text import SUB_CHUNK, Sizes
from liger_export.ops.signatures import SIGNATURES

__all__ = ["PORTABLE_BODIES", "SUB_CHUNK", "Sizes", "portable_function"]

PORTABLE_BODIES: dict[str, Callable[[Sizes], str]] = {
    "gla": gla,
    "gsa": gsa,
    "hgrn2": hgrn2,
    "lolcats": lolcats,
    "softmax": softmax,
}


def portable_function(mixer: str, name: str, sizes: Sizes) -> FunctionProto:
    """A model-local function of the ``liger`` domain.

    Args:
        mixer: key of ``SIGNATURES``, which names its inputs and outputs.
        name: of the function; one for each set of sizes.
        sizes: what it is written for.
    """
    signature = SIGNATURES[mixer]
    inputs, outputs = ", ".join(signature.inputs), ", ".join(signature.outputs)
    header = '<domain: "liger", opset_import: ["" : 23]>'
    return parser.parse_function(f"{header}\n{name} ({inputs}) => ({outputs})\n{{{PORTABLE_BODIES[mixer](sizes)}}}\n")
