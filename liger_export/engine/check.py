"""Comparison of an engine's graphs with their package on ONNX Runtime, which needs no GPU."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from liger_export.errors import BoundError
from liger_export.package import read_manifest
from liger_export.parity import Check
from liger_export.parity.compare import state_distance
from liger_export.parity.finite import require_finite
from liger_export.parity.opening import open_with_float_products
from liger_export.parity.tolerances import tolerances_of
from liger_export.precision import Precision
from liger_export.runtime import Sampling, SavedState, load

__all__ = ["check_against_package"]


def check_against_package(package: Path, portable: Path, tokens: int) -> dict[str, Any]:
    """Compare portable graphs with their package: prefill calls, single steps and the final state.

    The text is sampled by the package. On a CPU, products with integer weights round their activations to 8 bits. This
    is not a property of the weights, so the package computes these products in float32 here. The bounds are those of a
    package against PyTorch, in the dtype with the fewest bits that either side computes in.

    Args:
        package: directory of the package.
        portable: directory of the graphs, with a manifest.
        tokens: tokens to read; more than a window, so that the window moves.

    Returns:
        The checks, as the manifest records them.

    Raises:
        BoundError: a bound is missed.
        NotFiniteError: the logits of the graphs are not finite.
    """
    text, expected, final = _read_by_package(package, tokens)
    graphs = load(portable)
    computed = {read_manifest(package).activations, graphs.manifest.activations}
    coarsest = next(dtype for dtype in ("bfloat16", "float16", "float32") if dtype in computed)
    tolerances = tolerances_of(Precision(), ["any"], coarsest)
    found = graphs.all_logits(text)  # in prefill calls, if there is a prefill graph
    require_finite(graphs, np.array(text), found)
    engine = graphs.manifest.engine
    has_prefill = engine is not None and engine.chunk > 0
    checks = [tolerances.check("prefill", found, expected, f"{tokens} tokens")] if has_prefill else []
    state = state_distance(graphs.state(), final)
    graphs.reset()
    stepped = np.stack([graphs.step(token) for token in text])
    checks.append(tolerances.check("single steps", stepped, expected, f"{tokens} tokens"))
    bound = tolerances.bound if tolerances.exact else None
    checks.append(Check("final state: relative L2", state, bound))
    missed = [check for check in checks if not check.passed]
    if missed:
        raise BoundError(
            f"The portable graphs miss a bound: {missed[0].name} {missed[0].value:.2g}, at most {missed[0].bound:g}.",
            "Validate the package. If it passes, choose activations with more bits, or report this model as a bug.",
        )
    return {
        "activations": graphs.manifest.activations,
        "against": package.resolve().name,
        "checks": [{"name": each.name, "value": each.value, "bound": each.bound} for each in checks],
    }


def _read_by_package(package: Path, count: int) -> tuple[list[int], npt.NDArray[np.float32], SavedState]:
    """Sample text with a package; return it, the logits [T, vocab_size] after each token, and the final state.

    Returning frees the session, because the two portable graphs take a copy of the model each.
    """
    session = open_with_float_products(package)
    text = session.sample_tokens(count, Sampling(temperature=1.0, seed=0))
    session.reset()
    return text, session.all_logits(text), session.state()
