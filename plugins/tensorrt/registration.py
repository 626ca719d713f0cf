"""Registration with ``tensorrt.plugin``: what the operators take and give, how they can be cut, and their kernels.

TensorRT reads the functions' signatures, so these are made from the operators' own forms. Attributes are those of the
ONNX node, which carries ``plugin_namespace = "liger"``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter, Signature
from types import GenericAlias
from typing import Any

from liger_export.errors import KernelError
from liger_export.kernels.shapes import KERNEL_MIXERS, AttentionShape
from liger_export.ops.signatures import HEAD_SIZES, SIGNATURES, AttentionSignature
from liger_export.plugins.tensorrt.kernel import fitting_tactics, plugin_kernel

__all__ = ["NAMESPACE", "register_plugins"]

NAMESPACE = "liger"
ACTIVATIONS = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}  # names of tensorrt.DataType
EACH_ACTIVATION = "FP32|FP16|BF16"
FIXED = {
    "cos": "FP32",
    "sin": "FP32",
    "position_ids": "INT64",
    "recurrent_state": "FP32",
    "next_recurrent_state": "FP32",
}


def register_plugins(plugin: Any, target: str, *, in_place: bool = False) -> None:
    """Register ``liger::GLAAttention`` and ``liger::HGRN2Attention``, for calls of one token; once a process is enough.

    Args:
        plugin: the module ``tensorrt.plugin``.
        target: the GPU architecture that engines are built for, a key of ``kernels.targets.TARGETS``.
        in_place: let the recurrent state's output be its input's memory, where TensorRT's aliased plugin I/O is on.
    """
    defined = getattr(plugin.op, NAMESPACE, None)
    for mixer in KERNEL_MIXERS:
        if not hasattr(defined, SIGNATURES[mixer].onnx_name):
            _Registration(plugin, SIGNATURES[mixer], target, in_place).register()


@dataclass(frozen=True)
class _Registration:
    plugin: Any
    signature: AttentionSignature
    target: str
    in_place: bool

    def register(self) -> None:
        identifier = f"{NAMESPACE}::{self.signature.onnx_name}"
        plugin, text = self.plugin, str | bytes
        described = self._typed(self.describe, (), self.outputs)
        tuned = self._typed(self.tune, ("outputs",), GenericAlias(list, (plugin.AutoTuneCombination,)))
        result = GenericAlias(tuple, (text, text, plugin.KernelLaunchParams, plugin.SymIntExprs))
        implemented = self._typed(self.implement, ("outputs", "tactic"), result)
        self.plugin.register(identifier)(described)
        self.plugin.autotune(identifier)(tuned)
        self.plugin.aot_impl(identifier)(implemented)

    @property
    def outputs(self) -> GenericAlias:
        """Type of the outputs' descriptions."""
        return GenericAlias(tuple, (self.plugin.TensorDesc,) * len(self.signature.outputs))

    @property
    def attributes(self) -> dict[str, type]:
        """Attributes of the ONNX node and their types, in order."""
        return dict.fromkeys((*HEAD_SIZES, *self.signature.sizes), int) | dict.fromkeys(self.signature.options, float)

    def describe(self, *tensors: Any, **_: Any) -> tuple[Any, ...]:
        """Outputs: like the query, and like each state."""
        inputs = dict(zip(self.signature.inputs, tensors, strict=True))
        recurrent = inputs["recurrent_state"]
        states = [inputs[name].like() for name in self.signature.states if name != "recurrent_state"]
        return inputs["query"].like(), recurrent.aliased() if self.in_place else recurrent.like(), *states

    def tune(self, *arguments: Any) -> list[Any]:
        """Every activation dtype, with each way to cut the kernel that the GPU has room for."""
        fitting = fitting_tactics(self._shape(arguments), self.target)
        types = [FIXED.get(name, EACH_ACTIVATION) for name in (*self.signature.inputs, *self.signature.outputs)]
        return [self.plugin.AutoTuneCombination(", ".join(types), "LINEAR", fitting)]

    def implement(self, *arguments: Any) -> tuple[str, str, Any, Any]:
        """Name and PTX of the kernel, and how it is launched; it takes no scalars."""
        query, values = arguments[0], self._values(arguments)
        kernel = plugin_kernel(
            self._shape(arguments),
            self.target,
            arguments[-1],
            gate_normalizer=values.get("gate_normalizer", 1.0),
            recurrent_weight=values["recurrent_weight"],
        )
        launch = self.plugin.KernelLaunchParams()
        launch.grid_x, launch.grid_y, launch.grid_z = kernel.columns, kernel.groups, query.shape_expr[0]
        launch.block_x, launch.shared_mem = kernel.threads, kernel.shared_bytes
        return kernel.name, kernel.ptx, launch, self.plugin.SymIntExprs(0)

    def _shape(self, arguments: tuple[Any, ...]) -> AttentionShape:
        query, values = arguments[0], self._values(arguments)
        groups, repeats = values["num_key_value_heads"], values["num_heads"] // values["num_key_value_heads"]
        activation = ACTIVATIONS.get(query.dtype.name)
        if activation is None:
            raise KernelError(f"The plugin computes nothing in {query.dtype.name}.", "Build in fp16, bf16 or fp32.")
        return AttentionShape(
            self.signature.mixer, groups, repeats, values["head_dim"], values["window_size"], activation
        )

    def _values(self, arguments: tuple[Any, ...]) -> dict[str, Any]:
        after = arguments[len(self.signature.inputs) :]
        return dict(zip(self.attributes, after, strict=False))

    def _typed(self, method: Callable[..., Any], further: tuple[str, ...], returns: Any) -> Callable[..., Any]:
        """A function that calls ``method``, with the signature that TensorRT checks: tensors, attributes, the rest."""
        tensor = self.plugin.TensorDesc
        types: dict[str, Any] = dict.fromkeys(self.signature.inputs, tensor) | self.attributes
        types |= {"outputs": self.outputs, "tactic": int}
        names = (*self.signature.inputs, *self.attributes, *further)
        parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=types[name]) for name in names]

        def function(*arguments: Any, **named: Any) -> Any:
            return method(*arguments, **named)

        function.__signature__ = Signature(parameters, return_annotation=returns)  # type: ignore[attr-defined]
        return function
