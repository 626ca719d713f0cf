"""Export a Liger model to an ONNX graph with external weights: trace, lower, stream the weights."""

from liger_export.export.aliases import in_place_states
from liger_export.export.cpu import fuse_for_cpu
from liger_export.export.cuda import lower_to_cuda
from liger_export.export.fused import lower_to_fused, require_fusable
from liger_export.export.genai import lower_to_genai, require_genai
from liger_export.export.standard import STANDARD_OPSET, lower_to_standard, require_standard
from liger_export.export.stock import lower_to_stock
from liger_export.export.trace import ONNX_OPSET, trace
from liger_export.export.web import lower_to_wasm, lower_to_webgpu
from liger_export.export.weights import WeightSource, attach_weights, weight_bytes

__all__ = [
    "ONNX_OPSET",
    "STANDARD_OPSET",
    "WeightSource",
    "attach_weights",
    "fuse_for_cpu",
    "in_place_states",
    "lower_to_cuda",
    "lower_to_fused",
    "lower_to_genai",
    "lower_to_standard",
    "lower_to_stock",
    "lower_to_wasm",
    "lower_to_webgpu",
    "require_fusable",
    "require_genai",
    "require_standard",
    "trace",
    "weight_bytes",
]
