"""The life of a plugin in TensorRT's builder."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tests.fakes.tensorrt.types import (
    DynamicPluginTensorDesc,
    IDimensionExpr,
    IExprBuilder,
    IPluginV3QuickAOTBuild,
    ITensor,
    PluginField,
    PluginFieldType,
    PluginRegistry,
    QuickPluginCreationRequest,
    TensorFormat,
)


class Plugin:
    """A plugin in a builder, from its creation to its kernels."""

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
        """Return the launch of each tactic. The plugin must support the dtypes of the network as a combination."""
        tensors = [DynamicPluginTensorDesc(each.shape, each.dtype) for each in (*self.inputs, *self.outputs)]
        count, plugin = len(self.inputs), self.implementation
        combinations = plugin.get_supported_format_combinations(tensors, count)
        rows = [combinations[start : start + len(tensors)] for start in range(0, len(combinations), len(tensors))]
        dtypes = [each.desc.type for each in tensors]
        assert dtypes in [[each.type for each in row] for row in rows], f"no combination supports {dtypes}"
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
