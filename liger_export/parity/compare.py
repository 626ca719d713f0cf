"""Comparing logits and states, in float64."""

import numpy as np
import numpy.typing as npt

from liger_export.parity.report import LogitParity
from liger_export.runtime import SavedState
from liger_export.runtime.dtypes import widened

__all__ = ["add_block", "mean_kl", "relative_l2", "state_distance"]

Array = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]


def relative_l2(measured: Array, reference: Array) -> float:
    """|measured - reference| / |reference| in the 2-norm; 0 if both are zero."""
    wide = reference.astype(np.float64)
    norm = float(np.linalg.norm(wide))
    error = float(np.linalg.norm(measured.astype(np.float64) - wide))
    return error / norm if norm else error


def state_distance(measured: SavedState, reference: SavedState) -> float:
    """The largest ``relative_l2`` of a state's tensors."""
    found = measured.tensors
    return max(relative_l2(widened(found[name]), widened(tensor)) for name, tensor in reference.tensors.items())


def mean_kl(measured: Array, reference: Array) -> float:
    """KL(reference || measured) of next-token distributions, nats, mean over positions; logits [..., vocab_size]."""
    log_a, log_b = _log_softmax(measured.astype(np.float64)), _log_softmax(reference.astype(np.float64))
    return float((np.exp(log_b) * (log_b - log_a)).sum(-1).mean())


def add_block(parity: LogitParity, measured: Array, reference: Array, targets: npt.NDArray[np.int64]) -> None:
    """Add positions to a comparison.

    Args:
        parity: the sums to add to.
        measured: float32 [N, vocab_size].
        reference: float32 [N, vocab_size].
        targets: int64 [M], M <= N; the token that follows each of the first M positions.
    """
    a, b = measured.astype(np.float64), reference.astype(np.float64)
    log_a, log_b = _log_softmax(a), _log_softmax(b)
    parity.squared_error += float(np.square(a - b).sum())
    parity.squared_reference += float(np.square(b).sum())
    parity.max_abs = float(np.maximum(parity.max_abs, np.abs(a - b).max()))  # keeps NaN, as max() would not
    parity.kl += float((np.exp(log_b) * (log_b - log_a)).sum())
    parity.top1 += int((a.argmax(-1) == b.argmax(-1)).sum())
    parity.positions += len(a)
    rows = np.arange(len(targets))
    parity.measured_nll -= float(log_a[rows, targets].sum())
    parity.reference_nll -= float(log_b[rows, targets].sum())
    parity.scored += len(targets)


def _log_softmax(logits: Wide) -> Wide:
    shifted = logits - logits.max(-1, keepdims=True)
    normalized: Wide = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normalized
