"""Layer shapes that the kernels support, checked before a kernel is compiled or launched."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from liger_export.config import LigerConfig
from liger_export.errors import KernelError

__all__ = [
    "ACTIVATIONS",
    "KERNEL_MIXERS",
    "MAX_COLUMNS",
    "MAX_STEP_WINDOW",
    "TRAINED_MIXERS",
    "AttentionShape",
    "LinearShape",
    "block_of",
]

KERNEL_MIXERS = ("gla", "hgrn2")
TRAINED_MIXERS = (*KERNEL_MIXERS, "gsa")  # with kernels for several tokens and for gradients, at least in PyTorch
ACTIVATIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}  # torch's name: Triton's name

MIN_HEAD_DIM, MAX_HEAD_DIM = 32, 256
MAX_WINDOW = 1024
MAX_STEP_WINDOW = 256  # of the step kernels, whose programs hold the window
MAX_QUERIES_PER_KV = 64
MAX_COLUMNS = 32768  # of a linear layer: one program keeps a token's activations in its registers

# Fields whose names in build descriptions on disk differ: the file format keeps the older names.
DESCRIPTION_NAMES = {"num_key_value_heads": "groups", "num_queries_per_kv": "repeats"}


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """The shape of one layer's attention, independent of batch size and sequence length.

    Attributes:
        mixer: one of ``TRAINED_MIXERS``, of which ``KERNEL_MIXERS`` have step kernels. For gsa, D is also the number of
            slots.
        num_key_value_heads: G.
        num_queries_per_kv: R, query heads per key/value head.
        head_dim: D, a multiple of 8 from 32 to 256.
        window: W, keys in the window, 1 to 1,024; the step kernels support up to 256.
        activation: dtype of projections, window and output, a key of ``ACTIVATIONS``. The state is float32.

    Raises:
        KernelError: no kernel supports this shape.
    """

    mixer: str
    num_key_value_heads: int
    num_queries_per_kv: int
    head_dim: int
    window: int
    activation: str

    @classmethod
    def of_model(cls, config: LigerConfig, activation: str) -> "AttentionShape":
        """Return the shape that all layers of a model share. Raises KernelError if no kernel supports it."""
        kv_heads = config.num_key_value_heads
        queries = config.num_attention_heads // kv_heads
        return cls(config.mixer, kv_heads, queries, config.head_dim, config.window_size, activation)

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "AttentionShape":
        """Read a shape from a build description. Raises KeyError if a field is missing."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: description[DESCRIPTION_NAMES.get(name, name)] for name in names})

    def __post_init__(self) -> None:
        for what, is_supported, supported in (
            (f"mixer {self.mixer}", self.mixer in TRAINED_MIXERS, f"mixers {', '.join(TRAINED_MIXERS)}"),
            (f"{self.num_key_value_heads} key/value heads", self.num_key_value_heads >= 1, "1 or more"),
            (
                f"{self.num_queries_per_kv} query heads per key/value head",
                1 <= self.num_queries_per_kv <= MAX_QUERIES_PER_KV,
                f"1 to {MAX_QUERIES_PER_KV}",
            ),
            (
                f"head size {self.head_dim}",
                MIN_HEAD_DIM <= self.head_dim <= MAX_HEAD_DIM and self.head_dim % 8 == 0,
                f"multiples of 8 from {MIN_HEAD_DIM} to {MAX_HEAD_DIM}",
            ),
            (f"a window of {self.window} keys", 1 <= self.window <= MAX_WINDOW, f"1 to {MAX_WINDOW}"),
            (f"activations in {self.activation}", self.activation in ACTIVATIONS, ", ".join(ACTIVATIONS)),
        ):
            if not is_supported:
                raise KernelError(
                    f"The GPU kernels do not support {what}; they support {supported}.",
                    "Run this layer with the PyTorch implementation of its operator.",
                )

    @property
    def precision(self) -> str:
        """Precision of products with the float32 state. TF32 rounds less than half-precision activations do."""
        return "ieee" if self.activation == "float32" else "tf32"

    @property
    def description(self) -> dict[str, Any]:
        """The shape as build descriptions store it."""
        return {DESCRIPTION_NAMES.get(name, name): value for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class LinearShape:
    """The properties of a linear layer that its kernels depend on.

    Attributes:
        rows: rows of the result.
        columns: columns of the weight, a multiple of 16, at most ``MAX_COLUMNS``.
        bits: 4 or 8 for integers in the layout of MatMulNBits, 16 for a weight in the activations' dtype.
        block_size: columns per scale; 0 if there are no scales.
        is_gated: the weight holds gate and up, and the result is silu(gate) * up.
        to_float: the result is float32 whatever the activations' dtype.

    Raises:
        KernelError: no kernel supports this shape.
    """

    rows: int
    columns: int
    bits: int = 16
    block_size: int = 0
    is_gated: bool = False
    to_float: bool = False

    def __post_init__(self) -> None:
        is_supported = self.bits == 16 or (self.bits in (4, 8) and self.block_size and self.block_size % 32 == 0)
        if not is_supported or self.columns % 16 or self.columns > MAX_COLUMNS:
            raise KernelError(
                f"No kernel multiplies by weights of {self.columns} columns in {self.bits} bits, blocks of "
                f"{self.block_size}.",
                "Use ONNX Runtime's own operator for this layer.",
            )


def block_of(size: int, least: int = 16) -> int:
    """Return the smallest power of two that is at least ``size`` and ``least``: the tile size of a kernel."""
    return max(least, 1 << (size - 1).bit_length())
