"""Which weight is stored how. Imports no torch: manifests are read with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from liger_export.errors import QuantizationError

__all__ = [
    "BLOCK_SIZES",
    "CALIBRATION_TOKENS",
    "FLOATS",
    "METHODS",
    "PRECISIONS",
    "Calibration",
    "Precision",
    "Scheme",
]

BITS = {"int4": 4, "int8": 8}
FLOATS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
PRECISIONS = (*BITS, *FLOATS)
BLOCK_SIZES = (32, 64, 128)
CALIBRATED = "gptq"
METHODS = ("rtn", "k-quant", CALIBRATED)
CALIBRATION_TOKENS = 32_768

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Scheme:
    """Integers that share a scale, and if not symmetric a zero point, along blocks of a row.

    A weight is ``scale * (integer - zero_point)``; a symmetric one has the zero point ``2 ** (bits - 1)``.

    Attributes:
        bits: 4 or 8 a weight.
        block_size: weights a scale.
        symmetric: whether the zero point is fixed.
    """

    bits: int
    block_size: int
    symmetric: bool

    @property
    def fixed_zero_point(self) -> int:
        """Zero point of a symmetric scheme."""
        return 1 << (self.bits - 1)

    def blocks(self, columns: int) -> int:
        """Blocks of a row."""
        return columns // self.block_size

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row's integers."""
        return columns * self.bits // 8

    def zero_point_bytes(self, columns: int) -> int:
        """Bytes of a row's zero points; an odd number of 4-bit ones ends in half a byte unused."""
        return (self.blocks(columns) * self.bits + 7) // 8


