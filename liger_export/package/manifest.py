"""``manifest.json``: what a package holds, and whether it still holds it. Imports no torch."""

import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from liger_export.config import LigerConfig
from liger_export.errors import LigerExportError, PackageError
from liger_export.files import sha256_file, sha256_files
from liger_export.package.engines import EngineRecord
from liger_export.precision import Precision
from liger_export.state import StateTensor, bytes_per_session, state_table

__all__ = [
    "FORMAT_VERSION",
    "FUSED",
    "FUSED_CUDA",
    "MANIFEST_FILE",
    "MODEL_FILES",
    "OLDEST_FORMAT",
    "PORTABLE",
    "REPORT_FILE",
    "STOCK",
    "Graph",
    "Manifest",
    "describe_files",
    "read_manifest",
]

FORMAT_VERSION = 4
OLDEST_FORMAT = 3  # which lacks precision.activation_precision: activations of integer weights were float32
MANIFEST_FILE = "manifest.json"
STOCK, FUSED, FUSED_CUDA, PORTABLE = "stock", "fused", "cuda", "portable"
# Graphs over the same weights, by their lowering; the one for CUDA is the fused one with more in an operator.
MODEL_FILES = {STOCK: "model.onnx", FUSED: "model.fused.onnx", FUSED_CUDA: "model.cuda.onnx"}
REPORT_FILE = "parity.json"  # written by validate after the manifest, so not listed in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """One lowering of the model.

    Attributes:
        opsets: version of every operator set that it imports.
        onnxruntime: the oldest ONNX Runtime that has the operators, such as ``1.31.0``.
        in_place: past states that a caller on a CPU may pass as their own present, by name.
        targets: GPU architectures that it holds compiled kernels for.
    """

    opsets: dict[str, int]
    onnxruntime: str
    in_place: list[str]
    targets: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The manifest of a package.

    Attributes:
        source: name of the checkpoint directory and the SHA-256 of its files.
        adapters: per merged adapter, its name, SHA-256, and whether its base weights were verified.
        config: the checkpoint's ``config.json``.
        precision: how weights are stored, and the dtype of activations.
        calibration: what the method that reads text has read: its name, how many tokens, and the SHA-256 of their ids
            as little-endian 64-bit integers; None for other methods.
        graphs: by lowering, keys of ``MODEL_FILES``; ``stock`` is always there. Those of an engine are ``portable``.
        files: per file, its size and SHA-256.
        engine: how it was built, if this is the manifest of an engine directory.
        memory: whether memory grew from token to token, as ``validate`` measured it; None before.
    """

    source: dict[str, Any]
    adapters: list[dict[str, Any]]
    config: dict[str, Any]
    precision: Precision
    graphs: dict[str, Graph]
    files: dict[str, dict[str, Any]]
    calibration: dict[str, Any] | None = None
    memory: dict[str, Any] | None = None
    engine: EngineRecord | None = None
    format_version: int = FORMAT_VERSION
    liger_export: str = field(default_factory=lambda: version("liger-export"))

    @property
    def model_config(self) -> LigerConfig:
        """The model, as the rest of the project describes it."""
        return LigerConfig.from_dict(self.config)

    @property
    def state(self) -> tuple[StateTensor, ...]:
        """The state table."""
        return state_table(self.model_config, self.activations)

    @property
    def activations(self) -> str:
        """Dtype of activations and window."""
        return self.engine.activations if self.engine else self.precision.activations

    @property
    def graph_files(self) -> list[str]:
        """The files without which nothing runs."""
        if self.engine:
            return list(self.engine.files.values())
        return [MODEL_FILES[lowering] for lowering in (STOCK, *self.graphs)]

    def to_json(self) -> str:
        """The manifest as JSON, the state table and its bytes per session written out for readers."""
        tensors = [
            {
                "past": t.past_name,
                "present": t.present_name,
                "shape": list(t.shape),
                "dtype": t.dtype,
                "bytes": t.nbytes,
            }
            for t in self.state
        ]
        values = asdict(self)
        files = values.pop("files")
        if self.engine is None:
            del values["engine"]
        values["state"] = {"bytes_per_session": bytes_per_session(self.state), "tensors": tensors}
        return json.dumps({**values, "files": files}, indent=1) + "\n"

    def check_files(self, directory: Path, *, hashes: bool = True) -> None:
        """Check that every file is present, of its size and, if asked, of its SHA-256.

        Raises:
            PackageError: naming the first file that is not as it was written.
        """
        fix = "Copy or build the engines again." if self.engine else "Copy or convert the package again."
        for name, recorded in self.files.items():
            path = directory / name
            if not path.is_file():
                raise PackageError(f"{path} is missing.", fix)
            size = path.stat().st_size
            if size != recorded["bytes"]:
                raise PackageError(f"{path} has {size:,} bytes instead of {recorded['bytes']:,}: it was cut.", fix)
            if hashes and sha256_file(path) != recorded["sha256"]:
                raise PackageError(f"{path} has changed since it was written (its SHA-256 differs).", fix)


def describe_files(directory: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file of a package under construction."""
    digests = sha256_files(sorted(directory.iterdir()))
    return {path.name: {"bytes": path.stat().st_size, "sha256": digest} for path, digest in digests.items()}


def read_manifest(directory: Path) -> Manifest:
    """Read a package's manifest, of any format from ``OLDEST_FORMAT`` on.

    Raises:
        PackageError: it is missing, damaged, or of a newer format than this version reads.
    """
    path = directory / MANIFEST_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        format_version = values["format_version"]
    except (FileNotFoundError, NotADirectoryError):
        raise PackageError(
            f"{directory} is no package: it holds no {MANIFEST_FILE}.", "Pass a directory that convert wrote."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise PackageError(f"{path} is damaged ({error}).", "Copy or convert the package again.") from error
    if not isinstance(format_version, int) or format_version > FORMAT_VERSION:
        raise PackageError(
            f"{directory} has package format {format_version}; this version reads up to {FORMAT_VERSION}.",
            "Upgrade liger-export.",
        )
    if format_version < OLDEST_FORMAT:
        raise PackageError(
            f"{directory} has package format {format_version}; this version reads {OLDEST_FORMAT} to {FORMAT_VERSION}.",
            "Convert the checkpoint again.",
        )
    try:
        recorded_state = values.pop("state")
        values["format_version"] = FORMAT_VERSION  # what it is written as, if it is written again
        values["precision"] = Precision.from_dict(values["precision"])
        values["graphs"] = {lowering: Graph(**graph) for lowering, graph in values["graphs"].items()}
        if "engine" in values:
            values["engine"] = EngineRecord(**values["engine"])
        manifest = Manifest(**values)
        consistent = recorded_state["bytes_per_session"] == bytes_per_session(manifest.state)
        listed = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest.files.items()}
        named = [manifest.source["name"], *(adapter["name"] for adapter in manifest.adapters)]
        consistent = consistent and set(manifest.graph_files) <= listed.keys() and bool(manifest.graphs)
        consistent = consistent and all(isinstance(name, str) for name in named)
        past_names = {entry.past_name for entry in manifest.state}
        for graph in manifest.graphs.values():
            consistent = consistent and isinstance(graph.onnxruntime, str) and set(graph.in_place) <= past_names
    except (KeyError, TypeError, ValueError, AttributeError, LigerExportError) as error:
        raise PackageError(f"{path} is damaged ({error}).", "Copy or convert the package again.") from error
    if not consistent:
        raise PackageError(f"{path} is damaged (its entries do not fit each other).", "Convert again.")
    return manifest
