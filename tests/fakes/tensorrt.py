"""A stand-in for the module ``tensorrt``: its native part in Python, so that NVIDIA's own Python part runs on it.

``tensorrt.plugin`` is the one of NVIDIA's wheel ``tensorrt-cu13-bindings`` (or -cu12), which PyPI has: it checks what
is registered, and makes plugins of it. The native classes here call these as TensorRT's builder does, and refuse names,
flags and orders of calls that the real ones do not know. Nothing is optimized: an engine is a JSON file of what the
builder was told.
"""

import importlib.util
import json
import sys
from collections.abc import Callable
from enum import Enum, IntEnum
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, shape_inference

VERSION = "11.4.0.106"
SOURCES = importlib.util.find_spec("tensorrt_bindings")
needs_bindings = pytest.mark.skipif(
    SOURCES is None, reason="needs TensorRT's Python sources: pip install tensorrt-cu13-bindings"
)

DataType = Enum("DataType", "FLOAT HALF INT8 INT32 BOOL UINT8 FP8 BF16 INT64 INT4")
TYPES = {
    TensorProto.FLOAT: DataType.FLOAT,
    TensorProto.FLOAT16: DataType.HALF,
    TensorProto.BFLOAT16: DataType.BF16,
    TensorProto.INT64: DataType.INT64,
}
TensorFormat = Enum("TensorFormat", "LINEAR HWC CHW4")
DimensionOperation = Enum("DimensionOperation", "SUM PROD MAX MIN SUB EQUAL LESS FLOOR_DIV CEIL_DIV")
PluginFieldType = Enum("PluginFieldType", "FLOAT16 FLOAT32 FLOAT64 INT8 INT16 INT32 CHAR DIMS UNKNOWN BF16 INT64")
QuickPluginCreationRequest = Enum(
    "QuickPluginCreationRequest", "UNKNOWN PREFER_JIT PREFER_AOT STRICT_JIT STRICT_AOT", start=0
)
PLUGIN = "PLUGIN_V3"


class NetworkDefinitionCreationFlag(IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1
    PREFER_JIT_PYTHON_PLUGINS = 2
    PREFER_AOT_PYTHON_PLUGINS = 3


class ILogger:
    Severity = IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0)
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def __init__(self) -> None:
        self.is_native = True

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError


class Logger(ILogger):
    def __init__(self, least: Any = ILogger.Severity.WARNING) -> None:
        super().__init__()

    def log(self, severity: Any, message: str) -> None:
        """Printed, by the real one."""


class IStreamWriter:
    def __init__(self) -> None:
        self.is_native = True


class _Native:
    """A base class whose constructor must be called."""

    def __init__(self) -> None:
        self.is_native = True


class IPluginV3(_Native): ...


class IPluginV3QuickCore(_Native): ...


class IPluginV3QuickBuild(_Native): ...


class IPluginV3QuickRuntime(_Native): ...


class IPluginV3QuickAOTBuild(_Native): ...


class IPluginCreatorV3Quick(_Native): ...


class ISymExpr(_Native): ...


class IDimensionExpr:
    """A size that is known."""

    def __init__(self, value: int) -> None:
        self.value = value

    def is_constant(self) -> bool:
        return True

    def get_constant_value(self) -> int:
        return self.value


class IExprBuilder:
    def constant(self, value: int) -> IDimensionExpr:
        return IDimensionExpr(value)

    def operation(self, kind: Any, first: IDimensionExpr, second: IDimensionExpr) -> IDimensionExpr:
        apply: dict[Any, Callable[[int, int], int]] = {
            DimensionOperation.SUM: lambda a, b: a + b,
            DimensionOperation.PROD: lambda a, b: a * b,
            DimensionOperation.SUB: lambda a, b: a - b,
            DimensionOperation.FLOOR_DIV: lambda a, b: a // b,
        }
        return IDimensionExpr(apply[kind](first.value, second.value))


class DimsExprs(list):  # type: ignore[type-arg]
    def __init__(self, length: int) -> None:
        super().__init__([None] * length)


