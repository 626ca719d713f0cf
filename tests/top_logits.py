"""Reference results of ``liger::Candidates``, from a sort and a sum, and logits to test it with."""

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]


def naive_top_logits(logits: Logits, count: int, temperature: float) -> Logits:
    """Return a row [1 + 2 count] for logits [V]: the sum of all weights, the largest logits, their tokens."""
    wide = logits.astype(np.float64)
    order = np.argsort(-wide, kind="stable")[:count]
    row = np.full(1 + 2 * count, -np.inf)
    row[1 + count :] = -1
    row[0] = np.exp((wide - wide.max()) / temperature).sum()
    row[1 : 1 + len(order)] = wide[order]
    row[1 + count : 1 + count + len(order)] = order
    return row.astype(np.float32)


def assert_top_logits(found: Logits, logits: Logits, temperature: float) -> None:
    """Check rows [B, 1 + 2 K] for the last of logits [B, T, V]: bit for bit, and the sum to 1e-5."""
    for row, values in zip(found, logits[:, -1], strict=True):
        expected = naive_top_logits(values, len(row) // 2, temperature)
        assert np.array_equal(row[1:], expected[1:])
        assert abs(row[0] / expected[0] - 1) < 1e-5


def tied_logits(seed: int, shape: tuple[int, ...], distinct: int) -> Logits:
    """Return logits with few distinct values, including zeros of both signs."""
    generator = np.random.default_rng(seed)
    logits = (generator.integers(0, distinct, shape) - distinct // 2).astype(np.float32)
    logits[generator.random(shape) < 0.3] *= np.float32(-0.0) if distinct == 1 else np.float32(1)
    return logits
