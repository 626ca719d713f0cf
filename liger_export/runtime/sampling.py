"""Choosing the next token, from the likeliest ones where they decide and from all logits otherwise."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from liger_export.errors import InputError
from liger_export.runtime.candidates import Candidates, penalize

__all__ = ["Sampler", "Sampling"]

Logits = npt.NDArray[np.float32]
Bounds = tuple[float, float]

NOTHING: Bounds = (0.0, 0.0)
SORTED = (256, 4096)  # of all logits, before sorting all
TEMPERATURES = (1e-30, 1e30)  # that divide float32 logits


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

    The rules run on the likeliest tokens and on bounds of what all others weigh (``Candidates``), and give up where
    these do not decide. Whole logits are candidates too, of which there are no others; so a token chosen from few
    candidates is always the one that the same draw chooses from all logits. A draw takes tokens largest logit first.

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

    @property
    def candidates_temperature(self) -> float:
        """The temperature at which candidates may decide; 0 where they cannot, or need not."""
        temperature = self._sampling.temperature or 1.0  # a penalty alone needs their order only
        # A penalty below 1 raises seen tokens, which may be none of the candidates.
        is_able = not self.is_greedy and self._sampling.repetition_penalty >= 1
        return temperature if is_able and TEMPERATURES[0] <= temperature <= TEMPERATURES[1] else 0.0

    def choose(self, logits: Logits) -> int:
        """Pick the next token from logits [vocab_size].

        Raises:
            InputError: tokens are to be drawn, and the largest logit is infinite or no number.
        """
        return self._choose_from_all(logits, self._draw())

    def choose_among(self, candidates: Candidates, read_logits: Callable[[], Logits]) -> int:
        """Pick the next token from candidates at ``candidates_temperature``; from all logits where they do not decide.

        Args:
            candidates: penalty not included.
            read_logits: returns logits [vocab_size].
        """
        draw, sampling = self._draw(), self._sampling
        if sampling.repetition_penalty != 1:
            temperature = self.candidates_temperature
            candidates = candidates.penalized(self._seen, sampling.repetition_penalty, temperature)
        token = self._decide(candidates, draw)
        return self._choose_from_all(read_logits(), draw) if token is None else token

    def probabilities(self, logits: Logits) -> npt.NDArray[np.float64]:
        """The distribution that a token is drawn from, [vocab_size], penalty not included."""
        every = Candidates.of(logits, len(logits), self._sampling.temperature)
        weights, _ = self._filtered(every) or (every.weights, ())
        probabilities = np.zeros(len(logits))
        probabilities[every.ids[: len(weights)]] = weights / weights.sum()
        return probabilities

    def _draw(self) -> float:
        return float(self._random.random()) if self._sampling.temperature else 0.0

    def _choose_from_all(self, logits: Logits, draw: float) -> int:
        """As many of the largest logits as it takes: sorting all of them takes longest."""
        sampling = self._sampling
        if sampling.repetition_penalty != 1:
            logits = penalize(logits, self._seen, sampling.repetition_penalty)
        if sampling.temperature == 0:
            return int(logits.argmax())
        if not np.isfinite(logits.max()):
            raise InputError("The logits are not finite.", "Check the package: liger-export validate.")
        counts = (*(size for size in SORTED if size < len(logits)), len(logits))
        tokens = (self._decide(Candidates.of(logits, count, sampling.temperature), draw) for count in counts)
        return next(token for token in tokens if token is not None)

    def _decide(self, candidates: Candidates, draw: float) -> int | None:
        """The token that a draw from [0, 1) falls on; None if that takes more than is known."""
        if not len(candidates.ids):
            return None
        if self._sampling.temperature == 0:
            return int(candidates.ids[0])
        filtered = self._filtered(candidates)
        if filtered is None:
            return None
        weights, rest = filtered
        sums = np.cumsum(weights)
        first, last = (int(np.searchsorted(sums, draw * (sums[-1] + others), side="right")) for others in rest)
        return int(candidates.ids[first]) if first == last < len(sums) else None

    def _filtered(self, candidates: Candidates) -> tuple[npt.NDArray[np.float64], Bounds] | None:
        """The weights of the candidates that all filters keep, which are the first, and of the others that they keep.

        None if the bounds do not say which candidates are kept.
        """
        sampling, weights, rest = self._sampling, candidates.weights, candidates.rest
        if sampling.top_k:
            last = candidates.logits[min(sampling.top_k, len(weights)) - 1]
            if sampling.top_k <= len(weights) and last > candidates.beyond:
                weights, rest = weights[: int((candidates.logits >= last).sum())], NOTHING
            else:
                rest = (0.0, rest[1])
        fewest = most = len(weights)
        is_closed = rest == NOTHING
        if sampling.top_p < 1:
            sums = np.cumsum(weights)
            wanted = [sampling.top_p * (sums[-1] + others) for others in rest]
            # Kept are those before which less than the wanted sum has gathered.
            fewest, most = (1 + int(np.searchsorted(sums[:-1], sum_, side="left")) for sum_ in wanted)
            is_closed = is_closed or bool(sums[-1] >= wanted[1])
        if sampling.min_p:
            likely = int((weights >= sampling.min_p).sum())
            fewest, most = min(fewest, likely), min(most, likely)
            edge = float(np.exp((np.float64(candidates.beyond) - candidates.logits[0]) / sampling.temperature))
            is_closed = is_closed or edge < sampling.min_p
        if fewest != most:
            return None
        is_filtered = sampling.top_p < 1 or sampling.min_p > 0
        return weights[:fewest], NOTHING if is_closed else (0.0 if is_filtered else rest[0], rest[1])
