"""The check that a graph is the one that its manifest describes."""

from pathlib import Path

from liger_export.errors import PackageError
from liger_export.ort import ort
from liger_export.package import Manifest

__all__ = ["require_described"]


def require_described(model: ort.InferenceSession, manifest: Manifest, directory: Path) -> None:
    """Check the vocabulary and the state table against a graph, before buffers of their sizes are bound to it.

    Raises:
        PackageError: the manifest was changed, or belongs to another graph.
    """
    shapes = {value.name: tuple(value.shape) for value in (*model.get_inputs(), *model.get_outputs())}
    expected = {"logits": (manifest.model_config.vocab_size,)} | {
        entry.past_name: entry.shape for entry in manifest.state
    }
    for name, shape in expected.items():
        found = shapes.get(name, ())[-len(shape) :]
        if found != shape:
            raise PackageError(
                f"The manifest of {directory} does not describe its graph: {name} is {list(found)}, not {list(shape)}.",
                "Copy or convert the package again.",
            )
