"""The likeliest tokens, and bounds on all others: what most tokens can be chosen from without the other logits."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Candidates", "penalize"]

Logits = npt.NDArray[np.float32]

# The most, relatively, that a float32 sum of positive exponentials is off: tests/plugins/test_top_logits.py.
SUM_ERROR = 1e-5


@dataclass(frozen=True, slots=True)
class Candidates:
    """The largest logits of a vocabulary, and what is known of the others.

    A token's weight is exp((logit - largest) / temperature), its probability before any filter times a constant.

    Attributes:
        logits: float32 [N], largest first; of equal ones that of the lower id.
        ids: int64 [N], of the tokens.
        weights: float64 [N].
        beyond: no other token's logit is larger; -inf if there are none.
        rest: the least and the most that the weights of all other tokens add up to.
    """

    logits: Logits
    ids: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    beyond: np.float32
    rest: tuple[float, float]

    @classmethod
    def of(cls, logits: Logits, count: int, temperature: float) -> "Candidates":
        """The ``count`` largest of logits [vocab_size]."""
        count = min(count, len(logits))
        least = np.partition(logits, -count)[-count]
        above, equal = np.flatnonzero(logits > least), np.flatnonzero(logits == least)
        ids = np.sort(np.concatenate([above, equal[: count - len(above)]]))
        ids = ids[np.argsort(-logits[ids], kind="stable")]
        total = _weights(logits, logits.max(), temperature).sum() if count < len(logits) else 0.0
        return cls._bounded(logits[ids], ids, float(total), len(logits), temperature)

    @classmethod
    def read(cls, row: Logits, vocab_size: int, temperature: float) -> "Candidates":
        """What ``liger::Candidates`` gave at a temperature: the sum of all weights, K logits, and K token ids."""
        held = len(row) // 2
        count = min(held, vocab_size)
        ids = row[1 + held : 1 + held + count].astype(np.int64)
        return cls._bounded(row[1 : 1 + count], ids, float(row[0]), vocab_size, temperature)

    @classmethod
    def _bounded(
        cls, logits: Logits, ids: npt.NDArray[np.int64], total: float, vocab_size: int, temperature: float
    ) -> "Candidates":
        """Candidates of which the weights of the whole vocabulary, in float32, add up to ``total``."""
        weights = _weights(logits, logits[0], temperature)
        others, known = vocab_size - len(ids), weights.sum()
        if not others:
            return cls(logits, ids, weights, np.float32(-np.inf), (0.0, 0.0))
        most = min(max(total * (1 + SUM_ERROR) - known, 0.0), others * weights[-1])
        least = min(max(total * (1 - SUM_ERROR) - known, 0.0), most)
        return cls(logits, ids, weights, logits[-1], (float(least), float(most)))

    def penalized(self, seen: npt.NDArray[np.bool_], penalty: float, temperature: float) -> "Candidates":
        """What is known once seen tokens' logits are lowered by a penalty of at least 1; see ``penalize``.

        Candidates that are no larger now than others may be become some of the others.
        """
        logits = penalize(self.logits, seen[self.ids], penalty)
        order = np.lexsort((self.ids, -logits))
        logits, ids = logits[order], self.ids[order]
        weights = _weights(logits, logits[0], temperature)
        sound = int((logits > self.beyond).sum())
        # Of the tokens beyond, those that were seen may have lost all of their weight, the others have lost nothing.
        lowered = int(seen.sum() - seen[ids].sum()) * float(_weights(self.beyond, self.logits[0], temperature))
        scale, dropped = _weights(self.logits[0], logits[0], temperature), weights[sound:].sum()
        most = (len(seen) - sound) * float(_weights(self.beyond, logits[0], temperature))
        bounds = max(self.rest[0] - lowered, 0.0), self.rest[1]
        rest = [min(float(dropped + bound * scale), most) if bound else float(dropped) for bound in bounds]
        return Candidates(logits[:sound], ids[:sound], weights[:sound], self.beyond, (rest[0], rest[1]))


def penalize(logits: Logits, seen: npt.NDArray[np.bool_], penalty: float) -> Logits:
    """Logits of which those of seen tokens are divided by the penalty where positive, multiplied where negative."""
    logits = logits.copy()
    logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    return logits


def _weights(logits: Logits | np.float32, largest: np.float32, temperature: float) -> npt.NDArray[np.float64]:
    with np.errstate(over="ignore", invalid="ignore"):  # a larger logit's may be infinite
        weights: npt.NDArray[np.float64] = np.exp((np.asarray(logits, dtype=np.float64) - largest) / temperature)
    return weights
