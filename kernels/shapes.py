"""What the kernels take: the shape of a layer's attention, checked before anything is launched or compiled."""

from dataclasses import dataclass

from liger_export.config import LigerConfig
from liger_export.errors import KernelError

__all__ = ["ACTIVATIONS", "KERNEL_MIXERS", "MAX_COLUMNS", "AttentionShape", "LinearShape"]

KERNEL_MIXERS = ("gla", "hgrn2")
ACTIVATIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}  # as torch and as Triton calls them

MIN_HEAD_DIM, MAX_HEAD_DIM = 32, 256
MAX_WINDOW = 256
MAX_REPEATS = 64
MAX_COLUMNS = 32768  # of a linear layer: its activations are kept in one program's registers


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """One layer's attention, whatever the batch and the length.

    Attributes:
        mixer: one of ``KERNEL_MIXERS``.
        groups: G, key/value heads.
        repeats: R, query heads for each key/value head.
        head_dim: D, a multiple of 8 from 32 to 256.
        window: W, keys in the window, 1 to 256.
        activation: dtype of projections, window and output, a key of ``ACTIVATIONS``. State is float32.

    Raises:
        KernelError: no kernel computes this shape.
    """

    mixer: str
    groups: int
    repeats: int
    head_dim: int
    window: int
    activation: str

    @classmethod
    def of_model(cls, config: LigerConfig, activation: str) -> "AttentionShape":
        """Of every layer of a model. Raises KernelError if no kernel computes it."""
        groups = config.num_key_value_heads
        repeats = config.num_attention_heads // groups
        return cls(config.mixer, groups, repeats, config.head_dim, config.window_size, activation)

    def __post_init__(self) -> None:
        for what, is_sound, allowed in (
            (f"mixer {self.mixer}", self.mixer in KERNEL_MIXERS, f"mixers {', '.join(KERNEL_MIXERS)}"),
            (f"{self.groups} key/value heads", self.groups >= 1, "1 and more"),
            (
                f"{self.repeats} query heads for each key/value head",
                1 <= self.repeats <= MAX_REPEATS,
                f"1 to {MAX_REPEATS}",
            ),
            (
                f"head size {self.head_dim}",
                MIN_HEAD_DIM <= self.head_dim <= MAX_HEAD_DIM and self.head_dim % 8 == 0,
                f"multiples of 8 from {MIN_HEAD_DIM} to {MAX_HEAD_DIM}",
            ),
            (f"window of {self.window} keys", 1 <= self.window <= MAX_WINDOW, f"1 to {MAX_WINDOW}"),
            (f"activations in {self.activation}", self.activation in ACTIVATIONS, ", ".join(ACTIVATIONS)),
        ):
            if not is_sound:
                raise KernelError(
                    f"The kernels do not take a {what}; they take {allowed}.",
                    "Run this layer on the PyTorch form of its operator.",
                )

    @property
    def precision(self) -> str:
        """Of products with the float32 state: TF32 rounds less than half-precision activations do."""
        return "ieee" if self.activation == "float32" else "tf32"


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A linear layer, as far as its kernels depend on it.

    Attributes:
        rows: of the result.
        columns: of the weight, a multiple of 16, at most ``MAX_COLUMNS``.
        bits: 4 or 8 of integers in MatMulNBits' layout, or 16 for a weight in the activations' dtype.
        block_size: columns of a scale; 0 where there is none.
        is_gated: the weight has gate and up, and silu(gate) * up is the result.
        to_float: the result is float32 whatever the activations are.

    Raises:
        KernelError: no kernel computes it.
    """

    rows: int
    columns: int
    bits: int = 16
    block_size: int = 0
    is_gated: bool = False
    to_float: bool = False

    def __post_init__(self) -> None:
        is_sound = self.bits == 16 or (self.bits in (4, 8) and self.block_size and self.block_size % 32 == 0)
        if not is_sound or self.columns % 16 or self.columns > MAX_COLUMNS:
            raise KernelError(
                f"No kernel multiplies by weights of {self.columns} columns in {self.bits} bits, blocks of "
                f"{self.block_size}.",
                "Leave this layer to ONNX Runtime.",
            )


def block_of(size: int, least: int = 16) -> int:
    """The power of two, at least ``least``, that holds ``size``: what a kernel computes on."""
    return max(least, 1 << (size - 1).bit_length())