class Dims(tuple):  # type: ignore[type-arg]
    MAX_DIMS = 8


class PluginTensorDesc:
    def __init__(self, dims: tuple[int, ...] = (), kind: Any = None) -> None:
        self.dims, self.type, self.format, self.scale = Dims(dims), kind, TensorFormat.LINEAR, 1.0


class DynamicPluginTensorDesc:
    def __init__(self, dims: tuple[int, ...], kind: Any) -> None:
        self.desc, self.min, self.max, self.opt = PluginTensorDesc(dims, kind), dims, dims, dims


class PluginField:
    def __init__(self, name: str, data: Any = None, kind: Any = PluginFieldType.UNKNOWN) -> None:
        self.name, self.data, self.type = name, data, kind


class PluginRegistry:
    def __init__(self) -> None:
        self.creators: dict[tuple[str, str, str], Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> bool:
        assert creator.is_native
        self.creators[creator.name, creator.plugin_version, namespace] = creator
        return True

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        return self.creators.get((name, version, namespace))


class ITensor:
    def __init__(self, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype


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


class Plugin:
    """One plugin's life in a builder, from creation to its kernels."""

    def __init__(self, node: onnx.NodeProto, inputs: list[ITensor], registry: PluginRegistry) -> None:
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        namespace, version = attributes["plugin_namespace"].decode(), "1"
        creator = registry.get_creator(node.op_type, version, namespace)
        if creator is None:
            raise LookupError(f"Cannot find plugin: {node.op_type}, version: {version}, namespace: {namespace}")
        types = {int: PluginFieldType.INT32, float: PluginFieldType.FLOAT32}
        fields = [
            PluginField(field.name, np.array([attributes[field.name]]), types[type(attributes[field.name])])
            for field in creator.field_names
        ]
        request = QuickPluginCreationRequest.STRICT_AOT if attributes["aot"] else QuickPluginCreationRequest.STRICT_JIT
        self.implementation = creator.create_plugin(node.op_type, namespace, fields, "BUILD", request)
        assert isinstance(self.implementation, IPluginV3QuickAOTBuild)
        self.inputs = inputs
        kinds = self.implementation.get_output_data_types(
            [each.dtype for each in inputs], [len(each.shape) for each in inputs]
        )
        sizes = [[IDimensionExpr(size) for size in each.shape] for each in inputs]
        shapes = self.implementation.get_output_shapes(sizes, [], IExprBuilder())
        self.outputs = [
            ITensor(name, tuple(size.value for size in shape), kind)
            for name, shape, kind in zip(node.output, shapes, kinds, strict=True)
        ]
        self.aliases = [self.implementation.get_aliased_input(index) for index in range(len(self.outputs))]

    def kernels(self) -> list[dict[str, Any]]:
        """What each tactic launches, if the types of the network are among those that the plugin takes."""
        tensors = [DynamicPluginTensorDesc(each.shape, each.dtype) for each in (*self.inputs, *self.outputs)]
        count, plugin = len(self.inputs), self.implementation
        combinations = plugin.get_supported_format_combinations(tensors, count)
        rows = [combinations[start : start + len(tensors)] for start in range(0, len(combinations), len(tensors))]
        asked = [each.desc.type for each in tensors]
        assert asked in [[each.type for each in row] for row in rows], f"no combination takes {asked}"
        assert {each.format for row in rows for each in row} == {TensorFormat.LINEAR}
        plugin.configure_plugin(tensors[:count], tensors[count:])
        kernels = []
        for tactic in sorted(plugin.get_valid_tactics()):
            plugin.set_tactic(tactic)
            launch, scalars = SimpleNamespace(), SimpleNamespace()
            sizes = [[IDimensionExpr(size) for size in each.shape] for each in self.inputs]
            plugin.get_launch_params(sizes, tensors, count, launch, scalars, IExprBuilder())
            name, ptx = plugin.get_kernel(
                [each.desc for each in tensors[:count]], [each.desc for each in tensors[count:]]
            )
            numbers = {key: expression.expr.value for key, expression in vars(launch).items()}
            kernels.append({"name": name, "ptx": ptx.decode(), "scalars": scalars.nbSymExprs, **numbers})
        return kernels


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
        """Shapes and types of all tensors; those behind plugins as the plugins have them."""
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


class BuilderConfig:
    def __init__(self) -> None:
        self.flags = {"TF32"}
        self.features: set[Any] = set()
        self.profiling_verbosity: Any = None

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag.name)

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag.name)

    def set_preview_feature(self, feature: Any, is_on: bool) -> None:
        (self.features.add if is_on else self.features.discard)(feature)


