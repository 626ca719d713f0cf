"""Engines by TensorRT for RTX, which builds for named GPUs on machines that have none. Needs the library."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorrt_rtx as trt

from liger_export.engine.check import Signature, check_signature, refuse_foreign_operators
from liger_export.errors import EngineError
from liger_export.runtime.cuda import has_gpu

__all__ = ["VERSION", "BuiltGraph", "build_graph", "require_targets"]

VERSION = str(trt.__version__)
DTYPES = {trt.float32: "float32", trt.float16: "float16", trt.bfloat16: "bfloat16", trt.int64: "int64"}
NO_TARGETS = ("NONE", "CURRENT")


@dataclass(slots=True)
class BuiltGraph:
    """What one graph became.

    Attributes:
        seconds: parsing and building.
        nbytes: of the engine file.
        layers: the parsed network's, in order, with the types they compute in; and, where a GPU could load the engine,
            what the engine inspector says of it.
    """

    seconds: float
    nbytes: int
    layers: dict[str, Any]


class _Logger(trt.ILogger):  # type: ignore[misc]
    """Keeps what the library says for the build log, without the folder of the machine that built."""

    def __init__(self, lines: list[str], folder: Path) -> None:
        super().__init__()
        self._lines = lines
        self._folder = f"{folder}/"

    def log(self, severity: Any, message: str) -> None:
        """Called by the library."""
        if severity <= trt.ILogger.Severity.INFO:
            self._lines.append(f"{severity.name.lower()}: {message.replace(self._folder, '')}")


class _Writer(trt.IStreamWriter):  # type: ignore[misc]
    """Takes the engine piece by piece, so that no second copy of it is in memory."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._stream = file.open("wb")

    def write(self, data: bytes) -> int:
        """Called by the library; returns the bytes written."""
        return self._stream.write(data)

    def close(self) -> int:
        """Finish the file; returns its size."""
        size = self._stream.tell()
        self._stream.close()
        return size


def require_targets(asked: list[str]) -> list[str]:
    """Names of GPU architectures as this project writes them (``sm86``), from numbers or names.

    Raises:
        EngineError: there are none, or the library does not know one; says which it knows.
    """
    known = {name.lower(): name for name in trt.ComputeCapability.__members__ if name not in NO_TARGETS}
    names = ["sm" + target.lower().removeprefix("sm").lstrip("_") for target in asked]
    listed = ", ".join(sorted((name.removeprefix("sm") for name in known), key=int))
    for name in names:
        if name not in known:
            raise EngineError(f"TensorRT-RTX {VERSION} builds nothing for {name}.", f"It knows: {listed}.")
    if not names:
        raise EngineError("No GPU architecture was named.", f"Pass --sm with one or more of: {listed}.")
    return list(dict.fromkeys(names))


def build_graph(
    graph_file: Path,
    engine_file: Path,
    targets: list[str],
    signature: tuple[Signature, Signature],
    log: list[str],
) -> BuiltGraph:
    """Build one engine for several architectures. Strongly typed: every tensor has the type that the graph gives it.

    Args:
        graph_file: a portable graph.
        engine_file: file to create.
        targets: what ``require_targets`` returned.
        signature: the inputs and outputs that the parsed network must have.
        log: what the library says is added to it.

    Raises:
        EngineError: an operator needs a plugin, the parser or the builder fails, or the network is not the contract's.
    """
    started = time.perf_counter()
    operators = refuse_foreign_operators(graph_file)
    logger = _Logger(log, graph_file.parent)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    foreign = sorted(operator for operator in operators if not parser.supports_operator(operator))
    if foreign:
        raise EngineError(
            f"TensorRT-RTX {VERSION} has no layer for {', '.join(foreign)}.", "Report this model as a bug."
        )
    if not parser.parse_from_file(str(graph_file)):
        reasons = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise EngineError(f"TensorRT-RTX cannot read {graph_file.name}: {reasons}.", "Report this model as a bug.")
    found = (
        _signature([network.get_input(index) for index in range(network.num_inputs)]),
        _signature([network.get_output(index) for index in range(network.num_outputs)]),
    )
    for what, tensors, expected in zip(("input", "output"), found, signature, strict=True):
        check_signature(what, tensors, expected)
    layers = [_described(network.get_layer(index)) for index in range(network.num_layers)]
    nbytes = _build(builder, network, targets, engine_file, log)
    seconds = time.perf_counter() - started
    return BuiltGraph(seconds, nbytes, {"network": layers, "engine": _inspected(engine_file)})


def _build(builder: Any, network: Any, targets: list[str], engine_file: Path, log: list[str]) -> int:
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(trt.ComputeCapability.__members__[target.upper()], index)
    config.clear_flag(trt.BuilderFlag.TF32)  # products of gates and of the state are float32's own
    config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)  # a device that is too small may keep weights on the host
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    writer = _Writer(engine_file)
    done = builder.build_serialized_network_to_stream(network, config, writer)
    nbytes = writer.close()
    if not done or not nbytes:
        raise EngineError(
            f"TensorRT-RTX {VERSION} built nothing for {', '.join(targets)}.",
            f"{_last_error(log)} Leave away an architecture, or choose other activations.",
        )
    return nbytes


def _last_error(log: list[str]) -> str:
    return next((f"It says: {line}." for line in reversed(log) if line.startswith(("error", "internal_error"))), "")


def _signature(tensors: list[Any]) -> Signature:
    return {tensor.name: (tuple(tensor.shape), DTYPES.get(tensor.dtype, str(tensor.dtype))) for tensor in tensors}


def _described(layer: Any) -> dict[str, Any]:
    outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
    return {
        "name": layer.name,
        "type": layer.type.name,
        "outputs": [f"{DTYPES.get(each.dtype, each.dtype.name)} {list(each.shape)}" for each in outputs if each],
    }


def _inspected(engine_file: Path) -> Any:
    """What the engine inspector says, which needs a GPU that can load the engine; None without one."""
    if not has_gpu():
        return None
    engine = trt.Runtime(_Logger([], engine_file.parent)).deserialize_cuda_engine(engine_file.read_bytes())
    if engine is None:
        return None
    return json.loads(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
