"""Guesses of the next tokens of a text: those that followed its last tokens before."""

from collections.abc import Sequence

__all__ = ["Budget", "Guesses", "cost", "expected_gains"]

MATCHED, LONGEST = 3, 16  # last tokens by which an earlier place is found; longer matches count as the longest
MOST_REMEMBERED = 1 << 15  # tokens; half of them are forgotten when there are more

# How often the token after a match is the next one: a first estimate for short and for long matches, the number of
# outcomes that it counts as, and the number of latest outcomes that matter.
SHORT_RATE, LONG_RATE, LONG = 0.5, 0.85, 9
FIRST_WEIGHT, MOST_WEIGHT = 4, 24

# In units of one step: what a call of several tokens costs more than a step, and what each token after the first costs.
CALL_COST, TOKEN_COST = 0.35, 0.35
FIRST_BUDGET, MOST_BUDGET = 4.0, 8.0
EARNED = 0.02  # by each token: what wrong guesses may cost in the long run


class Guesses:
    """The place where the last tokens of a text were before, in memory that does not grow.

    A place is kept while the text goes on as it did there. All tokens of the text, those of the prompt included, show
    how often that is so, by the number of tokens that match. So it costs nothing to learn whether guesses are right.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        """Index a text."""
        self._tokens: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # index of the token that followed, at the last occurrence
        self._place: int | None = None
        self._matched = 0
        self._rates = [_first_rate(matched) for matched in range(LONGEST + 1)]
        self._weights = [FIRST_WEIGHT] * (LONGEST + 1)
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """Add the next token of the text."""
        is_right = self._place is not None and self._tokens[self._place] == token
        if self._place is not None:
            self._learn(is_right)
        if len(self._tokens) == MOST_REMEMBERED:
            self._forget()
            is_right = False
        if len(self._tokens) >= MATCHED:
            self._next[tuple(self._tokens[-MATCHED:])] = len(self._tokens)
        self._tokens.append(token)
        if is_right and self._place is not None:
            self._place, self._matched = self._place + 1, min(self._matched + 1, LONGEST)
        else:
            self._find()

    def after(self, most: int) -> list[int]:
        """Guess the next tokens: as many as promise the largest gain, up to ``most``; none if no number does.

        A text that repeats itself is continued beyond what there is of it.
        """
        if self._place is None:
            return []
        gains = expected_gains([self._rates[min(self._matched + index, LONGEST)] for index in range(most)])
        count = max(range(most + 1), key=gains.__getitem__)
        text = self._tokens[self._place :]
        return [text[index % len(text)] for index in range(count)]

    def _learn(self, is_right: bool) -> None:
        weight = self._weights[self._matched] = min(self._weights[self._matched] + 1, MOST_WEIGHT)
        self._rates[self._matched] += (is_right - self._rates[self._matched]) / weight

    def _find(self) -> None:
        """Find the last tokens' previous place, and the number of tokens that match there."""
        tokens = self._tokens
        self._place = place = self._next.get(tuple(tokens[-MATCHED:]))
        if place is None:
            return
        matched, end = MATCHED, len(tokens)
        while matched < min(LONGEST, place) and tokens[place - matched - 1] == tokens[end - matched - 1]:
            matched += 1
        self._matched = matched

    def _forget(self) -> None:
        half = MOST_REMEMBERED // 2
        self._tokens = self._tokens[half:]
        self._next = {last: index - half for last, index in self._next.items() if index >= half + MATCHED}
        self._place = None


class Budget:
    """The time that wrong guesses may cost, from a model of costs: the same text is always read in the same calls."""

    def __init__(self) -> None:
        self._left = FIRST_BUDGET

    @property
    def most(self) -> int:
        """Largest number of guesses that may all be wrong."""
        return max(int((self._left - cost(1) - CALL_COST) / TOKEN_COST), 0)

    def spend(self, guessed: int, right: int) -> None:
        """Record a call with guesses, of which the first ``right`` ones were right."""
        again = 0.0 if right == guessed else cost(right + 1)  # the next call reads these and the token before them
        self._left = min(self._left + right - cost(guessed) - again, MOST_BUDGET)

    def earn(self) -> None:
        """Record a token of the text."""
        self._left = min(self._left + EARNED, MOST_BUDGET)


def cost(added: int) -> float:
    """Estimate how many steps more than one a call of ``added`` tokens more than one takes."""
    return CALL_COST + TOKEN_COST * added


def expected_gains(rates: Sequence[float]) -> list[float]:
    """Return the steps that 0, 1, 2, ... guesses are expected to save.

    Args:
        rates: The probability of each guess to be right if all before it are.
    """
    gains, all_right, right, again = [0.0], 1.0, 0.0, 0.0
    for count, rate in enumerate(rates, start=1):
        again += all_right * (1 - rate) * cost(count)
        all_right *= rate
        right += all_right
        gains.append(right - cost(count) - again)
    return gains


def _first_rate(matched: int) -> float:
    return SHORT_RATE + (LONG_RATE - SHORT_RATE) * min(max(matched - MATCHED, 0) / (LONG - MATCHED), 1)
