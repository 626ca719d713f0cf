"""Sessions that drive engines: addresses, turns, padding. The fake engines here count tokens."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from liger_export.engine.graph_io import expected_io
from liger_export.errors import EnvironmentMismatchError
from liger_export.package import read_manifest
from liger_export.package.engines import TENSORRT, TENSORRT_RTX, EngineRecord
from liger_export.runtime import Session, read_tokenizer
from liger_export.runtime.cuda import Cuda
from liger_export.runtime.fixed import FixedExecutor
from liger_export.runtime.tensorrt import MODULES, TensorRTGraphs
from tests.fakes.cuda_driver import RecordingDriver
from tests.fakes.engines import CountingCuda, CountingEngine
from tests.runtime.test_guard import interrupted_at, moments, state_or_none

RECORD = EngineRecord(
    backend=TENSORRT_RTX,
    backend_version="0",
    targets=["sm86"],
    activations="float16",
    chunk=32,
    package_sha256="",
    precisions={},
)
RTX = SimpleNamespace(CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole"))
TRT = SimpleNamespace()  # does not capture graphs itself


def session_of(
    package: Path, works: bool = True, library: SimpleNamespace = RTX, in_place: Sequence[str] = ()
) -> tuple[Session, CountingCuda, dict[int, CountingEngine]]:
    packaged = read_manifest(package)
    graphs = {"portable": replace(packaged.graphs["stock"], in_place=list(in_place))}
    manifest = replace(packaged, engine=RECORD, graphs=graphs)
    engines = {length: CountingEngine(expected_io(manifest, length), works) for length in RECORD.files}
    cuda = CountingCuda()
    model = TensorRTGraphs(library, cuda, engines)  # type: ignore[arg-type]
    return Session(manifest, read_tokenizer(package), FixedExecutor(model, manifest)), cuda, engines


def test_a_prompt_is_read_in_full_calls_and_a_padded_one(package: Path) -> None:
    session, cuda, engines = session_of(package)
    logits = session.prefill([1] * 69 + [42])
    assert (logits.argmax(), session.position, cuda.waits) == (42, 70, 3)  # 32, 32 and 6 with padding
    assert {float(value) for array in session.state().tensors.values() for value in array.flat} == {70.0}
    assert session.step(17).argmax() == 17
    assert (session.position, cuda.waits) == (71, 4)
    assert {float(value) for array in session.state().tensors.values() for value in array.flat} == {71.0}
    np.testing.assert_array_equal(session.all_logits([5, 6, 7]).argmax(-1), [5, 6, 7])
    session.reset()
    assert not any(array.any() for array in session.state().tensors.values())
    strategies = {options.cuda_graph_strategy for engine in engines.values() for options in engine.options}
    assert (strategies, cuda.replays) == ({"whole"}, 0)


def test_in_place_states_have_one_buffer_and_long_calls_copy_to_it(package: Path) -> None:
    names = [f"past_key_values.{layer}.recurrent_state" for layer in (0, 1)]
    session, cuda, engines = session_of(package, library=TRT, in_place=names)
    assert cuda.replays == 4  # two turns of two graphs
    for length, engine in engines.items():
        for context in engine.contexts:
            for name in engine.io.inputs:
                if name.startswith("past"):
                    present = context.addresses[name.replace("past_key_values", "present")]
                    assert (present == context.addresses[name]) == (length == 1 and name in names)
    assert len(session.buffer_addresses()) == 2 * len(session.manifest.state) - len(names)
    session.prefill([1] * 69 + [42])
    session.step(17)
    session.prefill([3] * 7)
    session.step(18)
    assert {float(value) for array in session.state().tensors.values() for value in array.flat} == {79.0}


@pytest.mark.parametrize("in_place", [False, True])
def test_an_interrupted_call_leaves_no_state_between_two_tokens(package: Path, in_place: bool) -> None:
    """The longer graph writes state that is updated in place to other buffers, which are then copied back."""
    names = [f"past_key_values.{layer}.recurrent_state" for layer in (0, 1)] if in_place else []
    session, *_ = session_of(package, in_place=names)
    refused = 0
    for moment in moments(8):
        session.reset()
        session.prefill([1] * 5)
        if not interrupted_at(moment, lambda: session.prefill([1] * 69)):
            break
        state = state_or_none(session)
        refused += state is None
        if state is not None:
            assert state.position in (5, 74)
            assert {float(value) for array in state.tensors.values() for value in array.flat} == {state.position}
    assert refused > 3


def test_a_call_is_run_then_captured_then_replayed() -> None:
    driver = RecordingDriver()
    cuda = Cuda(driver=driver, capability="sm86")
    launch = cuda.replayed(lambda: driver.calls.append("work"))
    capture = ["cuStreamBeginCapture_v2", "work", "cuStreamEndCapture", "cuGraphInstantiateWithFlags", "cuGraphDestroy"]
    for expected in (["work"], [*capture, "cuGraphLaunch"], ["cuGraphLaunch"], ["cuGraphLaunch"]):
        driver.calls.clear()
        launch()
        assert driver.calls == expected


@pytest.mark.parametrize("backend", [TENSORRT, TENSORRT_RTX])
def test_a_missing_or_other_library_is_named(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = replace(RECORD, backend=backend, backend_version="10.13.3.9")
    monkeypatch.setitem(sys.modules, MODULES[backend], None)
    with pytest.raises(EnvironmentMismatchError, match=rf"{backend} cannot be loaded.*pip install.*==10\.13\.3\.9"):
        TensorRTGraphs.open(tmp_path, record)
    monkeypatch.setitem(sys.modules, MODULES[backend], SimpleNamespace(__version__="10.9.0.34"))
    with pytest.raises(
        EnvironmentMismatchError, match=rf"built with {backend} 10\.13\.3\.9, but 10\.9\.0\.34 is installed"
    ):
        TensorRTGraphs.open(tmp_path, record)


def test_an_engine_that_fails_is_reported(package: Path) -> None:
    session, *_ = session_of(package, works=False)
    with pytest.raises(EnvironmentMismatchError, match="could not run"):
        session.prefill([1])
