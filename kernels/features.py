"""Feature maps, gates and rotary embedding, shared by all attention kernels. Results are float32.

Kernels identify a mixer by its number in ``plans.MIXER_NUMBERS``.
"""

import triton
import triton.language as tl

from liger_export.kernels.plans import MIXER_NUMBERS

__all__ = [
    "GLA",
    "GSA",
    "begins_document",
    "finite",
    "forgotten",
    "key_features",
    "log_gates",
    "rotated",
    "softmax_gradient",
    "softmax_rows",
]

GLA = tl.constexpr(MIXER_NUMBERS["gla"])
GSA = tl.constexpr(MIXER_NUMBERS["gsa"])


@triton.jit
def softmax_rows(rows, real):
    """Softmax along the last axis of [N, D]. Columns where ``real`` is false become 0."""
    rows = tl.where(real, rows, float("-inf"))
    powers = tl.exp(rows - tl.max(rows, axis=1)[:, None])
    return powers / tl.sum(powers, axis=1)[:, None]


@triton.jit
def softmax_gradient(softmax, gradient):
    """Gradient of the softmax's input [N, D] from that of ``softmax``, row by row."""
    return softmax * (gradient - tl.sum(softmax * gradient, axis=1)[:, None])


@triton.jit
def key_features(keys, real, MIXER: tl.constexpr):
    """Key features [N, D]: softmax (arXiv 2503.01496, eq. 5) or 1 - sigmoid (arXiv 2404.07904, eq. 7)."""
    if MIXER == GLA:
        features = softmax_rows(keys, real)
    else:
        features = tl.where(real, 1 / (1 + tl.exp(keys)), 0.0)
    return features


@triton.jit
def log_gates(keys, real, gate_normalizer):
    """Log decays logsigmoid(key) / normalizer, at most 0. Columns where ``real`` is false become 0."""
    # The exponent is never positive, so that the strongest gates stay exact.
    gates = tl.minimum(keys, 0.0) - tl.log(1 + tl.exp(-tl.abs(keys)))
    return tl.where(real, gates / gate_normalizer, 0.0)


@triton.jit
def forgotten(log_decays):
    """1 - exp of log decays, without cancellation where they are small: what gated slot attention writes to a slot."""
    series = 1 + log_decays / 9
    for term in tl.static_range(8, 1, -1):
        series = 1 + series * log_decays / term
    return tl.where(log_decays > -0.5, -log_decays * series, 1 - tl.exp(log_decays))


@triton.jit
def finite(log_decays):
    """Replace minus infinity by a number whose exponential is 0 too, but which is 0 times 0."""
    return tl.maximum(log_decays, -1e4)


@triton.jit
def begins_document(positions, tokens, real):
    """Tell which tokens [N, 1] begin a document that is not the row's first: position 0 after the first column.

    Args:
        positions: pointer to a sequence's position_ids [T].
        tokens: [N, 1], counted from the first token of this call.
        real: [N, 1], tokens that are not padding.
    """
    return real & (tokens > 0) & (tl.load(positions + tokens, mask=real, other=1) == 0)


@triton.jit
def rotated(rows, partners, cos, sin, dims, D: tl.constexpr):
    """Rotary embedding in half-split order: dimension d is rotated with its partner, d + D / 2 or d - D / 2.

    Args:
        rows: [N, BLOCK_D].
        partners: [N, BLOCK_D], the partners' values in the same rows.
        cos, sin: [N or 1, BLOCK_D], of the angle of dimension d modulo D / 2.
        dims: [1, BLOCK_D], 0 to BLOCK_D - 1.
        D: head size.
    """
    signed = tl.where(dims < D // 2, -sin, sin)
    return rows.to(tl.float32) * cos + partners.to(tl.float32) * signed
