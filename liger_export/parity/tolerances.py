"""What a package is held to, by how its weights are stored (design, section 6). Imports no torch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from liger_export.parity.compare import mean_kl, relative_l2
from liger_export.parity.report import Check, LogitParity
from liger_export.precision import FLOATS, Precision

__all__ = ["Tolerances", "tolerances_of"]

Array = npt.NDArray[np.float32]

FP32_RELATIVE_L2 = 1e-5
HALF_KL = {"fp16": 1e-3, "bf16": 5e-3}
HALF_TOP1 = {"fp16": 0.99, "bf16": 0.98}
ROUNDING = {"fp16": 2**-11, **dict.fromkeys(("bf16", "int8", "int4"), 2**-8)}  # integers meet 8-bit activations
PERPLEXITY = {"int8": 0.005, "int4": 0.04}
DISTANCE_RATIO = 2.0


@dataclass(frozen=True, slots=True)
class Tolerances:
    """How a package's logits are compared and how far they may be.

    A float32 package computes what PyTorch computes, so every law is measured against PyTorch. One with fewer bits
    computes something near it; its laws (any split, single steps, ...) are measured against the package's own one call
    over the whole sequence, by the distance that fp16 may have to PyTorch, or bf16 if its activations are that.

    Attributes:
        stored: the coarsest precision of any of its weights.
        exact: whether laws are measured against PyTorch.
        metric: name of the distance between logits.
        distance: of measured logits to reference logits.
        bound: the largest distance that two ways to compute the same may have.
        rounding: relative L2 of one rounding; what lies below it is no drift.
    """

    stored: str
    exact: bool
    metric: str
    distance: Callable[[Array, Array], float]
    bound: float
    rounding: float

    def logit_checks(self, parity: LogitParity, detail: str) -> Iterator[Check]:
        """Package against PyTorch, every figure; those that section 6 names have a bound."""
        top1 = {"fp32": 1.0, **HALF_TOP1}.get(self.stored)
        kl = HALF_KL.get(self.stored)
        l2 = FP32_RELATIVE_L2 if self.exact else None
        yield Check("logits: relative L2", parity.relative_l2, l2, detail=detail)
        yield Check("logits: max abs difference", parity.max_abs, detail=detail)
        yield Check("logits: mean KL (nats)", parity.kl / parity.positions, kl, detail=detail)
        yield Check("logits: top-1 agreement", parity.top1 / parity.positions, top1, at_least=True, detail=detail)
        package, torch = (np.exp(nll / parity.scored) for nll in (parity.measured_nll, parity.reference_nll))
        yield Check("perplexity: package", float(package), detail=detail)
        yield Check("perplexity: PyTorch", float(torch), detail=detail)
        if self.stored in PERPLEXITY:
            loss = f"stored as {self.stored}"
            yield Check("perplexity: lost", float(package / torch - 1), PERPLEXITY[self.stored], detail=loss)

    def check(self, name: str, measured: Array, reference: Array, detail: str = "") -> Check:
        """One law: two ways to compute the same logits."""
        return Check(f"{name}: {self.metric}", self.distance(measured, reference), self.bound, detail=detail)

    def handover_check(self, name: str, continued: Array, package: Array, torch: Array, detail: str) -> Check:
        """A state carried over the border between package and PyTorch.

        Args:
            name: of the check.
            continued: logits after the handover.
            package: logits of the package alone.
            torch: logits of PyTorch alone.
            detail: where.
        """
        if self.exact:
            return self.check(name, continued, torch, detail)
        own = self.distance(package, torch)  # what fewer bits cost without any handover
        ratio = self.distance(continued, torch) / own if own else float("nan")
        return Check(f"{name}: {self.metric}, of the package's own", ratio, DISTANCE_RATIO, detail=detail)


def tolerances_of(precision: Precision, matrices: list[str], activations: str = "float32") -> Tolerances:
    """The tolerances of a package.

    Args:
        precision: of its manifest.
        matrices: names of the checkpoint's matrices.
        activations: what is computed in: the package's, or those of an engine, which may have fewer bits.
    """
    computed = next(name for name, dtype in FLOATS.items() if dtype == activations)
    used = {computed, *(precision.of(name) for name in matrices)}
    coarsest: str = next(name for name in ("int4", "int8", "bf16", "fp16", "fp32") if name in used)
    if coarsest == "fp32":
        return Tolerances(coarsest, True, "relative L2", relative_l2, FP32_RELATIVE_L2, rounding=2**-24)
    half = "bf16" if "bf16" in used else "fp16"
    return Tolerances(coarsest, False, "mean KL (nats)", mean_kl, HALF_KL[half], rounding=ROUNDING[coarsest])
