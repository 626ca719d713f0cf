"""What the fused graph needs on a GPU beside attention: the gated SiLU, the likeliest token, and a count of tokens."""

import triton
import triton.language as tl

__all__ = ["count_kernel", "gated_silu_kernel", "most_likely_kernel"]


@triton.jit
def gated_silu_kernel(rows, gated, width, BLOCK: tl.constexpr):
    """silu(gate) * up (arXiv 2002.05202). Grid (ceil(width / BLOCK), N).

    Args:
        rows: [N, 2 * width], gate and up.
        gated: [N, width].
        width: of a row of the result.
        BLOCK: columns of a program.
    """
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1).to(tl.int64)
    is_column = columns < width
    gate = tl.load(rows + row * 2 * width + columns, mask=is_column, other=0.0).to(tl.float32)
    up = tl.load(rows + row * 2 * width + width + columns, mask=is_column, other=0.0).to(tl.float32)
    result = gate / (1 + tl.exp(-gate)) * up
    tl.store(gated + row * width + columns, result.to(gated.dtype.element_ty), mask=is_column)


@triton.jit
def most_likely_kernel(logits, chosen, width, BLOCK: tl.constexpr):
    """Index of the first largest logit of each row. Grid (N,).

    Args:
        logits: float32 [N, width].
        chosen: int64 [N].
        width: tokens of the vocabulary.
        BLOCK: logits compared at a time.
    """
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    index = lanes
    for start in range(0, width, BLOCK):
        values = tl.load(logits + row * width + start + lanes, mask=start + lanes < width, other=float("-inf"))
        index = tl.where(values > best, start + lanes, index)
        best = tl.where(values > best, values, best)
    largest = tl.max(best, axis=0)
    first = tl.min(tl.where(best == largest, index, width), axis=0)
    tl.store(chosen + row, tl.where(first < width, first, 0).to(tl.int64))


@triton.jit
def count_kernel(position_ids, counts, length, BLOCK: tl.constexpr):
    """Tokens of each row, padding not counted. Grid (B,).

    Args:
        position_ids: int64 [B, length], -1 at padding.
        counts: int32 [B].
        length: T.
        BLOCK: positions counted at a time.
    """
    sequence = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    seen = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, length, BLOCK):
        is_inside = start + lanes < length
        positions = tl.load(position_ids + sequence * length + start + lanes, mask=is_inside, other=-1)
        seen += (positions >= 0).to(tl.int32)
    tl.store(counts + sequence, tl.sum(seen, axis=0))
