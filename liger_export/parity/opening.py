"""CPU sessions of a package's stock graph, for comparisons. The graph is edited in memory where needed."""

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from liger_export.export.bfloat16 import compute_in_float32
from liger_export.ort import ort, session_options
from liger_export.package import MODEL_FILES, STOCK, read_manifest
from liger_export.runtime import Session, load, read_tokenizer
from liger_export.runtime.buffers import CPU
from liger_export.runtime.dynamic import DynamicExecutor

__all__ = ["ROUNDED", "open_emulated", "open_stock", "open_with_float_products"]

ROUNDED = "cpu, each operator in float32 and rounded to bfloat16"  # the device of ``open_emulated`` in reports


def open_stock(package: Path) -> Session:
    """Open a package's stock graph on the CPU, as ``open_emulated`` if its activations are bfloat16."""
    if read_manifest(package).activations == "bfloat16":
        return open_emulated(package)
    return load(package, lowering=STOCK, device=CPU)


def open_emulated(package: Path) -> Session:
    """Open a bfloat16 package's stock graph on the CPU, each operator in float32 between conversions."""
    model = ir.load(package / MODEL_FILES[STOCK])
    InlinePass()(model)
    _multiply_in_float32(model.graph)
    compute_in_float32(model.graph)
    return _open_edited(package, model)


def open_with_float_products(package: Path) -> Session:
    """Open a package's stock graph on the CPU, with activations not rounded to 8 bits where weights are integers.

    A bfloat16 package is opened as ``open_emulated`` does, which includes this.
    """
    if read_manifest(package).activations == "bfloat16":
        return open_emulated(package)
    model = ir.load(package / MODEL_FILES[STOCK])
    _multiply_in_float32(model.graph)
    return _open_edited(package, model)


def _multiply_in_float32(graph: ir.Graph) -> None:
    """Let MatMulNBits read float32 activations, which it otherwise rounds to 8 bits on a CPU."""
    for node in graph:
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 1)


def _open_edited(package: Path, model: ir.Model) -> Session:
    """Open an edited stock graph over the package's weight file."""
    options = session_options()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(package.resolve()))
    graph = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    manifest = read_manifest(package)
    executor = DynamicExecutor(session, manifest, lowering=STOCK, device=CPU)
    return Session(manifest, read_tokenizer(package), executor)
