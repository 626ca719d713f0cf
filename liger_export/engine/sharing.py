"""The weights of a package's graph in another directory."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import onnx

from liger_export.errors import EngineError, PackageError
from liger_export.package import STOCK, Manifest

__all__ = ["require_activations", "require_servable", "share", "weight_files"]

SERVABLE = ("float32", "float16")


def require_servable(package: Path, manifest: Manifest) -> None:
    """Check that another server can run a package's stock graph as exactly as a session does.

    Raises:
        EngineError: It is not a package, or another server cannot run its graph so.
    """
    if manifest.engine is not None:
        raise EngineError(f"{package} is an engine directory.", "Pass a package that convert wrote.")
    require_activations(package, manifest.activations)
    if not manifest.graphs[STOCK].exact_angles:  # a session refuses long texts with such a graph; a server would not
        raise EngineError(
            f"{package} has an older format, whose rotary angles are not exact.", "Convert the checkpoint again."
        )


def require_activations(package: Path, activations: str) -> None:
    """Raise EngineError if another server cannot run a graph with these activations, such as ``bfloat16``."""
    if activations not in SERVABLE:
        raise EngineError(
            f"{package} has activations in {activations}, which ONNX Runtime does not support on the CPU.",
            "Convert the checkpoint with fp16 or fp32 activations.",
        )


def weight_files(graph: onnx.ModelProto, graph_file: Path, manifest: Manifest) -> list[str]:
    """Return the names of the files that a graph reads its weights from.

    Raises:
        PackageError: One of them is not of the package.
    """
    entries = (entry for tensor in graph.graph.initializer for entry in tensor.external_data)
    names = {entry.value for entry in entries if entry.key == "location"}
    if not names <= manifest.files.keys():  # such as a path that leads out of the package
        raise PackageError(f"{graph_file} reads a file that is not of its package.", "Convert the checkpoint again.")
    return sorted(names)


def share(source: Path, target: Path, *, links: bool) -> None:
    """Copy a file, or give it a second name where the file system can."""
    if links:
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)
