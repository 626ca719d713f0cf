"""The precision in which each weight is stored. Imports no torch, because manifests contain it."""

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
    """Blockwise integer quantization: each block of a row has a scale and, unless symmetric, a zero point.

    A weight is ``scale * (integer - zero_point)``. A symmetric scheme has the fixed zero point ``2 ** (bits - 1)``.

    Attributes:
        bits: bits per weight, 4 or 8.
        block_size: weights per scale.
        symmetric: true for a fixed zero point.
    """

    bits: int
    block_size: int
    symmetric: bool

    @property
    def fixed_zero_point(self) -> int:
        """Zero point of a symmetric scheme."""
        return 1 << (self.bits - 1)

    def blocks(self, columns: int) -> int:
        """Number of blocks in a row."""
        return columns // self.block_size

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row's integers."""
        return columns * self.bits // 8

    def zero_point_bytes(self, columns: int) -> int:
        """Bytes of a row's zero points, rounded up to a whole byte."""
        return (self.blocks(columns) * self.bits + 7) // 8


@dataclass(frozen=True, slots=True)
class Calibration:
    """The text that a calibrated method reads.

    Attributes:
        text: a text or JSONL file, or a directory of such files.
        max_tokens: maximum number of tokens to read, from the start.
    """

    text: Path
    max_tokens: int = CALIBRATION_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """The precisions of a package.

    Attributes:
        weights: precision of every matrix without a more specific entry, one of ``PRECISIONS``.
        lm_head: precision of the head; None for ``weights``.
        embedding: precision of the embedding table; None for that of the head. In a tied model they are one tensor.
        overrides: pairs of a pattern of checkpoint tensor names (``*.down_proj.weight``) and a precision. They take
            precedence over the other fields; the last matching pattern wins.
        block_size: weights per scale, one of ``BLOCK_SIZES``.
        symmetric: store no zero points.
        method: rounding method for integers, one of ``METHODS``.
        activation_precision: precision of the activations that integer weights are multiplied by, a key of ``FLOATS``;
            None for fp32. Floating-point weights are multiplied by activations of the same precision.
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
    def from_dict(cls, values: Mapping[str, Any]) -> "Precision":
        """Build from the values of ``dataclasses.asdict`` after a round trip through JSON.

        Raises:
            TypeError, ValueError: a field is missing, unknown or of the wrong type.
            QuantizationError: a value is not supported.
        """
        overrides = tuple((str(pattern), str(name)) for pattern, name in values["overrides"])
        precision = cls(**{**values, "overrides": overrides})
        precision.check_names()
        return precision

    def __str__(self) -> str:
        """Short description for users: ``int4 (blocks of 32, k-quant), head int8, activations fp16``."""
        named = self.activation_precision if self.quantizes else None
        return f"{self.storage}, activations {named}" if named else self.storage

    @property
    def storage(self) -> str:
        """Short description of how weights are stored: ``int4 (blocks of 32, k-quant), head int8``."""
        text = self.weights
        if self.quantizes:
            text += f" (blocks of {self.block_size}, {self.method}{', symmetric' if self.symmetric else ''})"
        named = [("head", self.lm_head), ("embedding", self.embedding), *self.overrides]
        return ", ".join([text, *(f"{part} {precision}" for part, precision in named if precision)])

    @property
    def activations(self) -> str:
        """Dtype of activations and of tensors that are not quantized."""
        return FLOATS[self._activations]

    @property
    def quantizes(self) -> bool:
        """True if any tensor may be stored as integers."""
        return any(name in BITS for name in self._requested())

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
        """Quantization scheme of a matrix; None if it has the precision of the activations."""
        bits = BITS.get(self.of(name))
        return Scheme(bits, self.block_size, self.symmetric) if bits else None

    def check(self, matrices: Mapping[str, tuple[int, ...]], tied: bool) -> None:
        """Check that the model's matrices can be stored in these precisions, before any work.

        Args:
            matrices: shape of each matrix, by its name in the checkpoint.
            tied: true if the embedding table is also the head.

        Raises:
            QuantizationError: a setting is unknown or does not fit the model, or a pattern matches no matrix.
        """
        self.check_names()
        if not self.quantizes and (self.symmetric or self.method != METHODS[0]):
            rounding = "Symmetric" if self.symmetric else self.method
            raise QuantizationError(
                f"{rounding} rounding applies only to integer weights, and no weight is stored as integers.",
                "Pass --precision int4 or int8, or omit --method, --calibration and --symmetric.",
            )
        for pattern, _ in self.overrides:
            if not any(fnmatchcase(name, pattern) for name in matrices):
                raise QuantizationError(
                    f"No weight matches {pattern!r}.", "Use names such as 'model.layers.0.*' or '*.down_proj.weight'."
                )
        if tied and self.embedding and self.lm_head and self.embedding != self.lm_head:
            raise QuantizationError(
                "The model's embedding and head are one tensor.", "Choose one precision for both, or set only one."
            )
        for name, (_, columns) in matrices.items():
            if self.scheme(name) and columns % self.block_size:
                fitting = ", ".join(str(size) for size in BLOCK_SIZES if columns % size == 0)
                override = f"Store it as {self._activations} with an override."
                fix = f"Choose a block size of {fitting}." if fitting else override
                raise QuantizationError(
                    f"{name} has rows of {columns} weights, which is not a multiple of {self.block_size}.", fix
                )

    def check_calibration(self, calibration: Calibration | None) -> None:
        """Check that a calibration text is given exactly if the method reads one. Raises QuantizationError."""
        if self.method == CALIBRATED and calibration is None:
            raise QuantizationError(
                f"{self.method} needs a calibration text, and none was given.",
                "Pass --calibration with text like the model's input, or choose another method.",
            )
        if self.method != CALIBRATED and calibration is not None:
            raise QuantizationError(
                f"{self.method} does not use a calibration text.",
                f"Omit --calibration, or use --method {CALIBRATED}.",
            )

    def check_names(self) -> None:
        """Check the settings that do not depend on a model. Raises QuantizationError."""
        self._check_activations()
        for precision in self._requested():
            if precision not in PRECISIONS:
                raise QuantizationError(f"Unknown precision {precision!r}.", f"Choose one of: {', '.join(PRECISIONS)}.")
            if precision in FLOATS and FLOATS[precision] != self.activations:
                raise QuantizationError(
                    f"{precision} weights with {self.activations} activations would be converted at every use.",
                    f"Choose int8 or {self._activations}.",
                )
        if self.method not in METHODS:
            raise QuantizationError(f"Unknown method {self.method!r}.", f"Choose one of: {', '.join(METHODS)}.")
        if self.method == "k-quant" and self.symmetric:
            raise QuantizationError("k-quant needs zero points.", "Omit --symmetric, or choose another method.")
        if self.block_size not in BLOCK_SIZES:
            raise QuantizationError(
                f"The block size {self.block_size} is not supported.",
                f"Choose one of: {', '.join(map(str, BLOCK_SIZES))}.",
            )

    @property
    def _activations(self) -> str:
        """Precision of the activations, a key of ``FLOATS``."""
        return self.activation_precision or (self.weights if self.weights in FLOATS else "fp32")

    def _requested(self) -> tuple[str, ...]:
        named = (self.weights, self.lm_head, self.embedding, *(precision for _, precision in self.overrides))
        return tuple(precision for precision in named if precision)

    def _check_activations(self) -> None:
        chosen = self.activation_precision
        if chosen is not None and chosen not in FLOATS:
            raise QuantizationError(f"Unknown activation precision {chosen!r}.", f"Choose one of: {', '.join(FLOATS)}.")
        if self.weights in FLOATS and chosen not in (None, self.weights):
            raise QuantizationError(
                f"{self.weights} weights need {self.weights} activations, not {chosen}.",
                "Omit --activations, or pass --precision int4 or int8.",
            )
