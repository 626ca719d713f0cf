"""The graphs that engines are built from: one of one token, one of a prefill call, over one file of weights."""

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from liger_export.checkpoint import expected_tensors
from liger_export.engine.weights import PackagedWeights
from liger_export.export import attach_weights, trace, weight_bytes
from liger_export.export.plugin import lower_to_plugins
from liger_export.export.portable import lower_portable
from liger_export.files import require_space
from liger_export.package import Manifest
from liger_export.package.engines import BACKENDS, ONNX, graph_names

__all__ = ["DATA_FILE", "drop_functions", "write_graphs"]

DATA_FILE = "weights.data"


def write_graphs(
    package: Path,
    manifest: Manifest,
    folder: Path,
    *,
    activations: str,
    chunk: int,
    plugins: Sequence[str] = (),
    engines: int = 0,
) -> dict[str, int]:
    """Write a package's graphs in the portable lowering, or the plugin lowering, into a folder.

    Args:
        package: its directory.
        manifest: its manifest.
        folder: where to write ``step.onnx``, ``prefill.onnx`` and ``weights.data``.
        activations: dtype of activations and window.
        chunk: tokens of a prefill call, or 0 for none.
        plugins: operators that stay nodes in the graph of one token, with their bodies as functions.
        engines: how many files with all weights will be built from the graphs; the disk must have room for them too.

    Returns:
        The operator sets that the graphs import.

    Raises:
        PackageError: a weight is missing.
        OutputError: the disk has no room.
    """
    config = manifest.model_config
    schemes = {
        name: manifest.precision.scheme(name) for name, shape in expected_tensors(config).items() if len(shape) == 2
    }
    source = PackagedWeights(package, manifest)
    traced = trace(config, manifest.config, activations)
    written: dict[str, ir.TensorProtocol] = {}
    imports: dict[str, int] = {}
    for length, name in graph_names(chunk).items():
        model = traced.clone()
        is_fused = plugins and length == 1  # a plugin takes one token
        weights = lower_to_plugins(model, schemes, plugins) if is_fused else lower_portable(model, length, schemes)
        if not written:
            require_space(folder, weight_bytes(weights) * (1 + engines))
            attach_weights(weights, source, folder / DATA_FILE)
            values = (value for weight in weights for views in weight.values() for value in views)
            written = {str(value.name): value.const_value for value in values if value.const_value is not None}
        for initializer, data in written.items():
            model.graph.initializers[initializer].const_value = data
        ir.save(model, folder / (name + BACKENDS[ONNX]))
        imports |= {domain or "ai.onnx": version for domain, version in model.opset_imports.items()}
    return imports


def drop_functions(graph_file: Path) -> None:
    """Leave a plugin's nodes without bodies, so that a parser that does not find the plugin says so."""
    model = onnx.load(graph_file, load_external_data=False)
    del model.functions[:]
    graph_file.write_bytes(model.SerializeToString())
