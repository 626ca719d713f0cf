"""The bounds a package must meet, by the precision of its weights: ``docs/reference/tolerances.md``.

Imports no torch.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from liger_export.parity.compare import LogitParity, mean_kl, relative_l2
from liger_export.parity.report import Check
from liger_export.precision import FLOATS, Precision

__all__ = ["NOISE_RATIO", "Tolerances", "float32_rounding", "tolerances_of"]

Array = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]

FP32_RELATIVE_L2 = 1e-5
HALF_KL = {"fp16": 1e-3, "bf16": 5e-3}
HALF_TOP1 = {"fp16": 0.99, "bf16": 0.98}
ROUNDING = {"fp16": 2**-11, **dict.fromkeys(("bf16", "int8", "int4"), 2**-8)}  # integers multiply 8-bit activations
FLOAT32_UNIT = 2**-24  # largest relative error of one float32 rounding
DECAY_ROUNDING = FLOAT32_UNIT / 12**0.5  # of a float32 between 1/2 and 1, root mean square
ROUNDINGS_PER_MATRIX = 1.5  # 11 operations in sequence per layer of 7 matrices; docs/reference/tolerances.md
PERPLEXITY_INCREASE = {"int8": 0.005, "int4": 0.04}
HANDOVER_RATIO = 2.0
NOISE_RATIO = 2.0


@dataclass(frozen=True, slots=True)
class Tolerances:
    """The distance between logits, and its bounds, for one package.

    A float32 package must equal PyTorch, so every law is measured against PyTorch. A package with fewer bits only
    approximates it. Its laws (any split, single steps, and so on) are measured against the package's own result for the
    whole sequence in one call, with the bound that an fp16 package has against PyTorch, or a bf16 package if its
    activations are bfloat16.

    Attributes:
        stored: the coarsest precision among its weights and activations.
        exact: whether laws are measured against PyTorch.
        metric: name of ``distance``.
        distance: distance of measured logits from reference logits.
        bound: largest distance allowed between two ways to compute the same logits.
        position_bound: the same where only one position is compared.
        rounding: relative L2 that rounding explains without a history.
        decay_rounding: relative L2 that the rounding of decays adds, per square root of the number of steps.
    """

    stored: str
    exact: bool
    metric: str
    distance: Callable[[Array, Array], float]
    bound: float
    position_bound: float
    rounding: float
    decay_rounding: float = 0.0

    @property
    def has_integers(self) -> bool:
        """True if the package multiplies integers, whose activations are rounded to 8 bits."""
        return self.stored in PERPLEXITY_INCREASE

    def noise_after(self, steps: int) -> float:
        """Return the relative L2 that rounding explains after a number of single steps. Drift is what exceeds it."""
        return math.hypot(self.rounding, self.decay_rounding * steps**0.5)

    def logit_checks(self, parity: LogitParity, detail: str) -> Iterator[Check]:
        """Compare the package with PyTorch: all figures, with a bound where the table of tolerances has one."""
        top1 = {"fp32": 1.0, **HALF_TOP1}.get(self.stored)
        l2 = FP32_RELATIVE_L2 if self.exact else None
        package, torch = parity.measured_perplexity, parity.reference_perplexity
        yield Check("logits: relative L2", parity.relative_l2, l2, detail=detail)
        yield Check("logits: max abs difference", parity.max_abs, detail=detail)
        yield Check("logits: mean KL (nats)", parity.mean_kl, HALF_KL.get(self.stored), detail=detail)
        yield Check("logits: top-1 agreement", parity.top1_agreement, top1, at_least=True, detail=detail)
        yield Check("perplexity: package", package, detail=detail)
        yield Check("perplexity: PyTorch", torch, detail=detail)
        if self.stored in PERPLEXITY_INCREASE:
            bound, loss = PERPLEXITY_INCREASE[self.stored], f"stored as {self.stored}"
            yield Check("perplexity: increase", package / torch - 1, bound, detail=loss)

    def allowing(self, noise: Wide) -> "Tolerances":
        """Return tolerances for a package whose roundings alone cause distances of ``noise``, by position [T]."""
        mean, largest = NOISE_RATIO * float(noise.mean()), NOISE_RATIO * float(noise.max())
        return replace(self, bound=max(self.bound, mean), position_bound=max(self.position_bound, largest))

    def check(self, name: str, measured: Array, reference: Array, detail: str = "") -> Check:
        """Check one law: two ways to compute the same logits [T, vocab_size], or those of one position [vocab_size]."""
        bound = self.bound if measured.ndim > 1 else self.position_bound
        return Check(f"{name}: {self.metric}", self.distance(measured, reference), bound, detail=detail)

    def handover_check(self, name: str, continued: Array, package: Array, torch: Array, detail: str) -> Check:
        """Check logits [T, vocab_size] after a state was handed over between the package and PyTorch.

        Args:
            name: name of the check.
            continued: logits after the handover, or of another graph of the package.
            package: logits of the package without a handover.
            torch: logits of PyTorch without a handover.
            detail: where the state was handed over.
        """
        if self.exact:
            return self.check(name, continued, torch, detail)
        own = self.distance(package, torch)  # the cost of fewer bits, without a handover
        ratio = self.distance(continued, torch) / own if own else float("nan")
        return Check(f"{name}: {self.metric}, of the package's own", ratio, HANDOVER_RATIO, detail=detail)


def float32_rounding(matrices: int) -> float:
    """Return the relative L2 that rounding causes between two float32 computations of a model's logits.

    Each rounds ``ROUNDINGS_PER_MATRIX`` times per matrix, in sequence. The errors are independent, so they add up in
    squares.

    Args:
        matrices: number of the model's matrices.
    """
    roundings = 2 * ROUNDINGS_PER_MATRIX * matrices
    return float(FLOAT32_UNIT * roundings**0.5)


def float32_decay_rounding(recurrent_layers: int, recurrent_weight: float) -> float:
    """Return the relative L2 that float32 decays add to the logits, per square root of the number of steps.

    A step multiplies each row of a recurrent state by exp(gate). The whole row shares its rounding, so it does not
    average out in the output. The errors of different steps and layers are independent. The recurrence has a share
    of ``recurrent_weight`` in a layer's attention.
    """
    return float(DECAY_ROUNDING * recurrent_weight * recurrent_layers**0.5)


def tolerances_of(
    precision: Precision,
    matrices: list[str],
    activations: str = "float32",
    *,
    recurrent_layers: int = 0,
    recurrent_weight: float = 0.0,
) -> Tolerances:
    """Return the tolerances of a package.

    Args:
        precision: the precision in its manifest.
        matrices: names of the checkpoint's matrices.
        activations: dtype of the activations: the package's, or those of an engine, which may have fewer bits.
        recurrent_layers: number of layers with a recurrent state.
        recurrent_weight: share of the recurrence in their attention.
    """
    computed = next(name for name, dtype in FLOATS.items() if dtype == activations)
    used = {computed, *(precision.of(name) for name in matrices)}
    coarsest: str = next(name for name in ("int4", "int8", "bf16", "fp16", "fp32") if name in used)
    if coarsest == "fp32":
        rounding, decays = float32_rounding(len(matrices)), float32_decay_rounding(recurrent_layers, recurrent_weight)
        bound = FP32_RELATIVE_L2
        return Tolerances(coarsest, True, "relative L2", relative_l2, bound, bound, rounding, decays)
    bound = HALF_KL["bf16" if "bf16" in used else "fp16"]
    return Tolerances(coarsest, False, "mean KL (nats)", mean_kl, bound, bound, ROUNDING[coarsest])
