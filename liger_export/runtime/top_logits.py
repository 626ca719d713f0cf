"""The largest logits of a vocabulary and bounds on the others, which usually suffice to choose a token."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["TopLogits", "penalize"]

Logits = npt.NDArray[np.float32]

# Largest relative error of a float32 sum of positive exponentials; tested by tests/plugins/test_top_logits.py.
SUM_ERROR = 1e-5


@dataclass(frozen=True, slots=True)
class TopLogits:
    """The largest logits of a vocabulary, and bounds on the others.

    A token's weight is exp((logit - largest) / temperature): its probability before any filter, times a constant.

    Attributes:
        logits: float32 [K], largest first; equal logits are ordered by token id.
        ids: Token ids, int64 [K].
        weights: float64 [K].
        max_other: Upper bound on every other logit; -inf if there are no others.
        other_weight: Lower and upper bound on the sum of all other weights.
    """

    logits: Logits
    ids: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    max_other: np.float32
    other_weight: tuple[float, float]

    @classmethod
    def from_logits(cls, logits: Logits, count: int, temperature: float) -> "TopLogits":
        """Return the ``count`` largest of logits ``[vocab_size]``."""
        count = min(count, len(logits))
        least = np.partition(logits, -count)[-count]
        above, equal = np.flatnonzero(logits > least), np.flatnonzero(logits == least)
        ids = np.sort(np.concatenate([above, equal[: count - len(above)]]))
        ids = ids[np.argsort(-logits[ids], kind="stable")]
        total = _weights(logits, logits.max(), temperature).sum() if count < len(logits) else 0.0
        return cls._bounded(logits[ids], ids, float(total), len(logits), temperature)

    @classmethod
    def from_output(cls, row: Logits, vocab_size: int, temperature: float) -> "TopLogits":
        """Read an output row of ``liger::Candidates``, float32 ``[1 + 2 K]``.

        It holds the sum of all weights, K logits, and K token ids.
        """
        size = len(row) // 2
        count = min(size, vocab_size)
        ids = row[1 + size : 1 + size + count].astype(np.int64)
        return cls._bounded(row[1 : 1 + count], ids, float(row[0]), vocab_size, temperature)

    @classmethod
    def _bounded(
        cls, logits: Logits, ids: npt.NDArray[np.int64], total: float, vocab_size: int, temperature: float
    ) -> "TopLogits":
        """Derive the bounds from ``total``, the float32 sum of the whole vocabulary's weights."""
        weights = _weights(logits, logits[0], temperature)
        others, known = vocab_size - len(ids), weights.sum()
        if not others:
            return cls(logits, ids, weights, np.float32(-np.inf), (0.0, 0.0))
        most = min(max(total * (1 + SUM_ERROR) - known, 0.0), others * weights[-1])
        least = min(max(total * (1 - SUM_ERROR) - known, 0.0), most)
        return cls(logits, ids, weights, logits[-1], (float(least), float(most)))

    def penalized(self, seen: npt.NDArray[np.bool_], penalty: float, temperature: float) -> "TopLogits":
        """Apply a repetition penalty of 1 or more to the tokens that were seen. See ``penalize``.

        Drops each logit that is now at most ``max_other``, because the logit of another token may be larger.
        """
        logits = penalize(self.logits, seen[self.ids], penalty)
        order = np.lexsort((self.ids, -logits))
        logits, ids = logits[order], self.ids[order]
        weights = _weights(logits, logits[0], temperature)
        kept = int((logits > self.max_other).sum())
        # Of the other tokens, seen ones may have lost all of their weight; the rest have lost none.
        lowered = int(seen.sum() - seen[ids].sum()) * float(_weights(self.max_other, self.logits[0], temperature))
        scale, dropped = _weights(self.logits[0], logits[0], temperature), weights[kept:].sum()
        most = (len(seen) - kept) * float(_weights(self.max_other, logits[0], temperature))
        bounds = max(self.other_weight[0] - lowered, 0.0), self.other_weight[1]
        low, high = (min(float(dropped + bound * scale), most) if bound else float(dropped) for bound in bounds)
        return TopLogits(logits[:kept], ids[:kept], weights[:kept], self.max_other, (low, high))


def penalize(logits: Logits, seen: npt.NDArray[np.bool_], penalty: float) -> Logits:
    """Return logits in which those of seen tokens are divided by the penalty if positive, multiplied if negative."""
    logits = logits.copy()
    logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    return logits


def _weights(logits: Logits | np.float32, largest: np.float32, temperature: float) -> npt.NDArray[np.float64]:
    with np.errstate(over="ignore", invalid="ignore"):  # logits above the largest one given may overflow to infinity
        weights: npt.NDArray[np.float64] = np.exp((np.asarray(logits, dtype=np.float64) - largest) / temperature)
    return weights
