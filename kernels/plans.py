"""Launch plans: constants, warps and grid of each kernel for a layer, shared by launches from PyTorch and by builds."""

from dataclasses import dataclass, field
from functools import cache

from liger_export.errors import KernelError
from liger_export.kernels.shapes import KERNEL_MIXERS, MAX_STEP_WINDOW, AttentionShape, LinearShape, block_of

__all__ = [
    "BATCHED_COLUMNS",
    "BLOCK",
    "BUNDLE_NAMES",
    "CHUNK",
    "HALVINGS",
    "MIXER_NUMBERS",
    "MULTIPROCESSORS",
    "TOP_LOGITS",
    "Axis",
    "Constants",
    "Plan",
    "batched_step_plan",
    "chunkwise_plans",
    "dequantize_plan",
    "linear_plan",
    "pointwise_plans",
    "sizes_of",
    "step_plan",
]

# plugins/ort/cuda_operators.cpp repeats BLOCK, CHUNK, PART and BATCHED_COLUMNS, and top_logits.h TOP_LOGITS.
BLOCK = 16  # tokens
CHUNK = 64  # tokens
HALVINGS = CHUNK.bit_length() - 1  # of a chunk, down to one token
TOP_LOGITS = 256  # largest logits that leave the GPU, a power of two
BATCHED_COLUMNS = 16384  # columns of all states in a batch from which the batched step kernel is used
MIXER_NUMBERS = {"gla": 0, "hgrn2": 1, "gsa": 2}
MIN_PROGRAMS = 128  # about one per multiprocessor of a large GPU
MULTIPROCESSORS = 132  # of an H100 or H200

# Names in builds and bundles of kernels whose function has another name. The operator library and packages written
# earlier use these.
BUNDLE_NAMES = {"batched_step_kernel": "many_step_kernel", "argmax_kernel": "most_likely_kernel"}

# Measured on an H200: docs/results/performance.md.
STEP = {"num_warps": 8, "num_stages": 1, "maxnreg": 128}
NARROW_STEP = {**STEP, "num_warps": 4}  # for head sizes up to 64
BATCHED_STEP = {"num_stages": 1, "maxnreg": 128}
PREPARE = {"num_warps": 4, "num_stages": 1}
PASS = {"num_warps": 2, "num_stages": 3}
WINDOW = {"num_warps": 4, "num_stages": 2}
OUTPUT = {"num_warps": 4, "num_stages": 2}
LEAVE = {"num_warps": 4, "num_stages": 1}
QUERIES, KEYS = 64, 32  # queries per program of the window kernel, and keys per iteration
PART = 2048  # logits per program in the first pass of argmax
ROWS = 32  # window rows per program of the leave kernel


Constants = dict[str, int | bool | str | float]


