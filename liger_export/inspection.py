"""``inspect``: describe a package or engine in rows of text."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from liger_export.config import LigerConfig
from liger_export.errors import PackageError
from liger_export.files import read_json, reading, sha256_file
from liger_export.package.contract import contract_of, graph_contracts
from liger_export.package.engines import BACKENDS, ONNX
from liger_export.package.manifest import MANIFEST_FILE, MODEL_FILES, REPORT_FILE, Manifest, read_manifest
from liger_export.runtime import Sampling
from liger_export.runtime.defaults import read_defaults
from liger_export.state import bytes_per_session

__all__ = ["Summary", "inspect", "read_contract"]


@dataclass(frozen=True, slots=True)
class Summary:
    """Description of a package or engine.

    Attributes:
        manifest: its manifest.
        rows: names and values to show.
        damage: the error in its files, or None if they are intact.
    """

    manifest: Manifest
    rows: list[tuple[str, str]]
    damage: PackageError | None


def inspect(directory: Path) -> Summary:
    """Describe a package or engine, and verify its files.

    Raises:
        PackageError: the manifest is missing or unreadable. Damaged files do not raise; see ``Summary.damage``.
    """
    manifest = read_manifest(directory)
    with reading(directory, PackageError, "Copy or convert the package again."):
        return _describe(directory, manifest)


def read_contract(directory: Path) -> dict[str, Any]:
    """Describe the inputs and outputs of the graphs of a package or engine. See ``contract_of``.

    Raises:
        PackageError: the manifest is missing or unreadable, or a graph file was changed or has other inputs or outputs.
    """
    manifest = read_manifest(directory)
    manifest.check_files(directory, weights=False)
    for name, contract in graph_contracts(manifest).items():
        if not name.endswith(BACKENDS[ONNX]):
            continue  # built for a GPU, which is needed to read it
        graph = onnx.load(directory / name, load_external_data=False).graph
        if [*map(_port, graph.input), *map(_port, graph.output)] != [
            (port.name, port.dtype, tuple(port.shape)) for port in (*contract.inputs, *contract.outputs)
        ]:
            raise PackageError(
                f"{name} in {directory} has other inputs or outputs than this version writes.",
                "Convert the checkpoint again.",
            )
    return contract_of(manifest)


def _port(value: onnx.ValueInfoProto) -> tuple[str, str, tuple[int | str, ...]]:
    """The name, dtype and shape of a graph's input or output."""
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return value.name, np.dtype(dtype).name, tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)


def _describe(directory: Path, manifest: Manifest) -> Summary:
    config = manifest.model_config
    damage = None
    try:
        manifest.check_files(directory)
    except PackageError as error:
        damage = error
    adapters = ", ".join(adapter["name"] for adapter in manifest.adapters) or "none"
    rows = [
        ("model", f"{config.model_type} from {manifest.source['name']}, adapters: {adapters}"),
        ("layers", f"{config.num_hidden_layers}, with {config.num_attention_heads} query and "
                   f"{config.num_key_value_heads} key/value heads of size {config.head_dim}"),
        ("attention", _attention(config)),
        *_precision_row(manifest),
        ("graphs", _graphs(manifest)),
        *_calibration_row(manifest),
        *_prefix_row(manifest),
        ("generation", _generation(directory)),
        ("state per session", f"{bytes_per_session(manifest.state):,} bytes, for a text of any length"),
        *_state_rows(manifest),
        ("memory growth", _growth(manifest)),
        *((name, f"{entry['bytes']:,} bytes") for name, entry in manifest.files.items()),
        ("files", "as written (SHA-256 verified)" if damage is None else damage.cause),
        ("validated", _verdict(directory / REPORT_FILE, sha256_file(directory / MANIFEST_FILE))),
    ]  # fmt: skip
    if damage is None and manifest.engine is None:
        rows += [(f"operators, {name}", _histogram(directory / MODEL_FILES[name])) for name in manifest.graphs]
    return Summary(manifest, rows, damage)


