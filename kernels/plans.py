"""How each kernel is cut for a layer: its constants, its warps and its grid, the same for a launch and for a build."""

from dataclasses import dataclass, field

from liger_export.kernels.shapes import AttentionShape, LinearShape, block_of

__all__ = [
    "BLOCK",
    "CANDIDATES",
    "CHUNK",
    "MANY_COLUMNS",
    "Axis",
    "Plan",
    "chunk_plans",
    "dequantize_plan",
    "linear_plan",
    "many_step_plan",
    "pointwise_plans",
    "step_plan",
]

BLOCK = 16  # tokens
CHUNK = 64  # tokens
CANDIDATES = 256  # largest logits that leave the GPU, a power of two
MIXER_NUMBERS = {"gla": 0, "hgrn2": 1}
MANY_COLUMNS = 16384  # of all states of a batch: from here on a program takes a whole head. Also in plugins/ort
PROGRAMS_WANTED = 128  # about one for each multiprocessor of a large GPU
MULTIPROCESSORS = 132  # of an H100 or H200

# As measured on an H200: docs/performance.md.
STEP = {"num_warps": 8, "num_stages": 1, "maxnreg": 128}
NARROW_STEP = {**STEP, "num_warps": 4}  # of heads of at most 64
MANY_STEP = {"num_stages": 1, "maxnreg": 128}
PREPARE = {"num_warps": 4, "num_stages": 1}
PASS = {"num_warps": 2, "num_stages": 3}
WINDOW = {"num_warps": 4, "num_stages": 2}
OUTPUT = {"num_warps": 4, "num_stages": 2}
LEAVE = {"num_warps": 4, "num_stages": 1}
QUERIES, KEYS = 64, 32  # of a program of the window kernel, and taken at a time
PART = 2048  # logits of a program that looks for the largest
ROWS = 32  # of the window moved by a program


