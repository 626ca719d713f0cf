"""How each kernel is cut for a layer: its constants, its warps and its grid, the same for a launch and for a build."""

from dataclasses import dataclass

from liger_export.kernels.shapes import AttentionShape, block_of

__all__ = ["BLOCK", "CANDIDATES", "CHUNK", "Axis", "Plan", "chunk_plans", "pointwise_plans", "step_plan"]

BLOCK = 16  # tokens
CHUNK = 64  # tokens
CANDIDATES = 256  # largest logits that leave the GPU, a power of two
MIXER_NUMBERS = {"gla": 0, "hgrn2": 1}
PROGRAMS_WANTED = 128  # about one for each multiprocessor of a large GPU

# As measured on an H200: docs/performance.md.
STEP = {"num_warps": 8, "num_stages": 1, "maxnreg": 128}
PREPARE = {"num_warps": 4, "num_stages": 1}
PASS = {"num_warps": 2, "num_stages": 3}
WINDOW = {"num_warps": 4, "num_stages": 2}
OUTPUT = {"num_warps": 4, "num_stages": 2}
LEAVE = {"num_warps": 4, "num_stages": 1}
QUERIES, KEYS = 64, 32  # of a program of the window kernel, and taken at a time
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
        kernel: name of the function; it stands in a module of ``kernels``, ``build.MODULE_OF`` says which.
        constants: its constants.
        options: warps of a program, stages of its loops and, if bounded, registers of a thread.
        grid: its three axes.
    """

    kernel: str
    constants: dict[str, int | bool | str | float]
    options: dict[str, int]
    grid: tuple[Axis, Axis, Axis]

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
    }
    grid = (Axis(-(-shape.head_dim // width)), Axis(shape.groups), Axis(of="batch"))
    return Plan("step_kernel", constants, _registers_for(shape, STEP), grid)


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
    return {plan.kernel: plan for plan in plans}


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
        Plan("most_likely_kernel", {"BLOCK": 8192}, {"num_warps": 32, "num_stages": 1}, (rows, one, one)),
        Plan("count_kernel", {"BLOCK": 1024}, {"num_warps": 4, "num_stages": 1}, (rows, one, one)),
        Plan("list_kernel", {"BLOCK": 8192}, {"num_warps": 16, "num_stages": 1}, (Axis(1, "length", 8192), rows, one)),
        Plan("merge_kernel", {"LISTS": 32}, {"num_warps": 16, "num_stages": 1}, (Axis(1, "length", 32), rows, one)),
        Plan("order_kernel", {"BLOCK": CANDIDATES}, {"num_warps": 8, "num_stages": 1}, (one, rows, one)),
    )
    return {plan.kernel: plan for plan in plans}


def _sizes(shape: AttentionShape) -> dict[str, int]:
    return {"G": shape.groups, "R": shape.repeats, "D": shape.head_dim}


def _registers_for(shape: AttentionShape, options: dict[str, int]) -> dict[str, int]:
    """Two programs to a multiprocessor where their tiles are small enough for that."""
    if shape.head_dim <= 128 and shape.window <= 64 and shape.activation != "float32":
        return options
    return {name: value for name, value in options.items() if name != "maxnreg"}
