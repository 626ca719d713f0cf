"""How a session drives engines: addresses, turns, padding. The engines here count tokens instead of computing."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from liger_export.engine.check import Signature, expected_signature
from liger_export.errors import EnvironmentMismatchError
from liger_export.package import read_manifest
from liger_export.package.engines import TENSORRT_RTX, EngineRecord
from liger_export.runtime import read_tokenizer
from liger_export.runtime.fixed import FixedSession
from liger_export.runtime.tensorrt import TensorRTGraphs

STREAM = 7


def at(address: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    memory = (ctypes.c_uint8 * (prod(shape) * np.dtype(dtype).itemsize)).from_address(address)
    return np.ctypeslib.as_array(memory).view(dtype).reshape(shape)


@dataclass
class CountingContext:
    """Adds the number of real tokens to every state, and gives each token the highest logit after itself."""

    signature: tuple[Signature, Signature]
    works: bool = True
    addresses: dict[str, int] = field(default_factory=dict)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == STREAM
        inputs, outputs = self.signature
        tensors = {name: at(self.addresses[name], *entry) for name, entry in (inputs | outputs).items()}
        count = int((tensors["position_ids"] >= 0).sum())
        for name in outputs:
            if name != "logits":
                tensors[name][:] = tensors[name.replace("present", "past_key_values")] + count
        tensors["logits"].fill(0)
        np.put_along_axis(tensors["logits"], tensors["input_ids"][..., None], 1, -1)
        return self.works


@dataclass
class CountingEngine:
    signature: tuple[Signature, Signature]
    works: bool = True
    options: list[Any] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [name for part in self.signature for name in part]

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def create_runtime_config(self) -> Any:
        self.options.append(SimpleNamespace(cuda_graph_strategy=None))
        return self.options[-1]

    def create_execution_context(self, options: Any) -> CountingContext:
        assert options is self.options[-1]
        return CountingContext(self.signature, self.works)


@dataclass
class CountingCuda:
    stream: int = STREAM
    waits: int = 0

    def zeros(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.zeros(shape, dtype)

    def synchronize(self) -> None:
        self.waits += 1


def session_of(
    package: Path, works: bool = True, in_place: Sequence[str] = ()
) -> tuple[FixedSession, CountingCuda, dict[int, CountingEngine]]:
    record = EngineRecord(
        backend=TENSORRT_RTX,
        backend_version="0",
        targets=["sm86"],
        activations="float16",
        chunk=32,
        package_sha256="",
        precisions={},
    )
    package_manifest = read_manifest(package)
    graph = replace(package_manifest.graphs["stock"], in_place=list(in_place))
    manifest = replace(package_manifest, engine=record, graphs={"portable": graph})
    engines = {length: CountingEngine(expected_signature(manifest, length), works) for length in record.files}
    cuda = CountingCuda()
    library = SimpleNamespace(CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole"))
    graphs = TensorRTGraphs(library, cuda, engines)  # type: ignore[arg-type]
    return FixedSession(manifest, read_tokenizer(package), graphs, lowering="portable", device="cuda"), cuda, engines


def test_prompts_are_whole_calls_padding_and_steps(package: Path) -> None:
    session, cuda, engines = session_of(package)
    logits = session.prefill([1] * 69 + [42])
    assert (logits.argmax(), session.position, cuda.waits) == (42, 70, 3)  # 32, 32 and 6 beside padding
    assert {float(value) for array in session.state().tensors.values() for value in array.flat} == {70.0}
    assert session.step(17).argmax() == 17
    assert (session.position, cuda.waits) == (71, 4)
    assert {float(value) for array in session.state().tensors.values() for value in array.flat} == {71.0}
    np.testing.assert_array_equal(session.all_logits([5, 6, 7]).argmax(-1), [5, 6, 7])
    session.reset()
    assert not any(array.any() for array in session.state().tensors.values())
    strategies = {options.cuda_graph_strategy for engine in engines.values() for options in engine.options}
    assert strategies == {"whole"}


def test_an_engine_that_does_not_run_is_said_so(package: Path) -> None:
    session, *_ = session_of(package, works=False)
    with pytest.raises(EnvironmentMismatchError, match="did not run"):
        session.prefill([1])
