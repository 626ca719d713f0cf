"""``triton``: from a package to a model repository for Triton Inference Server."""

import os
import re
import shutil
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import onnx

from liger_export.engine.triton_config import TYPES, TritonModel, config_text
from liger_export.engine.triton_graph import count_positions
from liger_export.errors import EngineError, InputError, PackageError
from liger_export.files import require_space
from liger_export.package import MODEL_FILES, STOCK, Manifest, read_manifest
from liger_export.publishing import new_directory

__all__ = ["TritonSettings", "write_repository"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
MOST = (1 << 31) - 1  # Triton's counts are 32-bit integers


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonSettings:
    """Settings of ``write_repository``.

    Attributes:
        name: Start of the models' names.
        batch: Largest number of sequences that one call continues.
        sequences: Largest number of sequences whose states a model holds. More wait until one ends.
        idle_seconds: Seconds without a request after which a sequence's state is dropped.

    Raises:
        InputError: A value is out of range.
    """

    name: str
    batch: int = 8
    sequences: int = 64
    idle_seconds: int = 600

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise InputError(
                f"{self.name!r} cannot be the name of a model.", "Pass --name with letters, digits, '.', '_' and '-'."
            )
        for name in ("batch", "sequences", "idle_seconds"):
            value = getattr(self, name)
            if not 1 <= value <= MOST:
                raise InputError(f"{name} is {value}.", f"It must be from 1 to {MOST}.")

    @property
    def models(self) -> tuple[TritonModel, TritonModel]:
        """The models: one continues many sequences by a token, the other one sequence by any number of tokens.

        ONNX Runtime's CPU kernel can continue several sequences only by one token per call.
        """
        sequences, idle_seconds = self.sequences, self.idle_seconds
        return (
            TritonModel(
                name=f"{self.name}_step", length=1, batch=self.batch, sequences=sequences, idle_seconds=idle_seconds
            ),
            TritonModel(
                name=f"{self.name}_chunk", length=None, batch=1, sequences=sequences, idle_seconds=idle_seconds
            ),
        )


def write_repository(package: Path, output: Path, settings: TritonSettings, *, overwrite: bool = False) -> list[str]:
    """Write a model repository whose models keep the states of sequences in Triton's sequence batcher.

    Args:
        package: Package directory.
        output: Repository to create; it is complete or absent afterwards.
        settings: What to write.
        overwrite: Replace ``output`` if it exists.

    Returns:
        The models' names.

    Raises:
        PackageError: The package cannot be read.
        EngineError: Triton cannot run its graph, or not as exactly as this project does.
        OutputError: ``output`` exists or cannot be written.
    """
    manifest = read_manifest(package)
    _require_supported(package, manifest)
    manifest.check_files(package)
    graph_file = package / MODEL_FILES[STOCK]
    graph = onnx.load(graph_file, load_external_data=False)
    weights = _weight_files(graph, graph_file, manifest)
    with new_directory(output, overwrite, inputs=(package,)) as folder:
        require_space(folder, sum((package / name).stat().st_size for name in weights))
        sources = package
        for model in settings.models:
            version = folder / model.name / "1"
            version.mkdir(parents=True)
            counting = deepcopy(graph)
            count_positions(counting, model.length)
            onnx.save(counting, version / "model.onnx")
            (version.parent / "config.pbtxt").write_text(config_text(model, manifest), encoding="utf-8")
            for name in weights:
                _share(sources / name, version / name, links=sources is not package)
            sources = version
    return [model.name for model in settings.models]


def _require_supported(package: Path, manifest: Manifest) -> None:
    if manifest.engine is not None:
        raise EngineError(f"{package} is an engine directory.", "Pass a package that convert wrote.")
    if manifest.activations not in TYPES:
        raise EngineError(
            f"{package} has activations in {manifest.activations}, which ONNX Runtime does not support on the CPU.",
            "Convert the checkpoint with fp16 or fp32 activations.",
        )
    if not manifest.graphs[STOCK].exact_angles:  # a session refuses long texts with such a graph; Triton would not
        raise EngineError(
            f"{package} has an older format, whose rotary angles are not exact.", "Convert the checkpoint again."
        )


def _weight_files(graph: onnx.ModelProto, graph_file: Path, manifest: Manifest) -> list[str]:
    """Return the names of the files that a graph reads its weights from."""
    entries = (entry for tensor in graph.graph.initializer for entry in tensor.external_data)
    names = {entry.value for entry in entries if entry.key == "location"}
    if not names <= manifest.files.keys():  # such as a path that leads out of the package
        raise PackageError(f"{graph_file} reads a file that is not of its package.", "Convert the checkpoint again.")
    return sorted(names)


def _share(source: Path, target: Path, *, links: bool) -> None:
    """Copy a file, or give it a second name where the file system can."""
    if links:
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)
