"""The laws of the state contract, measured on a package. Each function returns its checks."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import psutil

from liger_export.runtime import SavedState, Session
from liger_export.state import StateTensor, bytes_per_session
from liger_export.validate.compare import add_block, relative_l2
from liger_export.validate.reference import TorchReference
from liger_export.validate.report import Check, LogitParity

__all__ = ["check_batch_and_padding", "check_drift", "check_handover", "check_logits", "check_memory", "check_splits"]

FP32_RELATIVE_L2 = 1e-5  # design, section 6
DRIFT_RATIO = 2.0
DRIFT_BLOCK = 128
GROWTH_ROUNDS = 3
RESIDENT_NOISE = 64 << 10  # bytes: what the allocator and the kernel move about

Tokens = npt.NDArray[np.int64]


def check_logits(session: Session, reference: TorchReference, blocks: list[Tokens]) -> Iterator[Check]:
    """One call over each block of text, against the full-sequence PyTorch forward."""
    parity = LogitParity()
    for block in blocks:
        session.reset()
        add_block(parity, session.all_logits(block.tolist()), reference.logits(block), block[1:])
    detail = f"{parity.positions:,} tokens, {len(blocks)} sequences"
    yield Check("logits: relative L2", parity.relative_l2, FP32_RELATIVE_L2, detail=detail)
    yield Check("logits: max abs difference", parity.max_abs, detail=detail)
    yield Check("logits: mean KL (nats)", parity.kl / parity.positions, detail=detail)
    yield Check("logits: top-1 agreement", parity.top1 / parity.positions, 1.0, at_least=True, detail=detail)
    yield Check("perplexity: package", float(np.exp(parity.measured_nll / parity.scored)), detail=detail)
    yield Check("perplexity: PyTorch", float(np.exp(parity.reference_nll / parity.scored)), detail=detail)


def check_splits(session: Session, tokens: Tokens, windows: list[int], seed: int = 0) -> Iterator[Check]:
    """Law 1: any way of cutting a sequence into calls gives the same logits and final state."""
    tokens = tokens[: windows[-1] + 2 * windows[0] + 17]
    session.reset()
    whole, final = session.all_logits(tokens.tolist()), session.state()
    random = np.random.default_rng(seed)
    worst_logits = worst_state = 0.0
    cuts = [np.sort(random.choice(np.arange(1, len(tokens)), size, replace=False)) for size in (1, 2, 5, 16)]
    for cut in [*cuts, np.arange(1, len(tokens))]:
        session.reset()
        parts = [session.all_logits(part.tolist()) for part in np.split(tokens, cut)]
        worst_logits = np.maximum(worst_logits, relative_l2(np.concatenate(parts), whole))
        worst_state = np.maximum(worst_state, _state_distance(session.state(), final))
    detail = f"{len(tokens)} tokens cut 5 ways"
    yield Check("any split: logits, relative L2", float(worst_logits), FP32_RELATIVE_L2, detail=detail)
    yield Check("any split: final state, relative L2", float(worst_state), FP32_RELATIVE_L2, detail=detail)


def check_drift(
    session: Session, reference: TorchReference, tokens: Tokens, windows: list[int], steps: int
) -> Iterator[Check]:
    """Law 2: single steps equal the full-sequence forward, at each window's edge and far past it."""
    tokens = tokens[:steps]
    expected = reference.logits(tokens)
    session.reset()
    stepped = np.stack([session.step(int(token)) for token in tokens])
    edges = {edge for window in windows for edge in (window - 1, window, window + 1, 2 * window, 10 * window)}
    for position in sorted(edge for edge in edges if edge < len(tokens)):
        error = relative_l2(stepped[position], expected[position])
        yield Check("single steps: relative L2", error, FP32_RELATIVE_L2, detail=f"at position {position}")
    first = relative_l2(stepped[:DRIFT_BLOCK], expected[:DRIFT_BLOCK])
    last = relative_l2(stepped[-DRIFT_BLOCK:], expected[-DRIFT_BLOCK:])
    detail = f"{last:.1e} / {first:.1e}, {len(tokens):,} steps"
    yield Check("drift: last steps / first steps", last / first, DRIFT_RATIO, detail=detail)


