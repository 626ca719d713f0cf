"""Launch plans of the kernels that only PyTorch launches: scans over chunks, and gradients."""

from functools import cache

from liger_export.kernels.plans import (
    BLOCK,
    CHUNK,
    KEYS,
    MIXER_NUMBERS,
    PREPARE,
    QUERIES,
    WINDOW,
    Axis,
    Constants,
    Plan,
    sizes_of,
)
from liger_export.kernels.shapes import AttentionShape, block_of

__all__ = ["SCANNED_CHUNKS", "backward_plans", "score_plan", "state_plans"]

# Measured on an H200: benchmarks/gradients.py.
SCANNED_CHUNKS = 8  # chunks of a sequence from which a scan over them is faster than ``pass_kernel``
STATES = {"num_warps": 4, "num_stages": 2}
SCAN = {"num_warps": 4, "num_stages": 1}
GRADIENT = {"num_warps": 4, "num_stages": 1}
TILE = 64  # rows and columns of a state
PAIR_TILE = 32  # the same for ``pair_gradients_kernel``, whose sums would not fit into the registers otherwise
ELEMENTS = 256  # of a state, per program of the scan


@cache
def state_plans(shape: AttentionShape, chunks: int) -> dict[str, Plan]:
    """Plan the kernels that compute the state before each chunk. Returns plans by name, in execution order."""
    return {plan.name: plan for plan in (_states("chunk_states_kernel", shape), _scan(shape, chunks))}


@cache
def score_plan(shape: AttentionShape) -> Plan:
    """Plan the kernel that computes the scores of gsa's first pass."""
    return Plan("slot_scores_kernel", *_by_columns(shape, PAIR_TILE, _query_heads(shape)))


@cache
def backward_plans(shape: AttentionShape, chunks: int) -> dict[str, Plan]:
    """Plan the kernels of the gradient that follow ``prepare_kernel``. Returns plans by name.

    Args:
        shape: shape of the layer's attention.
        chunks: of a sequence.
    """
    sizes, block_d = sizes_of(shape), block_of(shape.head_dim)
    kv_heads, query_heads, sequences = Axis(shape.num_key_value_heads), _query_heads(shape), Axis(of="batch")
    blocks, padded_blocks = Axis(1, "length", BLOCK), Axis(CHUNK // BLOCK, "length", CHUNK)
    rows: Constants = {**sizes, "BLOCK_D": block_d}
    plans = (
        Plan("prepare_queries_kernel", rows, PREPARE, (padded_blocks, query_heads, sequences)),
        *state_plans(shape, chunks).values(),
        _states("chunk_state_gradients_kernel", shape, R=shape.num_queries_per_kv),
        _scan(shape, chunks, is_reverse=True),
        *_window(shape),
        Plan("pair_gradients_kernel", *_by_columns(shape, PAIR_TILE, query_heads, ADDS=False)),
        _products(shape),
        Plan("value_gradients_kernel", *_by_columns(shape, TILE, kv_heads)),
        Plan("finish_queries_kernel", rows, PREPARE, (blocks, query_heads, sequences)),
        Plan(
            "finish_keys_kernel",
            {"MIXER": MIXER_NUMBERS[shape.mixer], **rows},
            PREPARE,
            (blocks, kv_heads, sequences),
        ),
        score_plan(shape),
        Plan("score_gradients_kernel", rows, PREPARE, (padded_blocks, query_heads, sequences)),
        Plan("pair_gradients_kernel", *_by_columns(shape, PAIR_TILE, query_heads, ADDS=True), "_added"),
        Plan("slot_query_gradients_kernel", *_by_columns(shape, TILE, query_heads)),
    )
    return {plan.name: plan for plan in plans}


def _query_heads(shape: AttentionShape) -> Axis:
    return Axis(shape.num_key_value_heads * shape.num_queries_per_kv)


def _states(kernel: str, shape: AttentionShape, **constants: int) -> Plan:
    """Plan a kernel that computes what each chunk adds to the state or to its gradient."""
    size = min(block_of(shape.head_dim), TILE)
    tile: Constants = {"BLOCK_K": size, "BLOCK_V": size, "PRECISION": shape.precision}
    tiles = -(-shape.head_dim // size)
    grid = (Axis(tiles**2, "length", CHUNK), Axis(shape.num_key_value_heads), Axis(of="batch"))
    return Plan(kernel, {"G": shape.num_key_value_heads, "D": shape.head_dim, **constants, **tile}, STATES, grid)


def _scan(shape: AttentionShape, chunks: int, *, is_reverse: bool = False) -> Plan:
    """Plan the scan over the chunks of a sequence, with no more of them per iteration than there are states."""
    constants: Constants = {"G": shape.num_key_value_heads, "D": shape.head_dim}
    constants |= {"BLOCK": ELEMENTS, "CHUNKS": min(block_of(chunks + 1, 2), 16), "REVERSE": is_reverse}
    grid = (Axis(-(-(shape.head_dim**2) // ELEMENTS)), Axis(shape.num_key_value_heads), Axis(of="batch"))
    return Plan("scan_kernel", constants, SCAN, grid, "_reverse" if is_reverse else "")


def _window(shape: AttentionShape) -> tuple[Plan, Plan]:
    """Plan the kernels of the window's gradients."""
    block_d = block_of(shape.head_dim)
    width = block_d * (2 if shape.activation == "float32" else 1)
    # Wide rows take much shared memory: load fewer of them per iteration, and do not prefetch.
    rows, keys = min(QUERIES, max(8192 // width, 16)), min(KEYS, max(8192 // width, 16))
    options = {**WINDOW, "num_stages": 1} if width > 128 else WINDOW
    sizes = {**sizes_of(shape), "W": shape.window, "BLOCK_D": block_d, "BLOCK_M": rows, "BLOCK_N": keys}
    constants: Constants = {**sizes, "PRECISION": shape.precision}
    kv_heads, sequences = Axis(shape.num_key_value_heads), Axis(of="batch")
    query_heads = _query_heads(shape)
    return (
        Plan("window_query_gradient_kernel", constants, options, (Axis(1, "length", rows), query_heads, sequences)),
        Plan("window_key_gradient_kernel", constants, options, (Axis(1, "length", keys), kv_heads, sequences)),
    )


def _products(shape: AttentionShape) -> Plan:
    """Plan the kernel that computes the products of features within chunks."""
    constants: Constants = {**sizes_of(shape), "BLOCK_K": min(block_of(shape.head_dim), TILE)}
    constants["PRECISION"] = shape.precision
    grid = (Axis(1, "length", CHUNK), _query_heads(shape), Axis(of="batch"))
    return Plan("pair_products_kernel", constants, GRADIENT, grid)


def _by_columns(
    shape: AttentionShape, size: int, heads: Axis, **flags: bool
) -> tuple[Constants, dict[str, int], tuple[Axis, Axis, Axis]]:
    """Return constants, options and grid of a kernel with one program for each head, chunk and tile of columns."""
    size = min(block_of(shape.head_dim), size)
    constants: Constants = {**sizes_of(shape), **flags, "BLOCK_K": size, "BLOCK_V": size, "PRECISION": shape.precision}
    return constants, GRADIENT, (Axis(-(-shape.head_dim // size), "length", CHUNK), heads, Axis(of="batch"))
