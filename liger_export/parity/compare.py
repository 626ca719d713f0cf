"""Distances between logits and between states, computed in float64."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from liger_export.runtime import SavedState
from liger_export.runtime.dtypes import widened

__all__ = ["LogitParity", "kl_by_position", "mean_kl", "relative_l2", "state_distance", "top1_agreement"]

Array = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]


def relative_l2(measured: npt.NDArray[np.floating], reference: npt.NDArray[np.floating]) -> float:
    """Return |measured - reference| / |reference| in the 2-norm; the plain error if the reference is zero."""
    wide = reference.astype(np.float64)
    norm = float(np.linalg.norm(wide))
    error = float(np.linalg.norm(measured.astype(np.float64) - wide))
    return error / norm if norm else error


def state_distance(measured: SavedState, reference: SavedState) -> float:
    """Return the largest ``relative_l2`` over the tensors of a state."""
    found = measured.tensors
    return max(relative_l2(widened(found[name]), widened(tensor)) for name, tensor in reference.tensors.items())


def mean_kl(measured: Array, reference: Array) -> float:
    """Return KL(reference || measured) of next-token distributions in nats, averaged over positions.

    Both arguments are logits [..., vocab_size].
    """
    return float(kl_by_position(measured, reference).mean())


def kl_by_position(measured: Array, reference: Array) -> Wide:
    """Return KL(reference || measured) of next-token distributions in nats, [...], for logits [..., vocab_size]."""
    log_measured, log_reference = (_log_softmax(logits.astype(np.float64)) for logits in (measured, reference))
    return _kl(log_measured, log_reference)


def top1_agreement(measured: Array, reference: Array) -> float:
    """Return the share of positions at which both logits [..., vocab_size] have the same argmax."""
    return float((measured.argmax(-1) == reference.argmax(-1)).mean())


@dataclass(slots=True)
class LogitParity:
    """Comparison of logits that grows block by block, so that no long tensor is kept.

    Attributes:
        squared_error: sum of (measured - reference)^2.
        squared_reference: sum of reference^2.
        max_abs: largest |measured - reference|.
        kl_sum: sum of KL(reference || measured) over positions, in nats.
        top1_equal: positions at which both have the same argmax.
        positions: positions compared.
        measured_nll: summed negative log-likelihood of the targets, in nats.
        reference_nll: the same for the reference.
        scored: positions that have a target.
    """

    squared_error: float = 0.0
    squared_reference: float = 0.0
    max_abs: float = 0.0
    kl_sum: float = 0.0
    top1_equal: int = 0
    positions: int = 0
    measured_nll: float = 0.0
    reference_nll: float = 0.0
    scored: int = 0

    def add_block(self, measured: Array, reference: Array, targets: npt.NDArray[np.int64]) -> None:
        """Add positions to the comparison.

        Args:
            measured: float32 [N, vocab_size].
            reference: float32 [N, vocab_size].
            targets: int64 [M], M <= N; the token that follows each of the first M positions.
        """
        a, b = measured.astype(np.float64), reference.astype(np.float64)
        log_a, log_b = _log_softmax(a), _log_softmax(b)
        self.squared_error += float(np.square(a - b).sum())
        self.squared_reference += float(np.square(b).sum())
        self.max_abs = float(np.maximum(self.max_abs, np.abs(a - b).max()))  # keeps NaN, which max() would drop
        self.kl_sum += float(_kl(log_a, log_b).sum())
        self.top1_equal += int((a.argmax(-1) == b.argmax(-1)).sum())
        self.positions += len(a)
        rows = np.arange(len(targets))
        self.measured_nll -= float(log_a[rows, targets].sum())
        self.reference_nll -= float(log_b[rows, targets].sum())
        self.scored += len(targets)

    @property
    def relative_l2(self) -> float:
        """Error over reference, in the 2-norm over all positions."""
        return float((self.squared_error / self.squared_reference) ** 0.5) if self.squared_reference else float("nan")

    @property
    def mean_kl(self) -> float:
        """KL(reference || measured) in nats, averaged over positions."""
        return self.kl_sum / self.positions

    @property
    def top1_agreement(self) -> float:
        """Share of positions at which both have the same argmax."""
        return self.top1_equal / self.positions

    @property
    def measured_perplexity(self) -> float:
        """Perplexity of the targets under the measured logits."""
        return float(np.exp(self.measured_nll / self.scored))

    @property
    def reference_perplexity(self) -> float:
        """Perplexity of the targets under the reference logits."""
        return float(np.exp(self.reference_nll / self.scored))


def _kl(log_measured: Wide, log_reference: Wide) -> Wide:
    """KL(reference || measured) at each position, from log-probabilities [..., vocab_size]."""
    divergence: Wide = (np.exp(log_reference) * (log_reference - log_measured)).sum(-1)
    return divergence


def _log_softmax(logits: Wide) -> Wide:
    shifted = logits - logits.max(-1, keepdims=True)
    normalized: Wide = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normalized