def check_batch_and_padding(session: Session, tokens: Tokens, window_size: int) -> Iterator[Check]:
    """Law 3: neighbours in a batch and poisoned rows past the sequence's length change nothing."""
    length = window_size // 2 + 1
    rows = np.stack([tokens[:length], tokens[length : 2 * length]])
    table = session.manifest.state
    zeros = {entry.past_name: np.zeros((2, *entry.shape), dtype=entry.dtype) for entry in table}
    batched = session.run(rows, 0, zeros)[0]
    single = [session.run(row[None], 0, {name: past[:1] for name, past in zeros.items()})[0][0] for row in rows]
    error = relative_l2(batched, np.stack(single))
    yield Check("batch neighbours: relative L2", error, FP32_RELATIVE_L2, detail=f"2 rows of {length} tokens")

    clean, poisoned = session.run(rows, 0, zeros)[1], {}
    for entry in table:
        past = clean[entry.past_name].copy()
        if entry.name in ("key", "value"):
            past[:, :, length:] = np.nan
        poisoned[entry.past_name] = past
    untouched = session.run(rows, length, clean)[0]
    changed = float(np.abs(session.run(rows, length, poisoned)[0] - untouched).max())
    yield Check("NaN in unused window rows: change", changed, 0.0, detail=f"window holds {length} of {window_size}")


def check_handover(session: Session, reference: TorchReference, tokens: Tokens, window_size: int) -> Iterator[Check]:
    """Law 4: a state saved by one backend continues on the other."""
    tokens = tokens[: 4 * window_size]
    head, tail = np.split(tokens, [window_size + window_size // 2])
    expected = reference.logits(tokens)[len(head) :]
    table = session.manifest.state

    session.reset()
    session.all_logits(head.tolist())
    detail = f"after {len(head)} tokens"
    error = relative_l2(reference.continued(session.state(), table, tail), expected)
    yield Check("state to PyTorch: relative L2", error, FP32_RELATIVE_L2, detail=detail)
    session.load_state(reference.state_after(head, table))
    error = relative_l2(session.all_logits(tail.tolist()), expected)
    yield Check("state from PyTorch: relative L2", error, FP32_RELATIVE_L2, detail=detail)


def check_memory(
    session: Session, tokens: Tokens, table: tuple[StateTensor, ...], steps: int = 1024
) -> Iterator[Check]:
    """State bytes are those of the table, and the process does not grow while stepping."""
    yield Check("state: bytes per session", session.state_bytes, detail="one set of buffers")
    difference = abs(session.state_bytes - bytes_per_session(table))
    yield Check("state: bytes off the table", difference, 0, detail=f"{len(table)} tensors")
    session.reset()
    warm = len(tokens) // 4
    for token in np.resize(tokens, warm):
        session.step(int(token))
    addresses = session.buffer_addresses()
    growths = [_growth_while_stepping(session, np.resize(tokens, steps)) for _ in range(GROWTH_ROUNDS)]
    moved = len(set(session.buffer_addresses()) ^ set(addresses))
    yield Check("state: buffers moved or added", moved, 0, detail=f"{GROWTH_ROUNDS * steps:,} steps")
    # A leak shows in every round; what other threads of the process allocate does not.
    detail = f"least of {GROWTH_ROUNDS} times {steps:,} steps"
    yield Check("process: resident bytes grown", min(growths), RESIDENT_NOISE, detail=detail)


def _growth_while_stepping(session: Session, tokens: Tokens) -> int:
    before = _resident_bytes()
    for token in tokens:
        session.step(int(token))
    return _resident_bytes() - before


def _state_distance(measured: SavedState, reference: SavedState) -> float:
    return max(relative_l2(measured.tensors[name], tensor) for name, tensor in reference.tensors.items())


def _resident_bytes() -> int:
    resident: int = psutil.Process().memory_info().rss
    return resident
