"""Inputs and outputs of an engine's graph: their names, shapes and dtypes, as the state table defines them."""

from typing import NamedTuple

from liger_export.errors import EngineError
from liger_export.package import Manifest

__all__ = ["GraphIO", "TensorSpec", "check_io", "expected_io"]

TensorSpec = tuple[tuple[int, ...], str]  # shape and dtype


class GraphIO(NamedTuple):
    """Inputs and outputs of a graph by name."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


def expected_io(manifest: Manifest, length: int) -> GraphIO:
    """Return the inputs and outputs of a graph of ``length`` tokens, from the state table."""
    past = {entry.past_name: ((1, *entry.shape), entry.dtype) for entry in manifest.state}
    present = {entry.present_name: ((1, *entry.shape), entry.dtype) for entry in manifest.state}
    tokens = ((1, length), "int64")
    logits = ((1, length, manifest.model_config.vocab_size), "float32")
    return GraphIO({"input_ids": tokens, "position_ids": tokens, **past}, {"logits": logits, **present})


def check_io(found: GraphIO, expected: GraphIO) -> None:
    """Compare names, shapes and dtypes. Raises EngineError that names the first difference."""
    for kind, tensors, wanted in zip(("input", "output"), found, expected, strict=True):
        for name in sorted(tensors.keys() | wanted.keys()):
            if tensors.get(name) != wanted.get(name):
                raise EngineError(
                    f"The {kind} {name} is {_shown(tensors.get(name))} in the parsed network "
                    f"and {_shown(wanted.get(name))} in the state table.",
                    "Convert the checkpoint again with this version, or report this model as a bug.",
                )


def _shown(spec: TensorSpec | None) -> str:
    return "missing" if spec is None else f"{spec[1]} {list(spec[0])}"
