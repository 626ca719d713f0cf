"""The steps common to NVIDIA's two builders: parse a graph, compare it with the state table, build the engine.

TensorRT and TensorRT for RTX have the same Python interface, except for what a ``Library`` describes.
"""

import json
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liger_export.engine.graph_io import GraphIO, TensorSpec, check_io
from liger_export.engine.graphs import refuse_foreign_operators
from liger_export.errors import EngineError
from liger_export.runtime.cuda import has_gpu

__all__ = ["DTYPES", "BuiltGraph", "Library", "target_names"]

DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64"}  # others: their lower-case name


@dataclass(slots=True)
class BuiltGraph:
    """The result of building one graph.

    Attributes:
        seconds: time to parse and build.
        nbytes: size of the engine file.
        layers: the layers of the parsed network, in order, with their output dtypes; and the report of the engine
            inspector if a GPU could load the engine.
    """

    seconds: float
    nbytes: int
    layers: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Library:
    """One of the two builders.

    Attributes:
        module: its Python module.
        title: its name in error messages.
        network_flags: members of ``NetworkDefinitionCreationFlag``.
        configure: sets builder options for the targets, in addition to those that ``build_graph`` sets.
        plugins: ``liger`` operators that it has plugins for.
        in_place: whether the plugins write the next recurrent state over the one they read.
    """

    module: Any
    title: str
    network_flags: tuple[Any, ...]
    configure: Callable[[Any, list[str]], None]
    plugins: Collection[str] = ()
    in_place: bool = False

    @property
    def version(self) -> str:
        """Version of the library."""
        return str(self.module.__version__)

    def build_graph(
        self, graph_file: Path, engine_file: Path, targets: list[str], expected: GraphIO, log: list[str]
    ) -> BuiltGraph:
        """Build one engine. It is strongly typed: every tensor has the dtype that the graph gives it.

        Args:
            graph_file: a graph of ai.onnx operators and ``plugins``, without functions.
            engine_file: file to create.
            targets: GPU architectures, such as ``sm86``.
            expected: the inputs and outputs that the parsed network must have.
            log: receives the library's messages.

        Raises:
            EngineError: an operator needs a plugin that is missing, the parser or the builder fails, or the inputs or
                outputs differ from the state table.
        """
        started = time.perf_counter()
        operators = refuse_foreign_operators(graph_file, self.plugins)
        logger = _logger(self.module, log, graph_file.parent)
        builder = self.module.Builder(logger)
        network = builder.create_network(sum(1 << int(flag) for flag in self.network_flags))
        self._parse(graph_file, operators, network, logger)
        inputs = _specs([network.get_input(index) for index in range(network.num_inputs)])
        outputs = _specs([network.get_output(index) for index in range(network.num_outputs)])
        check_io(GraphIO(inputs, outputs), expected)
        layers = [_described(network.get_layer(index)) for index in range(network.num_layers)]
        nbytes = self._build(builder, network, targets, engine_file, log)
        seconds = time.perf_counter() - started
        return BuiltGraph(seconds, nbytes, {"network": layers, "engine": self._inspected(engine_file)})

    def _parse(self, graph_file: Path, operators: set[str], network: Any, logger: Any) -> None:
        parser = self.module.OnnxParser(network, logger)
        unsupported = sorted(operator for operator in operators if not parser.supports_operator(operator))
        if unsupported:
            raise EngineError(
                f"{self.title} {self.version} has no layer for {', '.join(unsupported)}.",
                "Report this model as a bug.",
            )
        if not parser.parse_from_file(str(graph_file)):
            reasons = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
            raise EngineError(f"{self.title} cannot read {graph_file.name}: {reasons}.", "Report this model as a bug.")

    def _build(self, builder: Any, network: Any, targets: list[str], engine_file: Path, log: list[str]) -> int:
        """Write the engine file and return its size."""
        config = builder.create_builder_config()
        config.clear_flag(self.module.BuilderFlag.TF32)  # products of gates and state need all bits of float32
        config.profiling_verbosity = self.module.ProfilingVerbosity.DETAILED
        self.configure(config, targets)
        writer = _writer(self.module, engine_file)
        done = builder.build_serialized_network_to_stream(network, config, writer)
        nbytes: int = writer.close()
        if not done or not nbytes:
            raise EngineError(
                f"{self.title} {self.version} built no engine for {', '.join(targets)}.{_last_error(log)}",
                "Omit an architecture, or choose other activations.",
            )
        return nbytes

    def _inspected(self, engine_file: Path) -> Any:
        """The report of the engine inspector; None without a GPU that can load the engine."""
        if not has_gpu():
            return None
        runtime = self.module.Runtime(_logger(self.module, [], engine_file.parent))
        engine = runtime.deserialize_cuda_engine(engine_file.read_bytes())
        if engine is None:
            return None
        inspector = engine.create_engine_inspector()
        return json.loads(inspector.get_engine_information(self.module.LayerInformationFormat.JSON))


def target_names(asked: list[str]) -> list[str]:
    """Return GPU architectures as names such as ``sm86``, without repeats, for numbers (86, 8.6) or names."""
    names = ("sm" + target.lower().removeprefix("sm").lstrip("_").replace(".", "") for target in asked)
    return list(dict.fromkeys(names))


def _logger(module: Any, lines: list[str], folder: Path) -> Any:
    """A logger that collects messages for the build log and removes the path of the build folder from them."""

    class Logger(module.ILogger):  # type: ignore[misc]
        def log(self, severity: Any, message: str) -> None:
            if severity <= module.ILogger.Severity.INFO:
                lines.append(f"{severity.name.lower()}: {message.replace(f'{folder}/', '')}")

    return Logger()


def _writer(module: Any, file: Path) -> Any:
    """A stream that writes the engine to disk piece by piece, so that memory holds no second copy of it.

    The library prints exceptions of its callbacks and continues. Therefore ``write`` reports zero bytes written, and
    ``close`` raises the exception, so that a truncated engine is an error.
    """

    class Writer(module.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._stream = file.open("wb")
            self._failure: BaseException | None = None

        def write(self, data: bytes) -> int:
            try:
                return self._stream.write(data)
            except BaseException as error:
                self._failure = self._failure or error
                return 0

        def close(self) -> int:
            size = self._stream.tell()
            self._stream.close()
            if self._failure is not None:
                raise self._failure
            return size

    return Writer()


def _last_error(log: list[str]) -> str:
    """The library's last error message as a sentence, with a leading space; empty without one."""
    errors = (line for line in reversed(log) if line.startswith(("error", "internal_error")))
    return next((f" Its log says: {line}." for line in errors), "")


def _specs(tensors: list[Any]) -> dict[str, TensorSpec]:
    return {tensor.name: (tuple(tensor.shape), _dtype(tensor)) for tensor in tensors}


def _described(layer: Any) -> dict[str, Any]:
    outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
    return {
        "name": layer.name,
        "type": layer.type.name,
        "outputs": [f"{_dtype(each)} {list(each.shape)}" for each in outputs if each],
    }


def _dtype(tensor: Any) -> str:
    name: str = tensor.dtype.name
    return DTYPES.get(name, name.lower())