@dataclass(frozen=True, slots=True)
class Calibration:
    """The text that a calibrated method reads: the first tokens of it.

    Attributes:
        text: a text or JSONL file, or a directory of such files.
        max_tokens: read no more than these.
    """

    text: Path
    max_tokens: int = CALIBRATION_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """What ``convert`` is asked for.

    Attributes:
        weights: a name of ``PRECISIONS``, for every matrix that nothing below names.
        lm_head: that of the head, or None for the same.
        embedding: that of the embedding table, or None for the same. A tied model has one tensor for both.
        overrides: patterns of checkpoint tensor names (``*.down_proj.weight``) and their precision; the last match
            holds, before all else.
        block_size: weights a scale, one of ``BLOCK_SIZES``.
        symmetric: store no zero points.
        method: how integers are chosen, a name of ``METHODS``.
        activation_precision: that of what integers are multiplied with, a key of ``FLOATS``, or None for fp32. Dense
            weights are multiplied with activations of their own precision.
    """

    weights: str = "fp32"
    lm_head: str | None = None
    embedding: str | None = None
    overrides: tuple[tuple[str, str], ...] = ()
    block_size: int = 32
    symmetric: bool = False
    method: str = "rtn"
    activation_precision: str | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Precision":
        """What ``dataclasses.asdict`` gave, read back from JSON.

        Raises:
            TypeError, ValueError: a field is missing, unknown, or of another type.
            QuantizationError: a value is unknown.
        """
        overrides = tuple((str(pattern), str(name)) for pattern, name in values["overrides"])
        precision = cls(**{**values, "overrides": overrides})
        precision.check_names()
        return precision

    def __str__(self) -> str:
        """Short, for people: ``int4 (blocks of 32, k-quant), head int8, activations fp16``."""
        named = self.activation_precision if self.quantizes else None
        return f"{self.storage}, activations {named}" if named else self.storage

    @property
    def storage(self) -> str:
        """How weights are stored, for people: ``int4 (blocks of 32, k-quant), head int8``."""
        text = self.weights
        if self.quantizes:
            text += f" (blocks of {self.block_size}, {self.method}{', symmetric' if self.symmetric else ''})"
        named = [("head", self.lm_head), ("embedding", self.embedding), *self.overrides]
        return ", ".join([text, *(f"{what} {precision}" for what, precision in named if precision)])

    @property
    def activations(self) -> str:
        """Dtype of activations and of what is not quantized."""
        return FLOATS[self._activations]

    @property
    def quantizes(self) -> bool:
        """Whether any tensor may be stored as integers."""
        return any(name in BITS for name in self._asked())

    def of(self, name: str) -> str:
        """Precision of a matrix, by its name in the checkpoint."""
        chosen = self.weights
        if name == LM_HEAD and self.lm_head:
            chosen = self.lm_head
        if name == EMBEDDING and (self.embedding or self.lm_head):
            chosen = self.embedding or self.lm_head or chosen
        for pattern, precision in self.overrides:
            if fnmatchcase(name, pattern):
                chosen = precision
        return chosen

    def scheme(self, name: str) -> Scheme | None:
        """How a matrix is rounded; None if it is stored as the activations are."""
        bits = BITS.get(self.of(name))
        return Scheme(bits, self.block_size, self.symmetric) if bits else None

    def check(self, matrices: Mapping[str, tuple[int, ...]], tied: bool) -> None:
        """Check that the model's matrices can be stored so, before any work.

        Args:
            matrices: shape of each, by its name in the checkpoint.
            tied: whether the embedding table is the head.

        Raises:
            QuantizationError: a precision or block size is unknown or does not fit, or a pattern fits nothing.
        """
        self.check_names()
        if not self.quantizes and (self.symmetric or self.method != METHODS[0]):
            asked = "symmetric" if self.symmetric else self.method
            raise QuantizationError(
                f"{asked} says how to round to integers, and no weight is to be stored as integers.",
                "Pass --precision int4 or int8, or leave --method, --calibration and --symmetric away.",
            )
        for pattern, _ in self.overrides:
            if not any(fnmatchcase(name, pattern) for name in matrices):
                raise QuantizationError(
                    f"No weight matches {pattern!r}.", "Use names such as 'model.layers.0.*' or '*.down_proj.weight'."
                )
        if tied and self.embedding and self.lm_head and self.embedding != self.lm_head:
            raise QuantizationError(
                "The model's embedding and head are one tensor.", "Ask for the same precision, or for one of the two."
            )
        for name, (_, columns) in matrices.items():
            if self.scheme(name) and columns % self.block_size:
                fitting = ", ".join(str(size) for size in BLOCK_SIZES if columns % size == 0)
                otherwise = f"Store it in {self._activations} with an override."
                fix = f"Choose a block size of {fitting}." if fitting else otherwise
                raise QuantizationError(f"{name} has rows of {columns}, no multiple of {self.block_size}.", fix)

    def check_calibration(self, calibration: Calibration | None) -> None:
        """Check that there is a calibration text if, and only if, the method reads one. Raises QuantizationError."""
        if self.method == CALIBRATED and calibration is None:
            raise QuantizationError(
                f"{self.method} chooses integers by what a text makes of them, and there is no calibration text.",
                "Pass --calibration with text like what the model will read, or use another method.",
            )
        if self.method != CALIBRATED and calibration is not None:
            raise QuantizationError(
                f"{self.method} reads no calibration text.", f"Leave --calibration away, or pass --method {CALIBRATED}."
            )

    @property
    def _activations(self) -> str:
        """A key of ``FLOATS``."""
        return self.activation_precision or (self.weights if self.weights in FLOATS else "fp32")

    def _asked(self) -> tuple[str, ...]:
        named = (self.weights, self.lm_head, self.embedding, *(precision for _, precision in self.overrides))
        return tuple(precision for precision in named if precision)

    def _check_activations(self) -> None:
        chosen = self.activation_precision
        if chosen is not None and chosen not in FLOATS:
            raise QuantizationError(f"There are no activations in {chosen!r}.", f"Choose one of: {', '.join(FLOATS)}.")
        if self.weights in FLOATS and chosen not in (None, self.weights):
            raise QuantizationError(
                f"Weights in {self.weights} are multiplied with activations in {self.weights}, not in {chosen}.",
                "Leave --activations away, or ask for them with --precision int4 or int8.",
            )

    def check_names(self) -> None:
        """Check what can be checked without a model. Raises QuantizationError."""
        self._check_activations()
        for precision in self._asked():
            if precision not in PRECISIONS:
                raise QuantizationError(
                    f"There is no precision {precision!r}.", f"Choose one of: {', '.join(PRECISIONS)}."
                )
            if precision in FLOATS and FLOATS[precision] != self.activations:
                raise QuantizationError(
                    f"Weights in {precision} beside activations in {self.activations} would be converted at every use.",
                    f"Ask for int8, or for {self._activations}.",
                )
        if self.method not in METHODS:
            raise QuantizationError(f"There is no method {self.method!r}.", f"Choose one of: {', '.join(METHODS)}.")
        if self.method == "k-quant" and self.symmetric:
            raise QuantizationError("k-quant chooses zero points.", "Leave --symmetric away, or use another method.")
        if self.block_size not in BLOCK_SIZES:
            raise QuantizationError(
                f"The block size is {self.block_size}.", f"Choose one of: {', '.join(map(str, BLOCK_SIZES))}."
            )
