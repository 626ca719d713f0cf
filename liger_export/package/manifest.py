"""``manifest.json``: the contents of a package and their checksums. Imports no torch."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from liger_export.config import LigerConfig
from liger_export.errors import LigerExportError, PackageError
from liger_export.files import TOOL_USE_TEMPLATE, is_file_name, read_json, reading, sha256_file, sha256_files
from liger_export.package.engines import BACKENDS, PREFILL_TOKENS, EngineRecord, graph_names
from liger_export.precision import Precision
from liger_export.state import WINDOW_STATES, StateTensor, bytes_per_session, state_table

__all__ = [
    "FLOAT32_REACH",
    "FORMAT_VERSION",
    "FUSED",
    "FUSED_CUDA",
    "MANIFEST_FILE",
    "MODEL_FILES",
    "OLDEST_FORMAT",
    "ONE_SEQUENCE",
    "PORTABLE",
    "PREFIX_FILE",
    "REPORT_FILE",
    "STANDARD",
    "STOCK",
    "WASM",
    "WEBGPU",
    "Graph",
    "Manifest",
    "describe_files",
    "read_manifest",
]

FORMAT_VERSION = 5
# Format 4 has graphs without exact_angles. Format 3 also lacks precision.activation_precision: integer weights had
# float32 activations.
OLDEST_FORMAT = 3
FLOAT32_REACH = 1 << 20  # tokens; float32 angles then cost the shipped model a mean KL of 7e-6 nats
MANIFEST_FILE = "manifest.json"
PREFIX_FILE = "prefix.safetensors"  # see runtime.shipped_prefix
STOCK, FUSED, FUSED_CUDA, PORTABLE = "stock", "fused", "cuda", "portable"
WASM, WEBGPU = "wasm", "webgpu"  # for onnxruntime-web's two execution providers
STANDARD = "standard"  # in ONNX's own operators
ONE_SEQUENCE = (WEBGPU, STANDARD)  # graphs that take one sequence
# Graphs that share the weights, by lowering. The CUDA graph is the fused graph with larger operators.
MODEL_FILES = {
    STOCK: "model.onnx",
    FUSED: "model.fused.onnx",
    FUSED_CUDA: "model.cuda.onnx",
    WASM: "model.wasm.onnx",
    WEBGPU: "model.webgpu.onnx",
    STANDARD: "model.standard.onnx",
}
WEIGHT_SUFFIXES = (".data", ".engine")  # of files that are as large as the model
WEIGHTS_PER_BYTE = 2  # at most: int4
OWN_HASH = "sha256"  # of the manifest without this value; older manifests lack it
REPORT_FILE = "parity.json"  # not listed in the manifest, because validate writes it later


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """One lowering of the model.

    Attributes:
        opsets: version of every operator set that the graph imports.
        onnxruntime: oldest version of ONNX Runtime with the operators, such as ``1.31.0``.
        in_place: names of past states that may share a buffer with their present state on a CPU.
        targets: GPU architectures for which the graph contains compiled kernels.
        exact_angles: whether rotary angles are exact at any position. Graphs of format 4 and older compute them in
            float32, which is accurate only up to ``FLOAT32_REACH`` tokens.
    """

    opsets: dict[str, int]
    onnxruntime: str
    in_place: list[str]
    targets: list[str] = field(default_factory=list)
    exact_angles: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The manifest of a package.

    Attributes:
        source: name of the checkpoint directory and SHA-256 of its files.
        adapters: name and SHA-256 of each merged adapter, and a flag for verified base weights.
        config: the checkpoint's ``config.json``.
        precision: precision of weights and activations.
        graphs: graphs by lowering, a key of ``MODEL_FILES``. A package always has ``stock``; the graphs of an engine
            are ``portable``.
        files: size and SHA-256 of each file.
        calibration: name of the calibration text, number of tokens read from it, and the SHA-256 of their ids as
            little-endian 64-bit integers; None if the method reads no text.
        memory: memory growth while decoding, as ``validate`` measured it; None before that.
        prefix: name and SHA-256 of the text whose state the package ships, and its number of tokens; None without one.
        engine: build record of an engine directory; None for a package.
    """

    source: dict[str, Any]
    adapters: list[dict[str, Any]]
    config: dict[str, Any]
    precision: Precision
    graphs: dict[str, Graph]
    files: dict[str, dict[str, Any]]
    calibration: dict[str, Any] | None = None
    memory: dict[str, Any] | None = None
    prefix: dict[str, Any] | None = None
    engine: EngineRecord | None = None
    format_version: int = FORMAT_VERSION
    liger_export: str = field(default_factory=lambda: version("liger-export"))

    @property
    def model_config(self) -> LigerConfig:
        """Configuration of the model."""
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
        """Names of the graph files."""
        if self.engine:
            return list(self.engine.files.values())
        return [MODEL_FILES[lowering] for lowering in (STOCK, *self.graphs)]

    def to_json(self) -> str:
        """Serialize to JSON, with the state table and its bytes per session written out for other readers."""
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
        for name in ("prefix", "engine"):
            if values[name] is None:  # older versions read the manifest too
                del values[name]
        values["state"] = {"bytes_per_session": bytes_per_session(self.state), "tensors": tensors}
        written = {**values, "files": files}
        return json.dumps({**written, OWN_HASH: _sha256_of(written)}, indent=1) + "\n"

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Names of the files of weights and engines."""
        return tuple(name for name in self.files if Path(name).suffix in WEIGHT_SUFFIXES)

    def check_files(self, directory: Path, *, weights: bool = True) -> None:
        """Check that every file exists and has the recorded size and SHA-256.

        Args:
            directory: The directory of the manifest.
            weights: Also hash weights and engines. Every other file is small and always hashed.

        Raises:
            PackageError: a file is missing or was changed; the error names the first such file.
        """
        fix = "Copy or build the engines again." if self.engine else "Copy or convert the package again."
        for name, recorded in self.files.items():
            path = directory / name
            if not path.is_file():
                raise PackageError(f"{path} is missing.", fix)
            size = path.stat().st_size
            if size != recorded["bytes"]:
                raise PackageError(
                    f"{path} has {size:,} bytes instead of {recorded['bytes']:,}: it was truncated.", fix
                )
            if (weights or path.suffix not in WEIGHT_SUFFIXES) and sha256_file(path) != recorded["sha256"]:
                raise PackageError(f"{path} has changed since it was written (its SHA-256 differs).", fix)


def describe_files(directory: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file in a new package directory."""
    digests = sha256_files(sorted(path for path in directory.rglob("*") if path.is_file()))
    return {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in digests.items()
    }