@dataclass(frozen=True, slots=True)
class Axis:
    """Programs along one axis of a grid: ``times * ceil(size / per)``, size being 1, the batch or T.

    Attributes:
        times: a factor.
        of: "one", "batch" or "length".
        per: a divisor.
    """

    times: int = 1
    of: str = "one"
    per: int = 1

    def count(self, batch: int, length: int) -> int:
        """Programs for a call."""
        return self.times * -(-{"one": 1, "batch": batch, "length": length}[self.of] // self.per)


@dataclass(frozen=True, slots=True)
class Plan:
    """One kernel, ready to be launched or compiled.

    Attributes:
        kernel: name of the function; its module is one of ``build.KERNEL_MODULES``.
        constants: its constants.
        options: warps of a program, stages of its loops and, if bounded, registers of a thread.
        grid: its three axes.
        variant: what tells it from other plans of the same function.
        types: of arguments that are not of the type that their name has elsewhere.
    """

    kernel: str
    constants: dict[str, int | bool | str | float]
    options: dict[str, int]
    grid: tuple[Axis, Axis, Axis]
    variant: str = ""
    types: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of this plan among all of a build."""
        return self.kernel + self.variant

    def programs(self, batch: int, length: int = 1) -> tuple[int, int, int]:
        """The grid of a call."""
        first, second, third = (axis.count(batch, length) for axis in self.grid)
        return first, second, third


def step_plan(shape: AttentionShape, batch: int, *, ring: bool) -> Plan:
    """The step kernel: the fewer heads there are in the batch, the fewer columns a program takes, down to 16."""
    width = block_of(shape.head_dim) // 2
    while width > 16 and batch * shape.groups * -(-shape.head_dim // width) < PROGRAMS_WANTED:
        width //= 2
    constants: dict[str, int | bool | str | float] = {
        "MIXER": MIXER_NUMBERS[shape.mixer],
        **_sizes(shape),
        "W": shape.window,
        "BLOCK_R": block_of(shape.repeats, 8),
        "BLOCK_D": block_of(shape.head_dim),
        "BLOCK_W": block_of(shape.window),
        "BLOCK_V": width,
        "RING": ring,
        "PRECISION": shape.precision,
        "PDL": False,
        "READS_AHEAD": True,
    }
    grid = (Axis(-(-shape.head_dim // width)), Axis(shape.groups), Axis(of="batch"))
    options = STEP if shape.head_dim > 64 or shape.activation == "float32" else NARROW_STEP
    return Plan("step_kernel", constants, _registers_for(shape, options), grid)


def many_step_plan(shape: AttentionShape, *, ring: bool) -> Plan | None:
    """The step kernel of a batch of at least ``MANY_COLUMNS``; None where it does not take the shape."""
    if shape.activation == "float32" or shape.head_dim not in (64, 128) or shape.repeats > 8 or shape.window > 64:
        return None
    constants: dict[str, int | bool | str | float] = {
        "MIXER": MIXER_NUMBERS[shape.mixer],
        **_sizes(shape),
        "W": shape.window,
        "BLOCK_R": block_of(shape.repeats, 1),
        "BLOCK_W": block_of(shape.window, shape.head_dim // 2),
        "ROWS": 16,
        "RING": ring,
        "PDL": False,
    }
    options = {**MANY_STEP, "num_warps": shape.head_dim // 32}
    return Plan("many_step_kernel", constants, options, (Axis(shape.groups), Axis(of="batch"), Axis()))


def chunk_plans(shape: AttentionShape) -> dict[str, Plan]:
    """The chunk kernels by name, in the order in which they run."""
    sizes, head_dim, block_d = _sizes(shape), shape.head_dim, block_of(shape.head_dim)
    groups, sequences = Axis(shape.groups), Axis(of="batch")
    key_only = {name: sizes[name] for name in ("G", "D")}
    precision = {"PRECISION": shape.precision}
    rows, columns = (16, 32) if shape.activation != "float32" else (32, 32)
    members = min(block_of(shape.repeats, 1), 4 if block_d <= 128 and shape.activation != "float32" else 2)
    # What a tile of rows takes of shared memory: wide rows come fewer at a time and are not fetched ahead.
    is_wide = block_d * (2 if shape.activation == "float32" else 1) > 128
    queries = QUERIES // 2 if is_wide else QUERIES
    window, output = ({**options, "num_stages": 1} if is_wide else options for options in (WINDOW, OUTPUT))
    plans = (
        Plan(
            "prepare_kernel",
            {"MIXER": MIXER_NUMBERS[shape.mixer], **key_only, "BLOCK_D": block_d},
            PREPARE,
            (Axis(CHUNK // BLOCK, "length", CHUNK), groups, sequences),
        ),
        Plan(
            "pass_kernel",
            {**key_only, "BLOCK_K": rows, "BLOCK_V": columns, **precision},
            PASS,
            (Axis(-(-head_dim // rows) * -(-head_dim // columns)), groups, sequences),
        ),
        Plan(
            "window_kernel",
            {**sizes, "W": shape.window, "BLOCK_D": block_d, "BLOCK_M": queries, "BLOCK_N": KEYS, **precision},
            window,
            (Axis(1, "length", queries), Axis(shape.groups * shape.repeats), sequences),
        ),
        Plan(
            "output_kernel",
            {**sizes, "HEADS": members, "BLOCK_D": block_d, "BLOCK_V": 32, **precision},
            output,
            (Axis(1, "length", BLOCK), Axis(shape.groups * -(-shape.repeats // members)), sequences),
        ),
        Plan(
            "leave_kernel",
            {**key_only, "W": shape.window, "BLOCK_D": block_d, "BLOCK_W": ROWS},
            LEAVE,
            (Axis(-(-shape.window // ROWS)), groups, sequences),
        ),
    )
    return {plan.name: plan for plan in plans}


def pointwise_plans() -> dict[str, Plan]:
    """The kernels beside attention, by name. Their rows are the batch of a grid, a row's width its length."""
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
        Plan("most_likely_kernel", {"BLOCK": 128, "PDL": False}, {"num_warps": 1, "num_stages": 1}, (rows, one, one)),
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
        Plan("order_kernel", {"BLOCK": CANDIDATES, "PDL": False}, {"num_warps": 8, "num_stages": 1}, (one, rows, one)),
    )
    return {plan.name: plan for plan in plans}


