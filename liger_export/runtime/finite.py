"""The error for logits that are not finite: the precision, the place of the first such value, and the fix."""

import numpy as np

from liger_export.errors import NotFiniteError
from liger_export.package import Manifest
from liger_export.precision import FLOATS
from liger_export.runtime.buffers import Array
from liger_export.runtime.dtypes import widened
from liger_export.runtime.executor import Logits
from liger_export.state import WINDOW_STATES, by_layer

__all__ = ["not_finite"]

COUNTED = "(counted from 0)"


def not_finite(manifest: Manifest, state: dict[str, Array], logits: Logits) -> NotFiniteError:
    """Return the error for logits that are not finite.

    Args:
        manifest: The manifest of the package or engine directory.
        state: State tensors by input name, after the token that the logits belong to.
        logits: The logits, float32 ``[vocab_size]``.
    """
    name = next(name for name, dtype in FLOATS.items() if dtype == manifest.activations)
    place = _place(manifest, state, logits)
    if manifest.activations != "float16":  # float32 and bfloat16 have the same range
        return NotFiniteError(
            f"The logits are not finite: a value of {place} was too large for {name}, which has the largest range.",
            "Check the checkpoint, its adapters and, if one was loaded, the saved state.",
        )
    command = "Build the engine again" if manifest.engine else "Convert the checkpoint again"
    wider = "bf16 for a GPU" if manifest.engine else "bf16 with --lowering fused"
    option = "--activations" if manifest.engine or manifest.precision.weights != "fp16" else "--precision"
    return NotFiniteError(
        f"The logits are not finite: a value of {place} was too large for {name}, which ends at 65,504.",
        f"{command} in another precision: {option} fp32, or {wider}.",
    )


def _place(manifest: Manifest, state: dict[str, Array], logits: Logits) -> str:
    """Name the part of the model that computed the first value that is not finite."""
    layers = by_layer(manifest.state, ((entry, state[entry.past_name]) for entry in manifest.state))
    for layer, tensors in enumerate(layers):
        failed = {entry.name: values for entry, tensor in tensors if not np.isfinite(values := widened(tensor)).all()}
        if failed:
            return _layer_of(layer, failed)
    # The last norm makes NaN of its whole input. The head then computes nothing else.
    return f"layer {len(layers) - 1} {COUNTED}" if np.isnan(logits).all() else "the output head"


def _layer_of(layer: int, failed: dict[str, Array]) -> str:
    """Name the layer that computed the first value, given the state tensors of the first layer that hold such values.

    A norm makes NaN of its whole input, so a window row of values that are all NaN means that the previous layer's
    output was not finite. If a product of the layer itself is too large, only some of its values are. If all such rows
    have left the window, both are possible.
    """
    if layer and "value" in failed and np.isnan(failed["value"]).all((0, 1, 3)).any():  # [1, G, W, D]
        return f"layer {layer - 1} {COUNTED}"
    if layer and failed.keys().isdisjoint(WINDOW_STATES):
        return f"layer {layer - 1} or {layer} {COUNTED}"
    return f"layer {layer} {COUNTED}"