def read_manifest(directory: Path) -> Manifest:
    """Read a package's manifest, in any format from ``OLDEST_FORMAT`` to ``FORMAT_VERSION``.

    Raises:
        PackageError: the manifest is missing or damaged, or its format is not supported.
    """
    path = directory / MANIFEST_FILE
    try:
        values = read_json(path)
        format_version = values["format_version"]
    except (FileNotFoundError, NotADirectoryError):
        raise PackageError(
            f"{directory} is not a package: it has no {MANIFEST_FILE}.", "Pass a directory that convert wrote."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    _check_format(directory, format_version)
    with reading(path, PackageError, "Copy or convert the package again."):
        return _checked(path, values)


def _checked(path: Path, values: dict[str, Any]) -> Manifest:
    """Build the manifest and check that its entries agree with each other."""
    try:
        recorded = values.pop(OWN_HASH, None)
        if recorded is not None and recorded != _sha256_of(values):
            raise ValueError("it has changed since it was written: its SHA-256 differs")
        state = values.pop("state")
        manifest = _manifest(values)
        _check_sizes(manifest, len(state["tensors"]))
        _check_consistency(manifest, state["bytes_per_session"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, LigerExportError) as error:
        raise _damaged(path, error) from error
    return manifest


def _check_format(directory: Path, format_version: Any) -> None:
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


def _manifest(values: dict[str, Any]) -> Manifest:
    """Build from the values of any supported format. Raises KeyError, TypeError, ValueError or LigerExportError."""
    read = {
        **values,
        "format_version": FORMAT_VERSION,  # used if the manifest is written again
        "precision": Precision.from_dict(values["precision"]),
        "graphs": {lowering: Graph(**graph) for lowering, graph in values["graphs"].items()},
    }
    if "engine" in values:
        read["engine"] = EngineRecord(**values["engine"])
    return Manifest(**read)


def _check_sizes(manifest: Manifest, state_tensors: int) -> None:
    """Check that the files can hold the model of the config, before anything of its size is built. Raises as below."""
    config, nbytes = manifest.model_config, sum(entry["bytes"] for entry in manifest.files.values())
    if config.num_hidden_layers * len(WINDOW_STATES) > state_tensors:
        raise ValueError(f"its state table has {state_tensors} tensors, its config {config.num_hidden_layers} layers")
    if config.vocab_size * config.hidden_size > nbytes * WEIGHTS_PER_BYTE:
        raise ValueError(f"its files cannot hold {config.vocab_size} x {config.hidden_size} weights")


def _check_consistency(manifest: Manifest, state_bytes: int) -> None:
    """Check that the entries agree with each other. Raises KeyError, TypeError or ValueError."""
    if state_bytes != bytes_per_session(manifest.state):
        raise ValueError("its state does not match its config")
    if not manifest.graphs or not set(manifest.graph_files) <= manifest.files.keys():
        raise ValueError("a graph or its file is not listed")
    if manifest.prefix is not None and (
        type(manifest.prefix["tokens"]) is not int or manifest.prefix["tokens"] < 1 or PREFIX_FILE not in manifest.files
    ):
        raise ValueError("its prefix has no tokens or no file")
    if manifest.engine:
        possible = {name + BACKENDS[manifest.engine.backend] for name in graph_names(PREFILL_TOKENS).values()}
        if type(manifest.engine.chunk) is not int or possible & manifest.files.keys() != set(manifest.graph_files):
            raise ValueError("its graphs are not those of its chunk")
    for name, entry in manifest.files.items():
        if not (type(entry["bytes"]) is int and isinstance(entry["sha256"], str)):
            raise ValueError(f"{name} has no valid size or SHA-256")
        if not (is_file_name(name) or name == TOOL_USE_TEMPLATE):
            raise ValueError(f"{name!r} is not a plain file name")
    sources = [manifest.source, *manifest.adapters]
    if not all(isinstance(source["name"], str) for source in sources):
        raise ValueError("the checkpoint or an adapter has no name")
    if not isinstance(manifest.source["files"], dict) or not all("sha256" in adapter for adapter in manifest.adapters):
        raise ValueError("the checkpoint or an adapter has no SHA-256")
    if "tokenizer.json" not in manifest.files:
        raise ValueError("its tokenizer is not listed")
    past_names = {entry.past_name for entry in manifest.state}
    for lowering, graph in manifest.graphs.items():
        if not isinstance(graph.onnxruntime, str) or not set(graph.in_place) <= past_names:
            raise ValueError(f"the {lowering} graph does not match the state table or has no ONNX Runtime version")


def _sha256_of(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _damaged(path: Path, error: Exception) -> PackageError:
    return PackageError(f"{path} is damaged ({error}).", "Copy or convert the package again.")
