"""Triton types of the kernels' arguments, by argument name.

Argument names are part of the bundle format: the operator library passes arguments by name (``bundle``).
"""

from liger_export.kernels.plans import Plan
from liger_export.kernels.shapes import ACTIVATIONS, AttentionShape

__all__ = ["is_divisible_by_16", "type_of"]

FLOAT32 = (
    "cos",
    "sin",
    "state",
    "next_state",
    "features",
    "gates",
    "block_gates",
    "entering",
    "logits",
    "temperature",
    "sums",
    "next_sums",
    "candidates",
    "values",
    "vectors",
)
INTEGERS = {
    "position_ids": "*i64",
    "turns": "*i64",
    "counts": "*i32",
    "chosen": "*i64",
    "lists": "*i64",
    "next_lists": "*i64",
    "indices": "*i32",
    "words": "*i32",
    "zero_points": "*u8",
}
SCALARS = {
    **dict.fromkeys(("length", "padded_length", "width", "count", "parts", "in_features", "out_features"), "i32"),
    **dict.fromkeys(("has_norm", "has_zero_points", "has_bias", "has_residual"), "i32"),
    **dict.fromkeys(("gate_normalizer", "recurrent_weight", "epsilon"), "fp32"),
}
SCALAR_LOADS = ("position_ids", "counts", "chosen", "indices")  # read one element at a time, so need no alignment


def type_of(name: str, plan: Plan, shape: AttentionShape) -> str:
    """Return the Triton type of a plan's argument: "constexpr", a scalar type, or a pointer such as "*fp16"."""
    if name in plan.constants:
        return "constexpr"
    if name in plan.types:
        return plan.types[name]
    if name in SCALARS:
        return SCALARS[name]
    if name.endswith("stride"):
        return "i32"
    return INTEGERS.get(name) or ("*fp32" if name in FLOAT32 else f"*{ACTIVATIONS[shape.activation]}")


def is_divisible_by_16(name: str, kind: str, shape: AttentionShape) -> bool:
    """Tell whether the compiler may assume divisibility by 16: of pointers in bytes, of scalars in elements."""
    if kind == "constexpr":
        return False
    if name.endswith("stride"):
        return shape.head_dim % 16 == 0
    return name in ("padded_length", "in_features") or (kind.startswith("*") and name not in SCALAR_LOADS)
