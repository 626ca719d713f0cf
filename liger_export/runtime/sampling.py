"""Choosing the next token from logits."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from liger_export.errors import InputError

__all__ = ["Sampler", "Sampling"]

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to choose tokens; the default is greedy. Filters apply in the order listed.

    Attributes:
        repetition_penalty: divides positive and multiplies negative logits of tokens already in the text
            (arXiv 1909.05858, section 4.1); 1 for none.
        temperature: divisor of the logits; 0 takes the most likely token.
        top_k: keep the k most likely tokens; 0 for all.
        top_p: keep the fewest tokens whose probabilities add up to p (arXiv 1904.09751); 1 for all.
        min_p: keep tokens at least this likely relative to the most likely one (arXiv 2407.01082); 0 for all.
        seed: of the random choice; None for a fresh one.

    Raises:
        InputError: a value is out of its range.
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        ranges = {
            "repetition_penalty": (self.repetition_penalty > 0, "greater than 0"),
            "temperature": (self.temperature >= 0, "0 or more"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "greater than 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "seed": (self.seed is None or self.seed >= 0, "0 or more"),
        }
        for name, (valid, wanted) in ranges.items():
            if not valid:
                raise InputError(f"{name} is {getattr(self, name)}.", f"It must be {wanted}.")


class Sampler:
    """Applies a ``Sampling``.

    Args:
        sampling: how to choose.
        seen: bool [vocab_size], which tokens the text holds; read at each choice, its owner keeps it current.
    """

    def __init__(self, sampling: Sampling, seen: npt.NDArray[np.bool_]) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)
        self._seen = seen

    @property
    def is_greedy(self) -> bool:
        """Whether the next token is the one with the largest logit."""
        return self._sampling.temperature == 0 and self._sampling.repetition_penalty == 1

    def choose(self, logits: Logits) -> int:
        """Pick the next token from logits [vocab_size]."""
        if self._sampling.repetition_penalty != 1:
            logits = _penalize(logits, self._seen, self._sampling.repetition_penalty)
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        return int(self._random.choice(len(logits), p=self.probabilities(logits)))

    def probabilities(self, logits: Logits) -> npt.NDArray[np.float64]:
        """The distribution that a token is drawn from, [vocab_size], penalty not included."""
        sampling = self._sampling
        scaled = (logits.astype(np.float64) - logits.max()) / sampling.temperature
        if sampling.top_k:
            rank = min(sampling.top_k, len(logits))
            scaled[logits < np.partition(logits, -rank)[-rank]] = -np.inf
        probabilities = _normalized(np.exp(scaled))
        if sampling.top_p < 1:
            order = np.argsort(-probabilities, kind="stable")
            before = np.cumsum(probabilities[order]) - probabilities[order]
            probabilities[order[before >= sampling.top_p]] = 0
            probabilities = _normalized(probabilities)
        if sampling.min_p:
            probabilities[probabilities < sampling.min_p * probabilities.max()] = 0
            probabilities = _normalized(probabilities)
        return probabilities


def _penalize(logits: Logits, seen: npt.NDArray[np.bool_], penalty: float) -> Logits:
    logits = logits.copy()
    logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    return logits


def _normalized(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    normalized: npt.NDArray[np.float64] = weights / weights.sum()
    return normalized
