"""From a Liger checkpoint to an ONNX graph with external weights."""

from liger_export.export.aliases import in_place_states
from liger_export.export.cuda import lower_to_cuda
from liger_export.export.fused import lower_to_fused, require_fusable
from liger_export.export.lower import LOWERINGS, lower
from liger_export.export.trace import ONNX_OPSET, trace
from liger_export.export.weights import WeightSource, attach_weights, weight_bytes

__all__ = [
    "LOWERINGS",
    "ONNX_OPSET",
    "WeightSource",
    "attach_weights",
    "in_place_states",
    "lower",
    "lower_to_cuda",
    "lower_to_fused",
    "require_fusable",
    "trace",
    "weight_bytes",
]
