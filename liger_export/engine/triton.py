"""``triton``: from a package to a model repository for Triton Inference Server."""

import re
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import onnx

from liger_export.engine.sharing import require_servable, share, weight_files
from liger_export.engine.triton_config import TritonModel, config_text
from liger_export.engine.triton_graph import count_positions
from liger_export.errors import InputError
from liger_export.files import require_space
from liger_export.package import MODEL_FILES, STOCK, read_manifest
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
    require_servable(package, manifest)
    manifest.check_files(package)
    graph_file = package / MODEL_FILES[STOCK]
    graph = onnx.load(graph_file, load_external_data=False)
    weights = weight_files(graph, graph_file, manifest)
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
                share(sources / name, version / name, links=sources is not package)
            sources = version
    return [model.name for model in settings.models]