def linear_plan(shape: LinearShape) -> Plan:
    """The kernel of a linear layer of few tokens: rows of a program, columns at a time, and warps.

    Its grid's batch are the tokens, its length the rows of the result.
    """
    constants: dict[str, int | bool | str | float] = {"GATED": shape.is_gated, "PDL": False}
    kernel, variant = "linear_kernel", ""
    if shape.bits < 16:
        kernel, variant = "integer_linear_kernel", f"_{shape.bits}_{shape.block_size}"
        constants |= {"BITS": shape.bits, "GROUP": shape.block_size, "NATIVE": True}
    rows, block_n, warps, registers = _cut(shape)
    block_k = block_of(shape.columns)
    constants |= {"BLOCK_N": block_n, "BLOCK_K": block_k, "EVEN": block_k == shape.columns}
    variant += f"_{rows}_{block_n}_{block_k}_{warps}" + "_uneven" * (block_k != shape.columns)
    variant += "_gated" * shape.is_gated + "_float" * shape.to_float
    types = {"output": "*fp32"} if shape.to_float else {}
    options = {"num_warps": warps, "num_stages": 1} | ({"maxnreg": registers} if registers else {})
    return Plan(kernel, constants, options, (Axis(1, "length", rows), Axis(of="batch"), Axis()), variant, types)


def _cut(shape: LinearShape) -> tuple[int, int, int, int]:
    """Rows of a program, rows at a time, warps, and registers if bounded; as measured: benchmarks/linears.py.

    A layer has about as many programs as a large GPU's multiprocessors hold at once, or several times as many. Of
    layers of more than 16,384 columns, which were not timed, the cut is the one that spills least.
    """
    block_k = block_of(shape.columns)
    if shape.bits == 16:
        block_n = 4 if block_k <= 2048 else 2 if block_k <= 16384 else 1
        warps = 4 if block_k <= 4096 else 8 if block_k <= 16384 else 16
        held = 4 if block_k <= 4096 else max(16384 // block_k, 1)
        least, most = 8, 20 if warps == 4 else 32
        registers = 0 if 2048 < block_k <= 16384 else 128  # unbounded, fewer programs are held
    else:
        words, registers = block_k * shape.bits // 32, 128
        block_n = (8 if shape.is_gated else 16) if words <= 256 else 4 if words <= 2048 else 2
        warps = min(max(words // 128, 4), 16)
        held, least, most = 16 // warps, block_n, 128
    rows = -(-shape.rows // (MULTIPROCESSORS * held * block_n)) * block_n
    return min(max(rows, least), most), block_n, warps, registers


def dequantize_plan(bits: int, block_size: int) -> Plan:
    """The kernel that makes numbers of integers, for products of many tokens; its batch are rows."""
    constants: dict[str, int | bool | str | float] = {"BITS": bits, "GROUP": block_size, "BLOCK": 1024}
    grid = (Axis(1, "length", 1024), Axis(of="batch"), Axis())
    return Plan("dequantize_kernel", constants, {"num_warps": 4, "num_stages": 1}, grid, f"_{bits}_{block_size}")


def _sizes(shape: AttentionShape) -> dict[str, int]:
    return {"G": shape.groups, "R": shape.repeats, "D": shape.head_dim}


def _registers_for(shape: AttentionShape, options: dict[str, int]) -> dict[str, int]:
    """Two programs to a multiprocessor where their tiles are small enough for that."""
    if shape.head_dim <= 128 and shape.window <= 64 and shape.activation != "float32":
        return options
    return {name: value for name, value in options.items() if name != "maxnreg"}
