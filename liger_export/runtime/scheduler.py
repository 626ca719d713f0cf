"""Many requests to one model at once: a thread that reads their prompts and continues them together."""

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition, Thread

from liger_export.errors import BusyError, InputError
from liger_export.package import FLOAT32_REACH
from liger_export.runtime.closing import Closing
from liger_export.runtime.dynamic import PREFILL_CHUNK
from liger_export.runtime.executor import Prediction, StoredPrediction, Tokens
from liger_export.runtime.pieces import Piece
from liger_export.runtime.prefix_states import PrefixStates
from liger_export.runtime.record import require_reach
from liger_export.runtime.saved_state import SavedState, model_identity
from liger_export.runtime.sequence import Sequence, with_seed_of
from liger_export.runtime.session import Session
from liger_export.runtime.slots import Row, Slots
from liger_export.runtime.streams import Request, Stream

__all__ = ["Scheduler", "Statistics"]


LEAST_SHARED = 64  # tokens that a state where texts part must save to be stored


@dataclass(frozen=True, slots=True)
class Statistics:
    """Present work of a scheduler, and totals since its start.

    Attributes:
        slots: Largest number of sequences at once.
        active: Number of sequences that are being read or continued.
        queued: Number of requests that wait for a slot.
        requests: Number of streams that have got a slot.
        prompt_tokens: Number of tokens in their prompts.
        cached_tokens: Number of these that were not read, because a state after them was known.
        generated_tokens: Number of tokens chosen, end-of-text tokens included.
        steps: Number of calls of the model that continued sequences.
    """

    slots: int
    active: int = 0
    queued: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0


