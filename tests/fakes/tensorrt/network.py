"""TensorRT's network and its ONNX parser."""

import sys
from types import SimpleNamespace
from typing import Any

import onnx
from onnx import TensorProto, helper, shape_inference

from tests.fakes.tensorrt.plugin import Plugin
from tests.fakes.tensorrt.types import DataType, ILogger, ITensor, NetworkDefinitionCreationFlag, PluginRegistry

TYPES = {
    TensorProto.FLOAT: DataType.FLOAT,
    TensorProto.FLOAT16: DataType.HALF,
    TensorProto.BFLOAT16: DataType.BF16,
    TensorProto.INT64: DataType.INT64,
}
PLUGIN = "PLUGIN_V3"


class Network:
    def __init__(self, flags: set[NetworkDefinitionCreationFlag]) -> None:
        assert NetworkDefinitionCreationFlag.STRONGLY_TYPED in flags
        self.flags = flags
        self.tensors: dict[str, list[ITensor]] = {"input": [], "output": []}
        self.layers: list[Any] = []

    num_inputs = property(lambda self: len(self.tensors["input"]))
    num_outputs = property(lambda self: len(self.tensors["output"]))
    num_layers = property(lambda self: len(self.layers))

    def get_input(self, index: int) -> ITensor:
        return self.tensors["input"][index]

    def get_output(self, index: int) -> ITensor:
        return self.tensors["output"][index]

    def get_layer(self, index: int) -> Any:
        return self.layers[index]


class OnnxParser:
    def __init__(self, network: Network, logger: ILogger) -> None:
        assert logger.is_native
        self.network, self.logger = network, logger
        self.errors: list[str] = []

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(desc=lambda: self.errors[index])

    def supports_operator(self, name: str) -> bool:
        return onnx.defs.has(name)

    def parse_from_file(self, file: str) -> bool:
        model = onnx.load(file, load_external_data=False)
        plugins: dict[str, Plugin] = {}
        try:
            for node in model.graph.node:
                if node.domain not in ("", "ai.onnx"):
                    known = self._inferred(model, plugins)
                    plugins[node.name] = Plugin(
                        node, [known[name] for name in node.input], _registry(sys.modules["tensorrt"])
                    )
        except LookupError as error:
            self.errors.append(str(error))
            return False
        known = self._inferred(model, plugins)
        self.network.tensors = {
            "input": [known[value.name] for value in model.graph.input],
            "output": [known[value.name] for value in model.graph.output],
        }
        self.network.layers = [self._layer(node, known, plugins) for node in model.graph.node]
        self.logger.log(ILogger.Severity.INFO, f"Input filename: {file}")
        return True

    def _inferred(self, model: onnx.ModelProto, plugins: dict[str, Plugin]) -> dict[str, ITensor]:
        """Shapes and dtypes of all tensors; those of plugin outputs come from the plugins."""
        described = onnx.ModelProto()
        described.CopyFrom(model)
        of_type = {kind: number for number, kind in TYPES.items()}
        given = {tensor.name: tensor for plugin in plugins.values() for tensor in plugin.outputs}
        kept = [value for value in described.graph.output if value.name not in given]
        del described.graph.output[:]
        described.graph.output.extend(kept)
        described.graph.value_info.extend(
            helper.make_tensor_value_info(name, of_type[tensor.dtype], tensor.shape) for name, tensor in given.items()
        )
        graph = shape_inference.infer_shapes(described).graph
        known = dict(given)
        for value in (*graph.input, *graph.output, *graph.value_info):
            kind = value.type.tensor_type
            if kind.elem_type in TYPES and value.name not in known:
                shape = tuple(size.dim_value for size in kind.shape.dim)
                known[value.name] = ITensor(value.name, shape, TYPES[kind.elem_type])
        return known

    def _layer(self, node: onnx.NodeProto, known: dict[str, ITensor], plugins: dict[str, Plugin]) -> Any:
        kind = (
            PLUGIN if node.name in plugins else "MATRIX_MULTIPLY" if node.op_type == "MatMul" else node.op_type.upper()
        )
        outputs = [known.get(name) for name in node.output]
        return SimpleNamespace(
            name=node.name,
            type=SimpleNamespace(name=kind),
            num_outputs=len(outputs),
            get_output=lambda index: outputs[index],
            plugin=plugins.get(node.name),
        )


def _registry(module: Any) -> PluginRegistry:
    registry: PluginRegistry = module.get_plugin_registry()
    return registry
