"""Checks of a saved state before a session continues from it."""

import json

import numpy as np

from liger_export.errors import InputError
from liger_export.package import Manifest
from liger_export.runtime.dtypes import is_finite
from liger_export.runtime.executor import Logits
from liger_export.runtime.prompt import checked_tokens
from liger_export.runtime.record import NO_TOKENS
from liger_export.runtime.saved_state import SavedState, model_identity
from liger_export.runtime.state_buffers import require_tensors

__all__ = ["random_of", "require_loadable"]


def require_loadable(state: SavedState, manifest: Manifest) -> None:
    """Raise InputError if a state is of another model, is damaged, or holds NaN or infinity."""
    if not isinstance(state, SavedState):
        raise InputError(f"{state!r} is not a saved state.", "Pass a SavedState, such as SavedState.read(path).")
    if state.model not in (None, model_identity(manifest)):
        raise InputError(
            f"The saved state belongs to another model, not to {manifest.source['name']}.",
            "Load it with a package of the checkpoint that it is from.",
        )
    vocab_size = manifest.model_config.vocab_size
    for tokens in (state.pending, state.recent, NO_TOKENS if state.seen is None else state.seen):
        checked_tokens(tokens, vocab_size)
    if state.logits is not None and not _is_row(state.logits, vocab_size):
        raise InputError(
            f"The saved state's logits are not [{vocab_size}] finite float32 values.", "Load a state that save wrote."
        )
    if not isinstance(state.digest, str | None):
        raise InputError(f"The saved state's digest is {state.digest!r}.", "Load a state that save wrote.")
    require_tensors(manifest.state, state.tensors)
    for name, tensor in state.tensors.items():
        if isinstance(tensor, np.ndarray) and not is_finite(tensor):
            raise InputError(
                f"The saved state's {name} contains NaN or infinity.", "Load one from before, or start a new text."
            )


def random_of(state: SavedState) -> np.random.Generator:
    """Return a random generator in the state that a saved state, which has one, describes. Raises InputError."""
    generator = np.random.default_rng()
    try:
        generator.bit_generator.state = json.loads(state.random or "")
    except Exception as error:  # numpy raises errors of several types for a damaged state
        raise InputError(
            f"The saved state's random numbers are damaged ({error!r}).", "Load a state that save wrote."
        ) from error
    return generator


def _is_row(logits: Logits, size: int) -> bool:
    """Return True for finite logits of a whole vocabulary."""
    is_array = isinstance(logits, np.ndarray)
    return is_array and logits.dtype == np.float32 and logits.shape == (size,) and is_finite(logits)