class Scheduler(Closing):
    """Answers requests, up to a number of them at once. At the end of a ``with`` block it closes itself.

    Its thread alternates between one chunk of a prompt, each prompt in turn, and one step of all sequences whose
    prompts have been read. So no stream waits longer than one chunk. Every answer is the one that a session on its own
    would give.

    Attributes:
        session: The session whose package is run. Its own text is not touched.
    """

    def __init__(
        self,
        session: Session,
        *,
        slots: int = 8,
        queue_length: int = 64,
        prefix_states: PrefixStates | None = None,
        chunk: int | None = None,
    ) -> None:
        """Allocate the states and start the thread.

        Args:
            session: A session of a package. Engine directories run one sequence at a time.
            slots: Largest number of sequences at once.
            queue_length: Largest number of requests that wait for a slot.
            prefix_states: Provides and receives states of texts.
            chunk: Largest number of tokens of a prompt to read between two steps; None for the device's usual number.

        Raises:
            InputError: A number is less than 1, or the session is one of an engine directory.
        """
        for name, value in (("slots", slots), ("queue_length", queue_length), ("chunk", 1 if chunk is None else chunk)):
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r}.", "It must be a positive integer.")
        self.session = session
        self._model = model_identity(session.manifest)
        has_exact_angles = session.manifest.graphs[session.lowering].exact_angles
        self._max_length = None if has_exact_angles else FLOAT32_REACH
        self._slots = Slots.of(session.executor, slots)
        self._chunk = chunk or PREFILL_CHUNK[session.device]
        self._queue_length = queue_length
        self._prefix_states = prefix_states
        self._changed = Condition()  # guards the queue and whether the scheduler is closing
        self._queue: deque[Sequence] = deque()
        self._is_closing = self._cancels_all = False
        self._reading: deque[Sequence] = deque()
        self._running: dict[Row, Sequence] = {}
        self._counts = Counter[str]()  # fields of ``Statistics``
        self._thread = Thread(target=self._work, name="liger-export scheduler", daemon=True)
        self._thread.start()

    @property
    def statistics(self) -> Statistics:
        """See ``Statistics``."""
        with self._changed:
            return Statistics(self._slots.count, active=len(self._active), queued=self._queued, **self._counts)

    @property
    def is_running(self) -> bool:
        """False after ``close``, and after an error that ended all streams."""
        return not self._is_closing and self._thread.is_alive()

    @property
    def _active(self) -> list[Sequence]:
        """The sequences that have a slot."""
        return [*self._reading, *self._running.values()]

    @property
    def _queued(self) -> int:
        """The number of streams that wait for a slot."""
        waiting = sum(1 + len(sequence.followers) for sequence in self._queue)
        return waiting + sum(len(sequence.followers) for sequence in self._reading)

    def submit(self, request: Request) -> Stream:
        """Queue a request, from any thread, and return the stream of its answer.

        Raises:
            InputError: The prompt has no tokens or one outside the vocabulary, a setting names a token outside it, the
                text is too long for a package of an older format, or the scheduler is closed.
            BusyError: The queue is full.
        """
        return self.submit_several(request, 1)[0]

    def submit_several(self, request: Request, count: int) -> list[Stream]:
        """Queue ``count`` answers to one prompt, which is read once. Raises as ``submit``.

        With a seed, the answers are those to ``count`` requests with the seeds ``seed``, ``seed + 1`` and so on.
        """
        if not isinstance(count, int) or count < 1:
            raise InputError(f"count is {count!r}.", "It must be a positive integer.")
        if request.settings.lookup:
            raise InputError("A scheduler reads one token of each sequence per step.", "Use a session, or lookup=0.")
        require_reach(len(request.prompt) + request.settings.max_new_tokens, self._max_length)
        first, *others = [Sequence(self.session, with_seed_of(request, index)) for index in range(count)]
        first.followers = others
        with self._changed:
            if self._is_closing:
                raise InputError("The scheduler is closed.", "Open another one.")
            free = self._slots.count - len(self._active)
            if self._queued + count > self._queue_length + free:
                raise BusyError("Too many requests are waiting.", "Try again later, or with fewer answers at once.")
            self._queue.append(first)
            self._changed.notify_all()
        return [first.stream, *(each.stream for each in others)]

    def close(self, grace: float = 0.0) -> None:
        """Refuse new requests, let the others go on for up to ``grace`` seconds, then cancel them. Ends the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(grace)
        self._cancels_all = True
        self._thread.join()

    def _work(self) -> None:
        """Run in the scheduler's thread until it is closed and all streams have ended."""
        try:
            self._slots.use()
            while self._wait():
                self._drop_cancelled()
                self._admit()
                self._read_chunk()
                self._step()
        except BaseException as error:  # of ONNX Runtime, such as a lack of memory: nothing can go on
            self._fail(error)

    def _wait(self) -> bool:
        """Wait for work. Returns False when the scheduler is closed and nothing is left to do."""
        with self._changed:
            while not (self._queue or self._active):
                if self._is_closing:
                    return False
                self._changed.wait()
        return True

    def _drop_cancelled(self) -> None:
        """End the cancelled streams and free their slots."""
        with self._changed:
            cancelled = [sequence for sequence in self._queue if self._is_cancelled(sequence)]
            for sequence in cancelled:
                self._queue.remove(sequence)
                self._queue_followers(sequence)
            cancelled += [sequence for sequence in self._active if self._is_cancelled(sequence)]
        for sequence in cancelled:
            self._leave(sequence)
            sequence.cancel()

    def _is_cancelled(self, sequence: Sequence) -> bool:
        return self._cancels_all or sequence.stream.is_cancelled

    def _admit(self) -> None:
        """Give free slots to the first requests of the queue."""
        while True:
            with self._changed:
                if not self._queue or len(self._active) >= self._slots.count:
                    return
                sequence = self._queue.popleft()
                self._reading.append(sequence)
            with self._failing(sequence):
                self._begin(sequence)

    def _begin(self, sequence: Sequence) -> None:
        """Give a slot to a sequence, in the longest known state of a beginning of its prompt."""
        state = sequence.start or self._longest(sequence.prompt)
        row = self._slots.open() if state is None else self._slots.open(state.position, state.tensors)
        sequence.begin(row, state)
        sequence.parting = self._parting(sequence)
        self._counts.update(requests=1, prompt_tokens=len(sequence.prompt), cached_tokens=row.position)
        if state is not None and state.logits is not None and not len(sequence.unread):
            self._finish_prompt(sequence, StoredPrediction(state.logits))

    def _longest(self, prompt: Tokens) -> SavedState | None:
        """Return the longest known state of a beginning of a prompt."""
        known = None if self._prefix_states is None else self._prefix_states.longest(prompt)
        if known is None:
            return None
        length, state = known
        needs_logits = length == len(prompt) and state.logits is None
        if state.position != length or length > len(prompt) or state.model != self._model or needs_logits:
            raise InputError(
                f"The prefix states returned a state that does not fit the first {length} tokens of a prompt.",
                "Return only states that the scheduler has added.",
            )
        return state

    def _parting(self, sequence: Sequence) -> int:
        """Return the place in a prompt where it parts from a known text, if its state is worth storing; else 0."""
        if self._prefix_states is None or not len(sequence.unread):
            return 0
        place = self._prefix_states.shared(sequence.prompt)
        return place if place - sequence.row.position >= LEAST_SHARED and place < len(sequence.prompt) else 0

    def _read_chunk(self) -> None:
        """Read one chunk of one prompt, in turns."""
        if not self._reading:
            return
        sequence = self._reading[0]
        self._reading.rotate(-1)
        to_parting = sequence.parting - sequence.row.position
        tokens = sequence.unread[: min(self._chunk, to_parting) if to_parting > 0 else self._chunk]
        prediction = self._slots.read(sequence.row, tokens, sequence.top_logits_temperature)
        sequence.record(tokens)
        with self._failing(sequence):
            if self._prefix_states is not None and sequence.stream.read_tokens == sequence.parting:
                self._prefix_states.add(sequence.tokens, sequence.saved(self._slots, prediction, self._model))
            if not len(sequence.unread):
                self._finish_prompt(sequence, prediction)

    def _finish_prompt(self, sequence: Sequence, prediction: Prediction) -> None:
        """Choose the first token, and pass on the state after the prompt."""
        piece = self._choose(sequence, prediction)
        if not sequence.is_finished and piece is not None:
            sequence.stream.put(piece)  # before the state is copied, which the reader need not wait for
        self._pass_on(sequence, prediction)
        if sequence.is_finished:
            self._end(sequence, prediction, piece)
            return
        self._slots.join(sequence.row)
        with self._changed:
            self._reading.remove(sequence)
            self._running[sequence.row] = sequence

    def _pass_on(self, sequence: Sequence, prediction: Prediction) -> None:
        """Give the state after a prompt to its followers and to the prefix states."""
        followers, sequence.followers = sequence.followers, []
        is_known = self._prefix_states is None or sequence.stream.cached_tokens == len(sequence.prompt)
        if not followers and is_known:
            return
        state = sequence.saved(self._slots, prediction, self._model)
        for follower in followers:
            follower.start = state
        with self._changed:
            self._queue.extendleft(reversed(followers))
        if self._prefix_states is not None and not is_known:
            self._prefix_states.add(sequence.prompt, state)

    def _step(self) -> None:
        """Read the pending token of every running sequence, and choose the next one."""
        if not self._running:
            return
        sequences = [self._running[row] for row in self._slots.running]
        tokens = [sequence.take_pending() for sequence in sequences]
        temperatures = [sequence.top_logits_temperature for sequence in sequences]
        predictions = self._slots.step(tokens, temperatures)
        self._counts["steps"] += 1
        for sequence, prediction in zip(sequences, predictions, strict=True):
            with self._failing(sequence):
                self._advance(sequence, prediction)

    def _advance(self, sequence: Sequence, prediction: Prediction) -> None:
        """Choose a sequence's next token."""
        piece = self._choose(sequence, prediction)
        if sequence.is_finished:
            self._end(sequence, prediction, piece)
        elif piece is not None:
            sequence.stream.put(piece)

    def _choose(self, sequence: Sequence, prediction: Prediction) -> Piece | None:
        """Choose a sequence's next token. Returns the new piece of text."""
        self._counts["generated_tokens"] += not sequence.is_finished
        return sequence.advance(prediction, self._slots)

    def _end(self, sequence: Sequence, prediction: Prediction, piece: Piece | None) -> None:
        """Store the state at the end of a text, free its slot, and put its last piece."""
        if self._prefix_states is not None and len(sequence.tokens) > len(sequence.prompt):
            self._prefix_states.add(sequence.tokens, sequence.saved(self._slots, prediction, self._model))
        self._leave(sequence)
        if piece is not None:
            sequence.stream.put(piece)

    @contextmanager
    def _failing(self, sequence: Sequence) -> Iterator[None]:
        """End a sequence with the error of the block: of the prefix states, or for logits that are not finite."""
        try:
            yield
        except Exception as error:
            self._leave(sequence)
            sequence.stream.fail(error)

    def _leave(self, sequence: Sequence) -> None:
        """Free a sequence's slot."""
        with self._changed:
            if sequence in self._reading:
                self._reading.remove(sequence)
            row = sequence.release()
            if row is not None:
                self._running.pop(row, None)
            self._queue_followers(sequence)
        if row is not None:
            self._slots.close(row)

    def _queue_followers(self, sequence: Sequence) -> None:
        """Let the first follower of a sequence that has not read its prompt do so in its place."""
        if sequence.followers:
            first, *first.followers = sequence.followers
            sequence.followers = []
            self._queue.appendleft(first)

    def _fail(self, error: BaseException) -> None:
        """End every stream with an error, and refuse new requests."""
        with self._changed:
            self._is_closing = True
            sequences = [*self._queue, *self._active]
            self._queue.clear()
        for sequence in sequences:
            for each in (sequence, *sequence.followers):
                each.stream.fail(error)
