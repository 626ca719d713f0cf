"""Choosing the next token, from the top logits if they are enough and from all logits otherwise."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from liger_export.errors import InputError, NotFiniteError
from liger_export.runtime.executor import Logits, Prediction
from liger_export.runtime.top_logits import TopLogits, penalize

__all__ = ["Sampler", "Sampling"]

Bounds = tuple[float, float]

PENALTIES = ("repetition_penalty", "frequency_penalty", "presence_penalty")
NUMBERS = (*PENALTIES, "temperature", "top_p", "min_p")
LARGEST_BIAS, LARGEST_PENALTY = 100, 2  # those of OpenAI's API

NO_WEIGHT: Bounds = (0.0, 0.0)
SORTED_COUNTS = (256, 4096)  # numbers of logits to try to sort before sorting all
TEMPERATURE_RANGE = (1e-30, 1e30)  # temperatures that can divide float32 logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Settings for choosing tokens. The default is greedy. They apply in the order listed.

    Attributes:
        logit_bias: Numbers from -100 to 100 that are added to the logits of tokens, by token id. The pairs of a mapping
            are kept in the order of their ids.
        repetition_penalty: Divides positive and multiplies negative logits of tokens that are already in the text
            (arXiv 1909.05858, section 4.1); 1 for none.
        frequency_penalty: Subtracted from a token's logit each time that the token has been chosen; 0 for none.
        presence_penalty: Subtracted once from the logit of a token that has been chosen; 0 for none.
        temperature: Divides the logits; 0 takes the most likely token.
        top_k: Keep the k most likely tokens; 0 for all.
        top_p: Keep the fewest tokens whose probabilities sum to at least p (arXiv 1904.09751); 1 for all.
        min_p: Keep tokens that have at least this probability relative to the most likely one (arXiv 2407.01082);
            0 for all.
        seed: Seed of the random choices. None goes on with the random numbers of the session, which start at random.

    Raises:
        InputError: A value is out of range.
    """

    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("top_k", "seed", *NUMBERS):
            value = getattr(self, name)
            kind, described = (float, "a number") if name in NUMBERS else (int, "an integer")
            if not _is_number(value, kind) and not (name == "seed" and value is None):
                raise InputError(f"{name} is {value!r}.", f"It must be {described}.")
        ranges = {
            "repetition_penalty": (self.repetition_penalty > 0, "greater than 0"),
            "frequency_penalty": (abs(self.frequency_penalty) <= LARGEST_PENALTY, "from -2 to 2"),
            "presence_penalty": (abs(self.presence_penalty) <= LARGEST_PENALTY, "from -2 to 2"),
            "temperature": (self.temperature >= 0, "0 or more"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "greater than 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "seed": (self.seed is None or self.seed >= 0, "0 or more"),
        }
        for name, (valid, allowed) in ranges.items():
            if not valid:
                raise InputError(f"{name} is {getattr(self, name)}.", f"It must be {allowed}.")
        object.__setattr__(self, "logit_bias", _pairs(self.logit_bias))


def _pairs(bias: object) -> tuple[tuple[int, float], ...]:
    """Return the pairs of a logit bias, checked and in the order of their tokens."""
    try:
        pairs = dict(bias)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        raise InputError(f"logit_bias is {bias!r}.", "Pass a mapping from token ids to numbers.") from None
    for token, number in pairs.items():
        if not _is_number(token, int) or token < 0:
            raise InputError(f"logit_bias has the key {token!r}.", "It must be a token id.")
        if not _is_number(number, float) or abs(number) > LARGEST_BIAS:
            raise InputError(f"The logit_bias of token {token} is {number!r}.", "It must be from -100 to 100.")
    return tuple(sorted((int(token), float(number)) for token, number in pairs.items()))


def _is_number(value: object, kind: type[int] | type[float]) -> bool:
    """Return True for finite numbers of Python and numpy, and for integers where ``kind`` is float."""
    kinds: tuple[type, ...] = (int, np.integer) if kind is int else (int, float, np.integer, np.floating)
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(cast(float, value))


class Sampler:
    """Chooses tokens according to a ``Sampling``.

    The filters run on the top logits and on bounds of all other tokens' weight (``TopLogits``). If these do not
    determine the token, all logits are read. All logits are themselves ``TopLogits`` without other tokens, so the same
    random draw gives the same token either way. A draw counts weights from the largest logit down.
    """

    def __init__(
        self, sampling: Sampling, seen: npt.NDArray[np.bool_], random: np.random.Generator | None = None
    ) -> None:
        """Start to choose.

        Args:
            sampling: How to choose.
            seen: bool [vocab_size], True for tokens in the text. It is read at each choice; its owner updates it.
            random: The source of random numbers; None for one that starts from the seed.

        Raises:
            InputError: A token of ``logit_bias`` is outside the vocabulary.
        """
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed) if random is None else random
        self._seen = seen
        self._bias = _bias_of(sampling, len(seen))
        counts = sampling.frequency_penalty or sampling.presence_penalty
        self._counts = np.zeros(len(seen), dtype=np.float32) if counts else None  # of the tokens chosen

    @property
    def is_greedy(self) -> bool:
        """True if the next token is always the one with the largest logit."""
        is_plain = self._sampling.repetition_penalty == 1 and not self._needs_all_logits
        return self._sampling.temperature == 0 and is_plain

    @property
    def _needs_all_logits(self) -> bool:
        """True if the token may be one that is not among the top logits."""
        return self._bias is not None or self._counts is not None

    @property
    def top_logits_temperature(self) -> float:
        """Temperature at which top logits may determine the token; 0 if they cannot or are not needed."""
        temperature = self._sampling.temperature or 1.0  # with only a penalty, just their order matters
        # A penalty below 1 raises seen tokens, which may not be among the top logits.
        is_able = not (self.is_greedy or self._needs_all_logits) and self._sampling.repetition_penalty >= 1
        return temperature if is_able and TEMPERATURE_RANGE[0] <= temperature <= TEMPERATURE_RANGE[1] else 0.0

    def choose_next(self, prediction: Prediction, barred: Collection[int] = ()) -> int:
        """Choose the next token. On a GPU, all logits are copied to the host only if they are needed.

        Args:
            prediction: The logits.
            barred: Tokens that must not be chosen.

        Raises:
            NotFiniteError: The largest logit is infinite, or a logit is NaN.
        """
        token = self._choose_unbarred(prediction) if not barred else self.choose(prediction.last_logits(), barred)
        if self._counts is not None:
            self._counts[token] += 1
        return token

    def choose(self, logits: Logits, barred: Collection[int] = ()) -> int:
        """Choose the next token from logits ``[vocab_size]``.

        Raises:
            NotFiniteError: As ``choose_next``.
        """
        return self._choose_from_all(logits, self._draw(), barred)

    def choose_from_top(self, top: TopLogits, read_logits: Callable[[], Logits]) -> int:
        """Choose the next token from the top logits, or from all logits if the former do not determine it.

        Args:
            top: The top logits at ``top_logits_temperature``, without penalty.
            read_logits: Returns all logits, [vocab_size].
        """
        draw, sampling = self._draw(), self._sampling
        _require_finite(top.logits[0])  # NaN comes first
        if sampling.repetition_penalty != 1:
            top = top.penalized(self._seen, sampling.repetition_penalty, self.top_logits_temperature)
        token = self._decide(top, draw)
        return self._choose_from_all(read_logits(), draw) if token is None else token

    def probabilities(self, logits: Logits) -> npt.NDArray[np.float64]:
        """Return the distribution that tokens are drawn from, ``[vocab_size]``, without penalty."""
        every = TopLogits.from_logits(logits, len(logits), self._sampling.temperature)
        weights, _ = self._filtered(every) or (every.weights, ())
        probabilities = np.zeros(len(logits))
        probabilities[every.ids[: len(weights)]] = weights / weights.sum()
        return probabilities

    def _choose_unbarred(self, prediction: Prediction) -> int:
        if self.is_greedy and (token := prediction.argmax()) is not None:
            return token
        top = prediction.top_logits(self.top_logits_temperature)
        if top is None:
            return self.choose(prediction.last_logits())
        return self.choose_from_top(top, prediction.last_logits)

    def _draw(self) -> float:
        return float(self._random.random()) if self._sampling.temperature else 0.0

    def _choose_from_all(self, logits: Logits, draw: float, barred: Collection[int] = ()) -> int:
        """Choose from all logits. Sorting is the slowest part, so sort only as many as needed."""
        sampling = self._sampling
        _require_finite(logits.max())
        logits = self._adjusted(logits, barred)
        if sampling.temperature == 0:
            return int(logits.argmax())
        counts = (*(count for count in SORTED_COUNTS if count < len(logits)), len(logits))
        tokens = (self._decide(TopLogits.from_logits(logits, count, sampling.temperature), draw) for count in counts)
        return next(token for token in tokens if token is not None)

    def _adjusted(self, logits: Logits, barred: Collection[int]) -> Logits:
        """Apply the bias and all penalties. The logits of barred tokens become -inf."""
        sampling = self._sampling
        if self._bias is not None:
            logits = logits + self._bias
        if sampling.repetition_penalty != 1:
            logits = penalize(logits, self._seen, sampling.repetition_penalty)
        if self._counts is not None:
            logits = logits - np.float32(sampling.frequency_penalty) * self._counts
            logits[self._counts > 0] -= np.float32(sampling.presence_penalty)
        if barred:
            logits = logits.copy()
            logits[list(barred)] = -np.inf
        return logits

    def _decide(self, top: TopLogits, draw: float) -> int | None:
        """Return the token that a draw from [0, 1) selects, or None if the top logits do not determine it."""
        if not len(top.ids):
            return None
        if self._sampling.temperature == 0:
            return int(top.ids[0])
        filtered = self._filtered(top)
        if filtered is None:
            return None
        weights, other_weight = filtered
        sums = np.cumsum(weights)
        first, last = (int(np.searchsorted(sums, draw * (sums[-1] + other), side="right")) for other in other_weight)
        return int(top.ids[first]) if first == last < len(sums) else None

    def _filtered(self, top: TopLogits) -> tuple[npt.NDArray[np.float64], Bounds] | None:
        """Apply all filters.

        Returns:
            The weights of the top logits that are kept, which are the first ones, and bounds on the weight of the other
            tokens that are kept. None if the bounds do not determine which top logits are kept.
        """
        sampling, weights, other_weight = self._sampling, top.weights, top.other_weight
        if sampling.top_k:
            last = top.logits[min(sampling.top_k, len(weights)) - 1]
            if sampling.top_k <= len(weights) and last > top.max_other:
                weights, other_weight = weights[: int((top.logits >= last).sum())], NO_WEIGHT
            else:
                other_weight = (0.0, other_weight[1])
        fewest = most = len(weights)
        keeps_no_other = other_weight == NO_WEIGHT
        if sampling.top_p < 1:
            sums = np.cumsum(weights)
            targets = [sampling.top_p * (sums[-1] + other) for other in other_weight]
            # A token is kept if the sum before it is still below the target.
            fewest, most = (1 + int(np.searchsorted(sums[:-1], target, side="left")) for target in targets)
            keeps_no_other = keeps_no_other or bool(sums[-1] >= targets[1])
        if sampling.min_p:
            likely = int((weights >= sampling.min_p).sum())
            fewest, most = min(fewest, likely), min(most, likely)
            max_other = float(np.exp((np.float64(top.max_other) - top.logits[0]) / sampling.temperature))
            keeps_no_other = keeps_no_other or max_other < sampling.min_p
        if fewest != most:
            return None
        is_filtered = sampling.top_p < 1 or sampling.min_p > 0
        bounds = NO_WEIGHT if keeps_no_other else (0.0 if is_filtered else other_weight[0], other_weight[1])
        return weights[:fewest], bounds


def _bias_of(sampling: Sampling, vocab_size: int) -> Logits | None:
    """Return the bias of every logit, or None if there is none."""
    pairs = dict(sampling.logit_bias)
    if not pairs:
        return None
    if max(pairs) >= vocab_size:
        raise InputError(
            f"logit_bias has token {max(pairs)}, outside the vocabulary of {vocab_size} entries.",
            "Use ids of the package's own tokenizer.",
        )
    bias = np.zeros(vocab_size, dtype=np.float32)
    bias[list(pairs)] = list(pairs.values())
    return bias


def _require_finite(largest: np.float32) -> None:
    """Check the largest logit, which is NaN if any logit is."""
    if not np.isfinite(largest):
        raise NotFiniteError(
            "The logits are not finite.",
            "Convert the checkpoint in another precision, such as bf16 or fp32: a value was too large for this one.",
        )