class Builder:
    def __init__(self, logger: ILogger) -> None:
        assert logger.is_native

    def create_network(self, flags: int) -> Network:
        return Network({flag for flag in NetworkDefinitionCreationFlag if flags >> flag & 1})

    def create_builder_config(self) -> BuilderConfig:
        return BuilderConfig()

    def build_serialized_network_to_stream(self, network: Network, config: BuilderConfig, writer: Any) -> bool:
        assert writer.is_native
        plugins = {layer.name: layer.plugin for layer in network.layers if layer.plugin is not None}
        is_aliased = any(index >= 0 for plugin in plugins.values() for index in plugin.aliases)
        if is_aliased and PreviewFeature.ALIASED_PLUGIN_IO_10_03 not in config.features:
            return False
        told = {
            "flags": sorted(flag.name for flag in network.flags),
            "builder_flags": sorted(config.flags),
            "aliases": {name: plugin.aliases for name, plugin in plugins.items()},
            "kernels": {name: plugin.kernels() for name, plugin in plugins.items()},
        }
        content = json.dumps(told).encode()
        return all(writer.write(piece) == len(piece) for piece in (content[:100], content[100:]))


PreviewFeature = Enum(
    "PreviewFeature", "PROFILE_SHARING_0806 ALIASED_PLUGIN_IO_10_03 RUNTIME_ACTIVATION_RESIZE_10_10", start=0
)


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        assert logger.is_native

    def deserialize_cuda_engine(self, content: bytes) -> Any:
        inspector = SimpleNamespace(get_engine_information=lambda kind: json.dumps({"Layers": [], "format": kind.name}))
        return SimpleNamespace(told=json.loads(content), create_engine_inspector=lambda: inspector)


def _registry(module: Any) -> PluginRegistry:
    registry: PluginRegistry = module.get_plugin_registry()
    return registry


def fake_tensorrt(version: str = VERSION) -> ModuleType:
    """A fresh module ``tensorrt``, to be put into ``sys.modules``; ``tensorrt.plugin`` is then NVIDIA's own."""
    module, registry = ModuleType("tensorrt"), PluginRegistry()
    module.__spec__ = ModuleSpec("tensorrt", None)  # others look for it
    members = {name: value for name, value in globals().items() if isinstance(value, type) and name != "Plugin"}
    vars(module).update(members)
    vars(module).update(
        __version__=version,
        float32=DataType.FLOAT,
        float16=DataType.HALF,
        int32=DataType.INT32,
        int64=DataType.INT64,
        get_plugin_registry=lambda: registry,
        PluginFieldCollection=list,
        PluginArgType=Enum("PluginArgType", "INT"),
        PluginArgDataType=Enum("PluginArgDataType", "INT8 INT16 INT32"),
        TensorRTPhase=Enum("TensorRTPhase", "BUILD RUNTIME"),
        BuilderFlag=Enum("BuilderFlag", "TF32 WEIGHT_STREAMING"),
        ProfilingVerbosity=Enum("ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED"),
        LayerInformationFormat=Enum("LayerInformationFormat", "ONELINE JSON"),
    )
    if SOURCES is not None and SOURCES.submodule_search_locations:
        module.__path__ = list(SOURCES.submodule_search_locations)
    return module


def install(version: str = VERSION) -> None:
    """Make ``import tensorrt`` give the stand-in, in this process, from now on."""
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorrt"]:
        del sys.modules[name]
    sys.modules["tensorrt"] = fake_tensorrt(version)
