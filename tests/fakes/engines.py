"""Stand-ins for TensorRT's engines and the GPU they run on. The engines count tokens instead of computing."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np

from liger_export.engine.graph_io import GraphIO

STREAM = 7


def array_at(address: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    memory = (ctypes.c_uint8 * (prod(shape) * np.dtype(dtype).itemsize)).from_address(address)
    return np.ctypeslib.as_array(memory).view(dtype).reshape(shape)


@dataclass
class CountingContext:
    """Adds the number of real tokens to every state, and makes each token the argmax of the logits after it."""

    io: GraphIO
    works: bool = True
    addresses: dict[str, int] = field(default_factory=dict)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == STREAM
        inputs, outputs = self.io
        tensors = {name: array_at(self.addresses[name], *entry) for name, entry in (inputs | outputs).items()}
        count = int((tensors["position_ids"] >= 0).sum())
        for name in outputs:
            if name != "logits":
                tensors[name][:] = tensors[name.replace("present", "past_key_values")] + count
        tensors["logits"].fill(0)
        np.put_along_axis(tensors["logits"], tensors["input_ids"][..., None], 1, -1)
        return self.works


@dataclass
class CountingEngine:
    """An engine whose contexts count tokens."""

    io: GraphIO
    works: bool = True
    options: list[Any] = field(default_factory=list)
    contexts: list[CountingContext] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [name for part in self.io for name in part]

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def create_runtime_config(self) -> Any:
        self.options.append(SimpleNamespace(cuda_graph_strategy=None))
        return self.options[-1]

    def create_execution_context(self, options: Any = None) -> CountingContext:
        assert options is (self.options[-1] if self.options else None)
        self.contexts.append(CountingContext(self.io, self.works))
        return self.contexts[-1]


@dataclass
class CountingCuda:
    """A GPU whose memory is the host's. It counts waits and captured graphs."""

    stream: int = STREAM
    waits: int = 0
    replays: int = 0

    def zeros(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.zeros(shape, dtype)

    def synchronize(self) -> None:
        self.waits += 1

    def copy(self, source: np.ndarray, target: np.ndarray) -> None:
        target[...] = source

    def replayed(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        self.replays += 1
        return enqueue
