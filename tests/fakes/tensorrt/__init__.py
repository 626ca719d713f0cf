"""A stand-in for the module ``tensorrt``: its native part in Python, under NVIDIA's own Python sources.

``tensorrt.plugin`` is NVIDIA's, from the wheel ``tensorrt-cu13-bindings`` (or -cu12) on PyPI. It checks registered
functions and makes plugins from them. The native classes here call these plugins as TensorRT's builder does, and reject
names, flags and orders of calls that TensorRT does not have. Nothing is optimized or computed: an engine is a JSON file
that lists what the builder was given.
"""

import importlib.util
import sys
from enum import Enum
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from tests.fakes.tensorrt import builder, network, types
from tests.fakes.tensorrt.types import DataType, PluginRegistry

__all__ = ["VERSION", "fake_tensorrt", "install", "needs_bindings"]

VERSION = "11.4.0.106"
SOURCES = importlib.util.find_spec("tensorrt_bindings")
needs_bindings = pytest.mark.skipif(
    SOURCES is None, reason="needs TensorRT's Python sources: pip install tensorrt-cu13-bindings"
)


def fake_tensorrt(version: str = VERSION) -> ModuleType:
    """Make a module ``tensorrt`` for ``sys.modules``; ``tensorrt.plugin`` is then NVIDIA's own."""
    module, registry = ModuleType("tensorrt"), PluginRegistry()
    module.__spec__ = ModuleSpec("tensorrt", None)  # other libraries look it up
    for part in (types, network, builder):
        vars(module).update({name: value for name, value in vars(part).items() if _is_own_class(value, part)})
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
    """Make ``import tensorrt`` return the stand-in in this process."""
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorrt"]:
        del sys.modules[name]
    sys.modules["tensorrt"] = fake_tensorrt(version)


def _is_own_class(value: object, module: ModuleType) -> bool:
    return isinstance(value, type) and value.__module__ == module.__name__
