"""Enumerations, base classes and small values of TensorRT's native part."""

from collections.abc import Callable
from enum import Enum, IntEnum
from typing import Any

DataType = Enum("DataType", "FLOAT HALF INT8 INT32 BOOL UINT8 FP8 BF16 INT64 INT4")
TensorFormat = Enum("TensorFormat", "LINEAR HWC CHW4")
DimensionOperation = Enum("DimensionOperation", "SUM PROD MAX MIN SUB EQUAL LESS FLOOR_DIV CEIL_DIV")
PluginFieldType = Enum("PluginFieldType", "FLOAT16 FLOAT32 FLOAT64 INT8 INT16 INT32 CHAR DIMS UNKNOWN BF16 INT64")
QuickPluginCreationRequest = Enum(
    "QuickPluginCreationRequest", "UNKNOWN PREFER_JIT PREFER_AOT STRICT_JIT STRICT_AOT", start=0
)
PreviewFeature = Enum(
    "PreviewFeature", "PROFILE_SHARING_0806 ALIASED_PLUGIN_IO_10_03 RUNTIME_ACTIVATION_RESIZE_10_10", start=0
)


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
        """Print nothing, unlike TensorRT's logger."""


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
    """A size that is a constant."""

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
