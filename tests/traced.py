"""A traced model as a file, so that the processes of a test run share it."""

import json
from pathlib import Path

import onnx_ir as ir

__all__ = ["read_traced", "write_traced"]

GRAPH = "traced.onnx"
WEIGHTS = "weights.json"


def write_traced(model: ir.Model, folder: Path) -> None:
    """Write a model that ``trace`` returned. A file cannot hold initializers without data, so they become inputs."""
    graph = model.graph
    weights = [value for value in graph.initializers.values() if value.const_value is None]
    for value in weights:
        del graph.initializers[str(value.name)]
        graph.inputs.append(value)
    ir.save(model, folder / GRAPH)
    (folder / WEIGHTS).write_text(json.dumps([value.name for value in weights]))


def read_traced(folder: Path) -> ir.Model:
    """Read what ``write_traced`` wrote."""
    model = ir.load(folder / GRAPH)
    names = json.loads((folder / WEIGHTS).read_text())
    for value in model.graph.inputs[len(model.graph.inputs) - len(names) :]:
        model.graph.inputs.remove(value)
        model.graph.initializers[str(value.name)] = value
    return model
