"""Prompt lookup: reading guesses of the next tokens together with the last one chosen (arXiv 2304.04487)."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from liger_export.errors import InputError
from liger_export.runtime.executor import AheadExecutor, Executor, Logits, Prediction, StoredPrediction
from liger_export.runtime.guesses import Budget, Guesses
from liger_export.runtime.record import TextRecord

__all__ = ["Lookup"]


class Lookup:
    """Predicts the tokens of one continuation, some of them from the call that predicted an earlier one.

    A call reads the pending tokens and guesses of the next ones, but the executor stays in the state before them. If
    all guesses are right, it goes to the state after them. Otherwise the right ones are added to the pending tokens,
    which the next call reads again. Hence a wrong guess never enters the state.

    The logits are those of calls of one token, bit by bit (``AheadExecutor.exact``), and each token is chosen from the
    logits after those before it. So the text is that of the loop without guesses, for any way to choose tokens.
    """

    def __init__(self, text: TextRecord, context: Sequence[int], most: int) -> None:
        """Start to guess.

        Args:
            text: The text that is continued.
            context: Its last tokens, in which guesses are found.
            most: Largest number of guesses per call.

        Raises:
            InputError: The graph does not read several tokens exactly as one by one.
        """
        self._text = text
        self._executor = _ahead(text.executor)
        self._guesses = Guesses(context)
        self._budget = Budget()
        self._most = most
        self._rows: deque[Logits] = deque()  # logits after each guess that is not compared yet
        self._guessed: deque[int] = deque()  # these guesses
        self._asked = 0  # guesses of the last call

    def predict(self) -> Prediction | None:
        """Predict the token after the pending ones from the last call, or from a new one with guesses.

        Returns None without guesses. A token must be pending.
        """
        text = self._text
        if self._guessed:
            if text.pending[-1] == self._guessed[0]:
                return self._after_right_guess()
            self._budget.spend(self._asked, self._asked - len(self._guessed))
            self._guessed.clear()
        room = self._executor.exact - len(text.pending)
        guesses = self._guesses.after(min(self._most, room, self._budget.most))
        if not guesses:
            if len(text.pending) > 1:  # all of them in one call
                text.read_pending(len(text.pending))
            return None
        tokens = np.array([*text.pending, *guesses], dtype=np.int64)
        text.check_length(self._executor.position + len(tokens))
        text.seen[text.pending] = True
        self._rows = deque(self._executor.read_ahead(tokens, len(guesses) + 1))
        self._guessed, self._asked = deque(guesses), len(guesses)
        return StoredPrediction(self._rows.popleft())

    def follow(self, token: int | None, *, is_last: bool) -> None:
        """Record the token that was chosen, None for an end of the text.

        At the end, tokens that were only compared are read, so that the session is as after the loop without guesses.
        """
        if token is not None:
            self._guesses.append(token)
            self._budget.earn()
        if is_last:
            self._text.read_pending(len(self._text.pending) - (token is not None))

    def _after_right_guess(self) -> Prediction:
        text, logits = self._text, StoredPrediction(self._rows.popleft())
        text.seen[self._guessed.popleft()] = True
        if not self._guessed:
            self._budget.spend(self._asked, self._asked)
            self._executor.adopt()
            tokens, text.pending = np.array(text.pending, dtype=np.int64), []
            text.record(tokens, logits)
        return logits


def _ahead(executor: Executor) -> AheadExecutor:
    ahead = executor.ahead()
    if ahead is None:
        raise InputError(
            "This graph reads several tokens with other rounding than one by one, so lookup could change the text.",
            "Use the fused graph of a model without softmax layers on a CPU (convert --lowering fused), or lookup=0.",
        )
    return ahead
