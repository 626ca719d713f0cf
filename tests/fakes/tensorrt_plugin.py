"""A stand-in for the module ``tensorrt.plugin`` that keeps registered functions. It needs nothing from NVIDIA.

The checks of NVIDIA's own sources run in tests/engine/test_tensorrt.py, where those sources are installed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

INPUTS = ["query", "key", "value", "cos", "sin", "position_ids", "recurrent_state", "window_key", "window_value"]
ATTRIBUTES = {
    "gla": ["num_heads", "num_key_value_heads", "head_dim", "window_size", "gate_normalizer", "recurrent_weight"],
    "hgrn2": ["num_heads", "num_key_value_heads", "head_dim", "window_size", "recurrent_weight"],
}
NAMES = {"gla": "liger::GLAAttention", "hgrn2": "liger::HGRN2Attention"}


class TensorDesc:
    def __init__(self, dtype: str = "HALF", batch: Any = "batch", of: "TensorDesc | None" = None) -> None:
        self.of, self.aliases = of, False
        self.dtype = SimpleNamespace(name=dtype)
        self.shape_expr = [batch]

    def like(self) -> "TensorDesc":
        return TensorDesc(self.dtype.name, *self.shape_expr, self)

    def aliased(self) -> "TensorDesc":
        described = self.like()
        described.aliases = True
        return described


@dataclass
class KernelLaunchParams:
    """Launch parameters that a plugin fills in. Sizes default to 1, and other names are rejected."""

    grid_x: Any = 1
    grid_y: Any = 1
    grid_z: Any = 1
    block_x: Any = 1
    block_y: Any = 1
    block_z: Any = 1
    shared_mem: Any = 0

    def __setattr__(self, name: str, value: Any) -> None:
        assert name in self.__dataclass_fields__, name
        super().__setattr__(name, value)


class SymIntExprs:
    def __init__(self, length: int) -> None:
        self.length = length


class AutoTuneCombination:
    def __init__(self, io_types: str, layouts: str, tactics: list[int]) -> None:
        self.io_types, self.layouts, self.tactics = io_types, layouts, tactics


class FakePlugin:
    """Keeps registered functions by operator and kind."""

    TensorDesc, KernelLaunchParams, SymIntExprs = TensorDesc, KernelLaunchParams, SymIntExprs
    AutoTuneCombination = AutoTuneCombination

    def __init__(self) -> None:
        self.functions: dict[tuple[str, str], Callable[..., Any]] = {}
        self.op = SimpleNamespace()

    def register(self, name: str) -> Callable[[Callable[..., Any]], None]:
        namespace, _, operator = name.partition("::")
        defined = vars(self.op).setdefault(namespace, SimpleNamespace())
        assert not hasattr(defined, operator), f"{name} is already defined"
        setattr(defined, operator, name)
        return self._keep(name, "register")

    def autotune(self, name: str) -> Callable[[Callable[..., Any]], None]:
        return self._keep(name, "autotune")

    def aot_impl(self, name: str) -> Callable[[Callable[..., Any]], None]:
        return self._keep(name, "aot_impl")

    def _keep(self, name: str, kind: str) -> Callable[[Callable[..., Any]], None]:
        assert (name, "register") in self.functions or kind == "register"

        def decorate(function: Callable[..., Any]) -> None:
            self.functions[name, kind] = function

        return decorate

    def implement(
        self, mixer: str, tactic: int, values: dict[str, float], dtype: str = "HALF", batch: Any = "batch"
    ) -> tuple[str, str, KernelLaunchParams, SymIntExprs]:
        """Call ``aot_impl`` for one tactic, as TensorRT does, and return its result."""
        tensors = [TensorDesc(dtype, batch) for _ in INPUTS]
        attributes = {name: values[name] for name in ATTRIBUTES[mixer]}
        outputs = self.functions[NAMES[mixer], "register"](*tensors, **attributes)
        implement = self.functions[NAMES[mixer], "aot_impl"]
        result: tuple[str, str, KernelLaunchParams, SymIntExprs] = implement(
            *tensors, *attributes.values(), outputs, tactic
        )
        return result
