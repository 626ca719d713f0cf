"""The laws of the state contract, measured on a package. Each function yields its checks."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from liger_export.parity.compare import LogitParity, kl_by_position, relative_l2, state_distance
from liger_export.parity.finite import require_finite
from liger_export.parity.report import Check
from liger_export.parity.tolerances import NOISE_RATIO, Tolerances
from liger_export.runtime import Session
from liger_export.runtime.dtypes import narrowed, numpy_dtype
from liger_export.runtime.growth import Growth
from liger_export.state import bytes_per_session
from liger_export.validate.reference import TorchReference

__all__ = [
    "Subjects",
    "check_batch_and_padding",
    "check_drift",
    "check_handover",
    "check_logits",
    "check_memory",
    "check_splits",
    "measure_noise",
]

DRIFT_RATIO = 2.0
DRIFT_BLOCK = 128
NOISE_TOKENS, NUDGE = 512, 1e-6
NOT_A_NUMBER = np.array([np.nan], dtype=np.float32)

Array = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
Tokens = npt.NDArray[np.int64]
PREFIX_TAIL = 64  # tokens read after the state that a package ships


@dataclass(frozen=True, slots=True)
class Subjects:
    """The two implementations to compare.

    Attributes:
        session: the package.
        reference: the model in PyTorch.
        tolerances: the bounds for the package.
    """

    session: Session
    reference: TorchReference
    tolerances: Tolerances

    def package_logits(self, tokens: Tokens) -> Array:
        """Logits [T, vocab_size] that the package computes for a whole sequence in one call."""
        self.session.reset()
        return self.session.all_logits(tokens.tolist())

    def stepped_logits(self, tokens: Tokens) -> Array:
        """Logits [T, vocab_size] that the package computes for a whole sequence in single steps."""
        self.session.reset()
        return np.stack([self.session.step(int(token)) for token in tokens])

    def expected_logits(self, tokens: Tokens) -> Array:
        """Logits [T, vocab_size] that the laws compare with: PyTorch's, or the package's own if it has fewer bits."""
        return self.reference.logits(tokens) if self.tolerances.exact else self.package_logits(tokens)


def check_logits(subjects: Subjects, blocks: list[Tokens]) -> Iterator[Check]:
    """Compare one call per block of text with PyTorch's full-sequence forward.

    Raises:
        NotFiniteError: the package's logits are not finite.
    """
    parity = LogitParity()
    for block in blocks:
        measured = subjects.package_logits(block)
        require_finite(subjects.session, block, measured)
        parity.add_block(measured, subjects.reference.logits(block), block[1:])
    detail = f"{parity.positions:,} tokens, {len(blocks)} sequences"
    yield from subjects.tolerances.logit_checks(parity, detail)


def measure_noise(subjects: Subjects, tokens: Tokens, window_size: int) -> tuple[Wide, Check]:
    """Measure how much roundings alone change the logits of an integer package.

    Such a package rounds activations to 8 bits. A difference in the last bit decides how some of them are rounded, so
    it grows until all later roundings differ, and no further. Two runs of the same call on states that differ by one
    part in a million show how far apart that is.

    Returns:
        The KL divergence of the two runs by position, float64 [T], and a check that its mean is at most twice the
        package's own distance from PyTorch.
    """
    session, tolerances = subjects.session, subjects.tolerances
    length = min(window_size, len(tokens) - NOISE_TOKENS)
    head, tail = np.split(tokens[: length + NOISE_TOKENS], [length])
    session.reset()
    session.all_logits(head.tolist())
    state = session.state()
    measured = session.all_logits(tail.tolist())
    random = np.random.default_rng(0)
    nudged = {
        name: tensor * (1 + NUDGE * random.uniform(-1, 1, tensor.shape).astype(np.float32))
        for name, tensor in state.tensors.items()
        if tensor.dtype == np.float32
    }
    session.load_state(replace(state, tensors={**state.tensors, **nudged}))
    noise = kl_by_position(session.all_logits(tail.tolist()), measured)
    own = tolerances.distance(measured, subjects.reference.logits(tokens[: len(head) + len(tail)])[len(head) :])
    detail = f"states that differ by {NUDGE:.0e}, {len(tail):,} tokens"
    return noise, Check("rounding noise: mean KL (nats)", float(noise.mean()), NOISE_RATIO * own, detail=detail)


def check_splits(subjects: Subjects, tokens: Tokens, windows: list[int], seed: int = 0) -> Iterator[Check]:
    """Law 1: any split of a sequence into calls gives the same logits and the same final state."""
    session, tolerances = subjects.session, subjects.tolerances
    tokens = tokens[: windows[-1] + 2 * windows[0] + 17]
    whole = subjects.package_logits(tokens)
    final = session.state()
    random = np.random.default_rng(seed)
    checks, worst_state = [], 0.0
    cuts = [np.sort(random.choice(np.arange(1, len(tokens)), size, replace=False)) for size in (1, 2, 5, 16)]
    detail = f"{len(tokens)} tokens cut 5 ways"
    for cut in [*cuts, np.arange(1, len(tokens))]:
        session.reset()
        parts = [session.all_logits(part.tolist()) for part in np.split(tokens, cut)]
        checks.append(tolerances.check("any split, logits", np.concatenate(parts), whole, detail))
        worst_state = float(np.maximum(worst_state, state_distance(session.state(), final)))
    yield max(checks, key=lambda check: np.nan_to_num(check.value, nan=np.inf))
    bound = tolerances.bound if tolerances.exact else None  # with fewer bits only the logits are bounded
    yield Check("any split, final state: relative L2", worst_state, bound, detail=detail)


def check_drift(subjects: Subjects, tokens: Tokens, windows: list[int], steps: int) -> Iterator[Check]:
    """Law 2: single steps equal the full-sequence forward, at the edge of each window and far past it.

    Drift is growth beyond rounding. So the error of the last steps is divided by the error of steps without history
    (the first steps, and the last steps' tokens read as the start of a text, because some tokens round more than
    others), or by what rounding explains after as many steps, whichever is largest.
    """
    tokens = tokens[:steps]
    expected, stepped = subjects.expected_logits(tokens), subjects.stepped_logits(tokens)
    edges = {edge for window in windows for edge in (window - 1, window, window + 1, 2 * window, 10 * window)}
    for position in sorted(edge for edge in edges if edge < len(tokens)):
        detail = f"at position {position}"
        yield subjects.tolerances.check("single steps", stepped[position], expected[position], detail)
    first = relative_l2(stepped[:DRIFT_BLOCK], expected[:DRIFT_BLOCK])
    last = relative_l2(stepped[-DRIFT_BLOCK:], expected[-DRIFT_BLOCK:])
    restarted = tokens[-DRIFT_BLOCK:]
    again = relative_l2(subjects.stepped_logits(restarted), subjects.expected_logits(restarted))
    noise = float(np.max([first, again, subjects.tolerances.noise_after(steps)]))  # keeps NaN, which max() may drop
    detail = f"{last:.1e} / {noise:.1e}, {len(tokens):,} steps"
    yield Check("drift: last steps / first steps", last / noise, DRIFT_RATIO, detail=detail)


def check_batch_and_padding(subjects: Subjects, tokens: Tokens, window_size: int) -> Iterator[Check]:
    """Law 3: other sequences in the batch and NaN in unused rows of the window change nothing."""
    session = subjects.session
    length = window_size // 2 + 1
    rows = np.stack([tokens[:length], tokens[length : 2 * length]])
    table = session.manifest.state
    zeros = {entry.past_name: np.zeros((2, *entry.shape), dtype=numpy_dtype(entry.dtype)) for entry in table}
    batched = session.run(rows, 0, zeros)[0]
    single = [session.run(row[None], 0, {name: past[:1] for name, past in zeros.items()})[0][0] for row in rows]
    yield subjects.tolerances.check("batch neighbours", batched, np.stack(single), f"2 rows of {length} tokens")

    clean, poisoned = session.run(rows, 0, zeros)[1], {}
    for entry in table:
        past = clean[entry.past_name].copy()
        if entry.name in ("key", "value"):
            past[:, :, length:] = narrowed(NOT_A_NUMBER, entry.dtype)
        poisoned[entry.past_name] = past
    untouched = session.run(rows, length, clean)[0]
    changed = float(np.abs(session.run(rows, length, poisoned)[0] - untouched).max())
    yield Check("NaN in unused window rows: change", changed, 0.0, detail=f"window holds {length} of {window_size}")


def check_handover(subjects: Subjects, tokens: Tokens, window_size: int) -> Iterator[Check]:
    """Law 4: a state saved by the package continues in PyTorch, and the reverse."""
    session, reference = subjects.session, subjects.reference
    tokens = tokens[: 4 * window_size]
    head, tail = np.split(tokens, [window_size + window_size // 2])
    table = session.manifest.state
    package, torch = subjects.package_logits(tokens)[len(head) :], reference.logits(tokens)[len(head) :]

    session.reset()
    session.all_logits(head.tolist())
    detail = f"after {len(head)} tokens"
    continued = reference.continued(session.state(), table, tail)
    yield subjects.tolerances.handover_check("state to PyTorch", continued, package, torch, detail)
    session.load_state(reference.state_after(head, table))
    continued = session.all_logits(tail.tolist())
    yield subjects.tolerances.handover_check("state from PyTorch", continued, package, torch, detail)


def check_prefix(subjects: Subjects, tokens: Tokens) -> Iterator[Check]:
    """Check that the state that a package ships, if it does, is that of its text."""
    session = subjects.session
    if session.prefix is None:
        return
    prefix, tail = session.prefix, tokens[:PREFIX_TAIL].tolist()
    session.reset()
    expected = [session.prefill(prefix.tokens), *session.all_logits(tail)]
    session.load_state(prefix.state)
    assert prefix.state.logits is not None
    measured = [prefix.state.logits, *session.all_logits(tail)]
    detail = f"after {len(prefix.tokens):,} tokens"
    yield subjects.tolerances.check("shipped prefix", np.array(measured), np.array(expected), detail)


def check_memory(session: Session, growth: Growth | None, steps: int = 1024) -> Iterator[Check]:
    """Check that the state has the table's size and keeps its buffers and, if measured, that memory does not grow."""
    table = session.manifest.state
    yield Check("state: bytes per session", session.state_bytes, detail="one set of tensors")
    difference = abs(session.state_bytes - bytes_per_session(table))
    yield Check("state: bytes off the table", difference, 0, detail=f"{len(table)} tensors")
    addresses = session.buffer_addresses()
    for _ in range(steps):
        session.step(0)
    moved = len(set(session.buffer_addresses()) ^ set(addresses))
    yield Check("state: buffers moved or added", moved, 0, detail=f"{steps:,} steps")
    if growth is None:
        return
    text = "" if growth.texts == 1 else f", text {growth.texts}"
    detail = f"token {growth.from_token} to {growth.to_token:,}{text}, in a separate process"
    yield Check("memory: bytes grown", growth.bytes_grown, 0, detail=detail)
    yield Check("memory: bytes grown a token, slope", growth.bytes_per_token, detail=detail)
