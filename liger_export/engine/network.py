"""What NVIDIA's two builders have in common: a graph is parsed, held against the state table, and built.

TensorRT and TensorRT for RTX have one Python interface but for what a ``Library`` names.
"""

import json
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liger_export.engine.check import Signature, check_signature, refuse_foreign_operators
from liger_export.errors import EngineError
from liger_export.runtime.cuda import has_gpu

__all__ = ["DTYPES", "BuiltGraph", "Library", "target_names"]

DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64"}  # others: in small letters


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


@dataclass(frozen=True, slots=True)
class Library:
    """One of the two builders.

    Attributes:
        module: its Python module.
        title: what its errors call it.
        network_flags: members of ``NetworkDefinitionCreationFlag``.
        configure: sets the builder's options for the targets, beside those of ``_build``.
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
        """Of the library."""
        return str(self.module.__version__)

    def build_graph(
        self,
        graph_file: Path,
        engine_file: Path,
        targets: list[str],
        signature: tuple[Signature, Signature],
        log: list[str],
    ) -> BuiltGraph:
        """Build one engine. Strongly typed: every tensor has the type that the graph gives it.

        Args:
            graph_file: a graph of ai.onnx operators and ``plugins``, without functions.
            engine_file: file to create.
            targets: GPU architectures, such as ``sm86``.
            signature: the inputs and outputs that the parsed network must have.
            log: what the library says is added to it.

        Raises:
            EngineError: an operator needs a plugin that there is not, the parser or the builder fails, or the network
                is not the contract's.
        """
        started = time.perf_counter()
        operators = refuse_foreign_operators(graph_file, self.plugins)
        logger = _logger(self.module, log, graph_file.parent)
        builder = self.module.Builder(logger)
        network = builder.create_network(sum(1 << int(flag) for flag in self.network_flags))
        parser = self.module.OnnxParser(network, logger)
        foreign = sorted(operator for operator in operators if not parser.supports_operator(operator))
        if foreign:
            raise EngineError(
                f"{self.title} {self.version} has no layer for {', '.join(foreign)}.", "Report this model as a bug."
            )
        if not parser.parse_from_file(str(graph_file)):
            reasons = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
            raise EngineError(f"{self.title} cannot read {graph_file.name}: {reasons}.", "Report this model as a bug.")
        found = (
            _signature([network.get_input(index) for index in range(network.num_inputs)]),
            _signature([network.get_output(index) for index in range(network.num_outputs)]),
        )
        for what, tensors, expected in zip(("input", "output"), found, signature, strict=True):
            check_signature(what, tensors, expected)
        layers = [_described(network.get_layer(index)) for index in range(network.num_layers)]
        nbytes = self._build(builder, network, targets, engine_file, log)
        seconds = time.perf_counter() - started
        return BuiltGraph(seconds, nbytes, {"network": layers, "engine": self._inspected(engine_file)})

    def _build(self, builder: Any, network: Any, targets: list[str], engine_file: Path, log: list[str]) -> int:
        config = builder.create_builder_config()
        config.clear_flag(self.module.BuilderFlag.TF32)  # products of gates and of the state are float32's own
        config.profiling_verbosity = self.module.ProfilingVerbosity.DETAILED
        self.configure(config, targets)
        writer = _writer(self.module, engine_file)
        done = builder.build_serialized_network_to_stream(network, config, writer)
        nbytes: int = writer.close()
        if not done or not nbytes:
            raise EngineError(
                f"{self.title} {self.version} built nothing for {', '.join(targets)}.",
                f"{_last_error(log)} Leave away an architecture, or choose other activations.",
            )
        return nbytes

    def _inspected(self, engine_file: Path) -> Any:
        """What the engine inspector says, which needs a GPU that can load the engine; None without one."""
        if not has_gpu():
            return None
        runtime = self.module.Runtime(_logger(self.module, [], engine_file.parent))
        engine = runtime.deserialize_cuda_engine(engine_file.read_bytes())
        if engine is None:
            return None
        inspector = engine.create_engine_inspector()
        return json.loads(inspector.get_engine_information(self.module.LayerInformationFormat.JSON))


def target_names(asked: list[str]) -> list[str]:
    """GPU architectures as this project writes them (``sm86``), from numbers (86, 8.6) or names, each once."""
    names = ("sm" + target.lower().removeprefix("sm").lstrip("_").replace(".", "") for target in asked)
    return list(dict.fromkeys(names))


def _logger(module: Any, lines: list[str], folder: Path) -> Any:
    """Keeps what the library says for the build log, without the folder of the machine that built."""

    class Logger(module.ILogger):  # type: ignore[misc]
        def log(self, severity: Any, message: str) -> None:
            if severity <= module.ILogger.Severity.INFO:
                lines.append(f"{severity.name.lower()}: {message.replace(f'{folder}/', '')}")

    return Logger()


def _writer(module: Any, file: Path) -> Any:
    """Takes the engine piece by piece, so that no second copy of it is in memory.

    The library prints what its callbacks raise and goes on. So ``write`` says that it wrote nothing, and ``close``
    raises: an engine that was cut is none.
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
    return next((f"It says: {line}." for line in reversed(log) if line.startswith(("error", "internal_error"))), "")


def _signature(tensors: list[Any]) -> Signature:
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