@dataclass(frozen=True, slots=True)
class Axis:
    """Number of programs along one axis of a grid: ``times * ceil(size / per)``.

    Attributes:
        times: factor.
        of: the size: "one" (1), "batch" or "length" (T).
        per: divisor.
    """

    times: int = 1
    of: str = "one"
    per: int = 1

    def count(self, batch: int, length: int) -> int:
        """Return the number of programs of a call."""
        return self.times * -(-{"one": 1, "batch": batch, "length": length}[self.of] // self.per)


@dataclass(frozen=True, slots=True)
class Plan:
    """One kernel, ready to be launched or compiled.

    Attributes:
        kernel: name of the Triton function, which is in one of ``compiler.KERNEL_MODULES``.
        constants: values of its ``constexpr`` arguments.
        options: Triton's options: warps per program, pipeline stages and, if bounded, registers per thread.
        grid: the three axes of its grid.
        variant: suffix that distinguishes plans of the same function.
        types: Triton types of arguments that differ from the usual type of their name (``arguments``).
    """

    kernel: str
    constants: Constants
    options: dict[str, int]
    grid: tuple[Axis, Axis, Axis]
    variant: str = ""
    types: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name in builds, bundles and graphs, unique in a build."""
        return BUNDLE_NAMES.get(self.kernel, self.kernel) + self.variant

    def programs(self, batch: int, length: int = 1) -> tuple[int, int, int]:
        """Return the grid of a call."""
        first, second, third = (axis.count(batch, length) for axis in self.grid)
        return first, second, third


def step_plan(shape: AttentionShape, batch: int, *, ring: bool) -> Plan:
    """Plan the step kernel. The fewer heads in the batch, the fewer columns per program, down to 16.

    Raises:
        KernelError: the window is too large, or the mixer has no step kernel.
    """
    if shape.mixer not in KERNEL_MIXERS:
        raise KernelError(
            f"There is no step kernel for the mixer {shape.mixer}; there is for {', '.join(KERNEL_MIXERS)}.",
            "Run single tokens of this layer with the PyTorch implementation of its operator.",
        )
    if shape.window > MAX_STEP_WINDOW:
        raise KernelError(
            f"The step kernel does not support a window of {shape.window} keys; it supports 1 to {MAX_STEP_WINDOW}.",
            "Use the chunkwise kernels in PyTorch, or run this layer with the PyTorch implementation of its operator.",
        )
    width = block_of(shape.head_dim) // 2
    while width > 16 and batch * shape.num_key_value_heads * -(-shape.head_dim // width) < MIN_PROGRAMS:
        width //= 2
    constants: Constants = {
        "MIXER": MIXER_NUMBERS[shape.mixer],
        **sizes_of(shape),
        "W": shape.window,
        "BLOCK_R": block_of(shape.num_queries_per_kv, 8),
        "BLOCK_D": block_of(shape.head_dim),
        "BLOCK_W": block_of(shape.window),
        "BLOCK_V": width,
        "RING": ring,
        "PRECISION": shape.precision,
        "PDL": False,
        "READS_AHEAD": True,
    }
    grid = (Axis(-(-shape.head_dim // width)), Axis(shape.num_key_value_heads), Axis(of="batch"))
    options = STEP if shape.head_dim > 64 or shape.activation == "float32" else NARROW_STEP
    return Plan("step_kernel", constants, _registers_for(shape, options), grid)


def batched_step_plan(shape: AttentionShape, *, ring: bool) -> Plan | None:
    """Plan the batched step kernel, for batches of at least ``BATCHED_COLUMNS``. None if the shape is not supported."""
    if shape.mixer not in KERNEL_MIXERS or shape.activation == "float32" or shape.head_dim not in (64, 128):
        return None
    if shape.num_queries_per_kv > 8 or shape.window > 64:
        return None
    constants: Constants = {
        "MIXER": MIXER_NUMBERS[shape.mixer],
        **sizes_of(shape),
        "W": shape.window,
        "BLOCK_R": block_of(shape.num_queries_per_kv, 1),
        "BLOCK_W": block_of(shape.window, shape.head_dim // 2),
        "ROWS": 16,
        "RING": ring,
        "PDL": False,
    }
    options = {**BATCHED_STEP, "num_warps": shape.head_dim // 32}
    grid = (Axis(shape.num_key_value_heads), Axis(of="batch"), Axis())
    return Plan("batched_step_kernel", constants, options, grid)


@cache
def chunkwise_plans(shape: AttentionShape) -> dict[str, Plan]:
    """Plan the kernels for several tokens. Returns plans by function name, in execution order."""
    sizes, head_dim, block_d = sizes_of(shape), shape.head_dim, block_of(shape.head_dim)
    kv_heads, sequences = Axis(shape.num_key_value_heads), Axis(of="batch")
    key_only = {name: sizes[name] for name in ("G", "D")}
    precision = {"PRECISION": shape.precision}
    rows, columns = (16, 32) if shape.activation != "float32" else (32, 32)
    most_heads = 4 if block_d <= 128 and shape.activation != "float32" else 2
    heads_per_program = min(block_of(shape.num_queries_per_kv, 1), most_heads)
    programs = shape.num_key_value_heads * -(-shape.num_queries_per_kv // heads_per_program)
    # Wide rows take much shared memory: load fewer of them per iteration, and do not prefetch.
    is_wide = block_d * (2 if shape.activation == "float32" else 1) > 128
    queries = QUERIES // 2 if is_wide else QUERIES
    window, output = ({**options, "num_stages": 1} if is_wide else options for options in (WINDOW, OUTPUT))
    plans = (
        Plan(
            "prepare_kernel",
            {"MIXER": MIXER_NUMBERS[shape.mixer], **key_only, "BLOCK_D": block_d},
            PREPARE,
            (Axis(CHUNK // BLOCK, "length", CHUNK), kv_heads, sequences),
        ),
        Plan(
            "pass_kernel",
            {**key_only, "BLOCK_K": rows, "BLOCK_V": columns, **precision},
            PASS,
            (Axis(-(-head_dim // rows) * -(-head_dim // columns)), kv_heads, sequences),
        ),
        Plan(
            "window_kernel",
            {**sizes, "W": shape.window, "BLOCK_D": block_d, "BLOCK_M": queries, "BLOCK_N": KEYS, **precision},
            window,
            (Axis(1, "length", queries), Axis(shape.num_key_value_heads * shape.num_queries_per_kv), sequences),
        ),
        Plan(
            "output_kernel",
            {**sizes, "HEADS": heads_per_program, "BLOCK_D": block_d, "BLOCK_V": 32, **precision},
            output,
            (Axis(1, "length", BLOCK), Axis(programs), sequences),
        ),
        Plan(
            "leave_kernel",
            {**key_only, "W": shape.window, "BLOCK_D": block_d, "BLOCK_W": ROWS},
            LEAVE,
            (Axis(-(-shape.window // ROWS)), kv_heads, sequences),
        ),
    )
    return {plan.kernel: plan for plan in plans}


def pointwise_plans() -> dict[str, Plan]:
    """Plan the kernels outside attention and linear layers. Returns plans by function name.

    In their grids, "batch" is the number of rows and "length" the width of a row.
    """
    rows, one = Axis(of="batch"), Axis()
    plans = (
        Plan(
            "gated_silu_kernel",
            {"BLOCK": 1024},
            {"num_warps": 4, "num_stages": 1},
            (Axis(1, "length", 1024), rows, one),
        ),
        Plan(
            "best_of_parts_kernel",
            {"BLOCK": PART, "PDL": False},
            {"num_warps": 4, "num_stages": 1},
            (Axis(1, "length", PART), rows, one),
        ),
        Plan("argmax_kernel", {"BLOCK": 128, "PDL": False}, {"num_warps": 1, "num_stages": 1}, (rows, one, one)),
        Plan("count_kernel", {"BLOCK": 1024}, {"num_warps": 4, "num_stages": 1}, (rows, one, one)),
        Plan("angles_kernel", {"BLOCK": 128, "PDL": False}, {"num_warps": 1, "num_stages": 1}, (rows, one, one)),
        Plan("rms_norm_kernel", {"BLOCK": 2048}, {"num_warps": 8, "num_stages": 1}, (rows, one, one)),
        Plan("begin_kernel", {"BLOCK": 1024}, {"num_warps": 4, "num_stages": 1}, (Axis(1, "length", 1024), rows, one)),
        Plan(
            "list_kernel",
            {"BLOCK": 8192, "PDL": False},
            {"num_warps": 16, "num_stages": 1},
            (Axis(1, "length", 8192), rows, one),
        ),
        Plan(
            "merge_kernel",
            {"LISTS": 32, "PDL": False},
            {"num_warps": 16, "num_stages": 1},
            (Axis(1, "length", 32), rows, one),
        ),
        Plan("order_kernel", {"BLOCK": TOP_LOGITS, "PDL": False}, {"num_warps": 8, "num_stages": 1}, (one, rows, one)),
    )
    return {plan.kernel: plan for plan in plans}


def linear_plan(shape: LinearShape) -> Plan:
    """Plan the kernel of a linear layer for few tokens: rows per program, rows per iteration, and warps.

    In its grid, "batch" is the number of tokens and "length" the number of rows of the result.
    """
    constants: Constants = {"GATED": shape.is_gated, "PDL": False}
    kernel, variant = "linear_kernel", ""
    if shape.bits < 16:
        kernel, variant = "integer_linear_kernel", f"_{shape.bits}_{shape.block_size}"
        constants |= {"BITS": shape.bits, "GROUP": shape.block_size, "NATIVE": True}
    rows, block_n, warps, registers = _tiling(shape)
    block_k = block_of(shape.columns)
    constants |= {"BLOCK_N": block_n, "BLOCK_K": block_k, "EVEN": block_k == shape.columns}
    variant += f"_{rows}_{block_n}_{block_k}_{warps}" + "_uneven" * (block_k != shape.columns)
    variant += "_gated" * shape.is_gated + "_float" * shape.to_float
    types = {"output": "*fp32"} if shape.to_float else {}
    options = {"num_warps": warps, "num_stages": 1} | ({"maxnreg": registers} if registers else {})
    return Plan(kernel, constants, options, (Axis(1, "length", rows), Axis(of="batch"), Axis()), variant, types)


def _tiling(shape: LinearShape) -> tuple[int, int, int, int]:
    """Return rows per program, rows per iteration, warps, and registers per thread (0 if not bounded).

    The values were measured with benchmarks/linears.py. A layer has about as many programs as the multiprocessors of a
    large GPU hold at once, or a multiple of that. Layers of more than 16,384 columns were not timed: theirs is the
    tiling with the fewest register spills.
    """
    block_k = block_of(shape.columns)
    if shape.bits == 16:
        block_n = 4 if block_k <= 2048 else 2 if block_k <= 16384 else 1
        warps = 4 if block_k <= 4096 else 8 if block_k <= 16384 else 16
        held = 4 if block_k <= 4096 else max(16384 // block_k, 1)
        least, most = 8, 20 if warps == 4 else 32
        registers = 0 if 2048 < block_k <= 16384 else 128  # without a bound, fewer programs are resident
    else:
        words, registers = block_k * shape.bits // 32, 128
        block_n = (8 if shape.is_gated else 16) if words <= 256 else 4 if words <= 2048 else 2
        warps = min(max(words // 128, 4), 16)
        held, least, most = 16 // warps, block_n, 128
    rows = -(-shape.rows // (MULTIPROCESSORS * held * block_n)) * block_n
    return min(max(rows, least), most), block_n, warps, registers


def dequantize_plan(bits: int, block_size: int) -> Plan:
    """Plan the kernel that dequantizes a weight for products with many tokens. In its grid, "batch" counts rows."""
    constants: Constants = {"BITS": bits, "GROUP": block_size, "BLOCK": 1024}
    grid = (Axis(1, "length", 1024), Axis(of="batch"), Axis())
    return Plan("dequantize_kernel", constants, {"num_warps": 4, "num_stages": 1}, grid, f"_{bits}_{block_size}")


def sizes_of(shape: AttentionShape) -> dict[str, int]:
    """Return the sizes that kernels take as constants."""
    return {"G": shape.num_key_value_heads, "R": shape.num_queries_per_kv, "D": shape.head_dim}


def _registers_for(shape: AttentionShape, options: dict[str, int]) -> dict[str, int]:
    """Bound registers so that two programs fit on a multiprocessor, where their tiles are small enough."""
    if shape.head_dim <= 128 and shape.window <= 64 and shape.activation != "float32":
        return options
    return {name: value for name, value in options.items() if name != "maxnreg"}
