"""Function bodies in ai.onnx operators only, for engines that have no others; a module per mixer.

Every size is fixed in the text, including the number of tokens: one token, or a multiple of ``CHUNK`` of which the last
tokens may be padding (position -1). The batch is one sequence.
"""

from collections.abc import Callable

from onnx import FunctionProto, parser

from liger_export.onnx_functions.portable.gla import gla
from liger_export.onnx_functions.portable.gsa import gsa
from liger_export.onnx_functions.portable.hgrn2 import hgrn2
from liger_export.onnx_functions.portable.lolcats import lolcats
from liger_export.onnx_functions.portable.sizes import CHUNK, Sizes
from liger_export.onnx_functions.portable.softmax import softmax
from liger_export.ops.signatures import SIGNATURES

__all__ = ["CHUNK", "PORTABLE_BODIES", "Sizes", "portable_function"]

PORTABLE_BODIES: dict[str, Callable[[Sizes], str]] = {
    "gla": gla,
    "gsa": gsa,
    "hgrn2": hgrn2,
    "lolcats": lolcats,
    "softmax": softmax,
}


def portable_function(mixer: str, name: str, sizes: Sizes) -> FunctionProto:
    """The body of a mixer's operator as a model-local function of the ``liger`` domain.

    Args:
        mixer: key of ``SIGNATURES``, which names inputs and outputs.
        name: name of the function; each set of sizes needs its own.
        sizes: the sizes to write it for.
    """
    signature = SIGNATURES[mixer]
    inputs, outputs = ", ".join(signature.inputs), ", ".join(signature.outputs)
    header = '<domain: "liger", opset_import: ["" : 23]>'
    return parser.parse_function(f"{header}\n{name} ({inputs}) => ({outputs})\n{{{PORTABLE_BODIES[mixer](sizes)}}}\n")