def _graphs(manifest: Manifest) -> str:
    """Each lowering with its requirements and GPU kernels."""
    engine = manifest.engine
    if engine is not None and engine.backend != ONNX:
        return f"portable ({engine.backend} {engine.backend_version} and a GPU of {', '.join(engine.targets)})"
    described = []
    for lowering, graph in manifest.graphs.items():
        kernels = f", GPU kernels for {', '.join(graph.targets)}" if graph.targets else ""
        described.append(f"{lowering} (onnxruntime >= {graph.onnxruntime}{kernels})")
    return "\n".join(described)


def _attention(config: LigerConfig) -> str:
    kept = ", ".join(map(str, config.softmax_layers))
    softmax = f"; softmax in layers {kept} (from 0), window {config.softmax_window}" if kept else ""
    return f"{config.mixer}, window {config.window_size}{softmax}"


def _precision_row(manifest: Manifest) -> list[tuple[str, str]]:
    """The precision of a package; for an engine, ``EngineRecord.precisions`` has the details."""
    if manifest.engine is not None:
        return []
    return [("precision", f"{manifest.precision.storage}, activations {manifest.activations}")]


def _state_rows(manifest: Manifest) -> list[tuple[str, str]]:
    shapes = Counter((entry.name, entry.shape, entry.dtype) for entry in manifest.state)
    return [(f"  {name}", f"{dtype} {[1, *shape]} in {count} layers") for (name, shape, dtype), count in shapes.items()]


def _prefix_row(manifest: Manifest) -> list[tuple[str, str]]:
    if manifest.prefix is None:
        return []
    return [("ships the state after", f"{manifest.prefix['tokens']:,} tokens of {manifest.prefix['name']}")]


def _calibration_row(manifest: Manifest) -> list[tuple[str, str]]:
    if manifest.calibration is None:
        return []
    return [("calibrated on", f"{manifest.calibration['tokens']:,} tokens of {manifest.calibration['name']}")]


def _generation(directory: Path) -> str:
    """Describe the default sampling, and the settings of ``generation_config.json`` that are ignored."""
    try:
        defaults = read_defaults(directory)
    except PackageError as error:
        return error.cause
    differing = {name: value for name, value in asdict(defaults.sampling).items() if value != getattr(Sampling(), name)}
    lines = [", ".join(f"{name} {value}" for name, value in differing.items())] if differing else []
    if defaults.sampling.temperature == 0:
        lines.insert(0, "greedy")
    ignored = [f"not applied: {name} {value}" for name, value in defaults.ignored.items()]
    return "\n".join([*lines, *ignored])


def _growth(manifest: Manifest) -> str:
    if manifest.memory is None:
        return "not measured yet (run liger-export validate)"
    measured = manifest.memory
    span = f"token {measured['from_token']} to {measured['to_token']:,}"
    return f"{measured['bytes_grown']:,} bytes from {span}, with onnxruntime {measured['onnxruntime']}"


def _verdict(path: Path, manifest_sha256: str) -> str:
    """The result of ``validate`` in one line, read from its report at ``path``."""
    try:
        values = read_json(path)
        if values["manifest_sha256"] != manifest_sha256:
            return f"no: {path.name} is the report of another package"
        missed = [check["name"] for check in values["checks"] if not check["passed"]]
        on = values.get("device", "cpu")
        how = "" if on in ("cpu", "cuda") else f" ({on})"
        return f"missed: {', '.join(missed)}" if missed else f"yes, {len(values['checks'])} checks against PyTorch{how}"
    except FileNotFoundError:
        return "not yet (run liger-export validate)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"no: {path.name} is damaged ({error})"


def _histogram(model_file: Path) -> str:
    model = onnx.load(model_file, load_external_data=False)
    bodies = {(function.domain, function.name): function for function in model.functions}
    counts: Counter[str] = Counter()
    lines = []
    for node in model.graph.node:
        counts[f"{node.domain}::{node.op_type}" if node.domain else node.op_type] += 1
    lines.append(", ".join(f"{count} {name}" for name, count in counts.most_common()))
    for (domain, name), function in bodies.items():
        parts = Counter(node.op_type for node in function.node if node.op_type != "Constant")
        lines.append(f"{domain}::{name} = " + ", ".join(f"{count} {part}" for part, count in parts.most_common()))
    return "\n".join(lines)
