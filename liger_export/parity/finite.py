"""Check that the logits of a text are finite."""

import numpy as np
import numpy.typing as npt

from liger_export.runtime import Session
from liger_export.runtime.finite import not_finite

__all__ = ["require_finite"]


def require_finite(session: Session, tokens: npt.NDArray[np.int64], logits: npt.NDArray[np.float32]) -> None:
    """Check logits [T, vocab_size] that a session computed after each token of a text, int64 [T].

    Raises:
        NotFiniteError: the largest logit after a token is infinite, or a logit is NaN. The error names the place in the
            model, for which the session reads the text again.
    """
    failed = np.flatnonzero(~np.isfinite(logits.max(-1)))
    if failed.size:
        session.reset()
        last = session.prefill(tokens[: failed[0] + 1].tolist())
        raise not_finite(session.manifest, session.state().tensors, last)
