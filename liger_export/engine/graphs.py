"""Graphs that engines are built from: one for a single token and one for a prefill call, over one weight file."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from liger_export.checkpoint import expected_tensors
from liger_export.engine.weights import PackagedWeights
from liger_export.errors import EngineError
from liger_export.export import attach_weights, trace, weight_bytes
from liger_export.export.plugin import lower_to_plugins
from liger_export.export.portable import lower_to_portable
from liger_export.files import require_space
from liger_export.onnx_functions.schemas import DOMAIN
from liger_export.package import Manifest
from liger_export.package.engines import BACKENDS, ONNX, graph_names

__all__ = ["DATA_FILE", "drop_functions", "refuse_foreign_operators", "write_graphs"]

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
    """Write a package's graphs in the portable or the plugin lowering into a folder.

    Args:
        package: package directory.
        manifest: the package's manifest.
        folder: folder for ``step.onnx``, ``prefill.onnx`` and ``weights.data``.
        activations: dtype of activations and window.
        chunk: tokens of a prefill call; 0 for no prefill graph.
        plugins: operators that stay nodes in the single-token graph, with their bodies as functions.
        engines: files with all weights that will be built from the graphs; the disk must have room for them too.

    Returns:
        The operator sets that the graphs import.

    Raises:
        PackageError: a weight is missing.
        OutputError: the disk is full.
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
        weights = lower_to_plugins(model, schemes, plugins) if is_fused else lower_to_portable(model, length, schemes)
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
    """Remove the bodies of plugin nodes from a graph file, so that a parser reports a missing plugin."""
    model = onnx.load(graph_file, load_external_data=False)
    del model.functions[:]
    graph_file.write_bytes(model.SerializeToString())


def refuse_foreign_operators(graph_file: Path, plugins: Collection[str] = ()) -> set[str]:
    """Refuse a graph that a parser of ai.onnx cannot read: an operator without a plugin may abort the process.

    Args:
        graph_file: the graph.
        plugins: operators of this project that the parser has plugins for.

    Returns:
        The ai.onnx operators of the graph.

    Raises:
        EngineError: the graph has functions or a foreign operator; the message names the first one.
    """
    model = onnx.load(graph_file, load_external_data=False)
    operators = set()
    for node in _nodes(model.graph.node):
        if node.domain == DOMAIN and node.op_type in plugins:
            continue
        if node.domain not in ("", "ai.onnx"):
            raise EngineError(
                f"{graph_file.name} contains {node.domain}::{node.op_type}, which needs a plugin.",
                "Build from the package: its graphs are lowered to ai.onnx operators.",
            )
        operators.add(node.op_type)
    if model.functions:
        raise EngineError(f"{graph_file.name} contains local functions.", "Build from the package.")
    return operators


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterable[onnx.NodeProto]:
    """All nodes, those of nested graphs included."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g.node)
            for graph in attribute.graphs:
                yield from _nodes(graph.node)
