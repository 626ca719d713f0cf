"""Engine directories in ONNX Runtime: the same laws and interface as a package, and interchangeable states."""

from pathlib import Path

import numpy as np
import pytest

from liger_export.config import MIXERS
from liger_export.convert import convert
from liger_export.engine.build import EngineSettings, build_engine
from liger_export.errors import EnvironmentMismatchError, InputError, PackageError
from liger_export.runtime import Session, load
from liger_export.runtime.cuda import Cuda
from liger_export.runtime.fixed import FixedExecutor
from liger_export.validate import ValidationSettings, validate
from tests.backbones import write_hybrid
from tests.cells import slow_except
from tests.runtime.test_guard import (
    assert_close,
    check_interrupted_prefills,
    interrupted_at,
    moments,
    state_or_none,
    states_by_position,
)
from tests.tiny import edit_json

TOKENS = [int(token) for token in np.random.default_rng(0).integers(1, 260, 75)]
PORTABLE = EngineSettings(backend="onnx", activations="fp32", chunk=32, check_tokens=0)


@pytest.fixture(scope="module")
def engine(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fixed") / "engine"
    build_engine(package, directory, PORTABLE)
    return directory


@pytest.fixture
def session(engine: Path) -> Session:
    return load(engine)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", slow_except(["gla"], MIXERS))
def test_portable_graphs_validate_within_the_float32_tolerances(mixer: str, tmp_path: Path, random_text: Path) -> None:
    checkpoint = write_hybrid(tmp_path / "liger", mixer)
    convert(checkpoint, tmp_path / "package")
    build_engine(tmp_path / "package", tmp_path / "engine", PORTABLE)
    settings = ValidationSettings(text=random_text, max_tokens=4096, memory_tokens=128)
    report = validate(tmp_path / "engine", checkpoint, settings)
    assert [f"{check.name} {check.value:.2g} {check.detail}" for check in report.checks if not check.passed] == []


def test_its_executor_runs_fixed_graphs(session: Session) -> None:
    assert isinstance(session.executor, FixedExecutor)


def test_it_has_one_device_and_one_lowering(engine: Path) -> None:
    with pytest.raises(InputError, match=r"no device 'cuda' in this engine directory.*cpu"):
        load(engine, device="cuda")
    with pytest.raises(InputError, match=r"no lowering 'fused' in this engine directory.*portable"):
        load(engine, lowering="fused")


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 64, 75])
def test_prompts_of_any_length_give_the_logits_of_the_package(count: int, session: Session, package: Path) -> None:
    expected = load(package).all_logits(TOKENS[:count])
    measured = session.all_logits(TOKENS[:count])
    assert measured.shape == expected.shape
    assert np.linalg.norm(measured - expected) <= 1e-5 * np.linalg.norm(expected)
    np.testing.assert_array_equal(session.state().position, count)
    session.reset()
    np.testing.assert_array_equal(session.prefill(TOKENS[:count]), measured[-1])


def test_it_generates_the_text_of_the_package(session: Session, package: Path) -> None:
    texts = ["".join(each.generate("def add(a, b", max_new_tokens=20)) for each in (session, load(package))]
    assert texts[0] == texts[1]
    assert session.length == load(package).tokenizer.encode("def add(a, b").ids.__len__() + 20


def test_a_state_continues_in_the_package_and_back(session: Session, package: Path) -> None:
    other = load(package)
    whole = other.all_logits(TOKENS)
    other.reset()
    session.prefill(TOKENS[:20])
    other.load_state(session.state())
    other.prefill(TOKENS[20:40])
    session.load_state(other.state())
    continued = session.all_logits(TOKENS[40:])
    assert np.linalg.norm(continued - whole[40:]) <= 1e-5 * np.linalg.norm(whole[40:])


def test_a_fork_is_independent(session: Session) -> None:
    session.prefill(TOKENS[:10])
    fork = session.fork()
    fork.prefill(TOKENS[10:30])
    expected = session.step(5)
    other = Session(session.manifest, session.tokenizer, session.executor.fresh())
    other.prefill(TOKENS[:10])
    np.testing.assert_array_equal(other.step(5), expected)


def test_buffers_stay_where_they_are(session: Session) -> None:
    before = session.buffer_addresses()
    session.prefill(TOKENS)
    for token in TOKENS:
        session.step(token)
    assert session.buffer_addresses() == before
    assert session.state_bytes == sum(entry.nbytes for entry in session.manifest.state)


def test_an_interrupted_prefill_is_undone_complete_or_refused(session: Session) -> None:
    # One call of the longer graph without padding, and one with.
    check_interrupted_prefills(session, TOKENS[:40], spacing=30)


def test_an_interrupted_generation_keeps_all_tokens_it_chose_or_is_refused(session: Session) -> None:
    prompt = TOKENS[:9]
    whole = "".join(session.generate(prompt, max_new_tokens=4))
    saved, refused = session.state(), 0
    session.reset()
    states = states_by_position(session, [*prompt, *saved.recent[len(prompt) :], *saved.pending])
    for moment in moments(60):
        session.reset()
        pieces = session.generate(prompt, max_new_tokens=4)
        if not interrupted_at(moment, lambda pieces=pieces: list(pieces)):  # type: ignore[misc]
            break
        state = state_or_none(session)
        refused += state is None
        if state is not None:
            assert_close(state, states)
            assert whole.endswith("".join(pieces))
        session.load_state(saved)  # makes the session usable
        assert session.length == len(prompt) + 4
    assert refused > 3


def test_a_state_of_another_model_is_refused(session: Session) -> None:
    state = session.state()
    state.tensors["past_key_values.0.key"] = state.tensors["past_key_values.0.key"][:, :, :-1]
    with pytest.raises(InputError, match=r"past_key_values\.0\.key"):
        session.load_state(state)


def test_a_damaged_engine_is_refused(package: Path, tmp_path: Path) -> None:
    build_engine(package, tmp_path / "engine", PORTABLE)
    graph = tmp_path / "engine" / "step.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(PackageError, match=r"was truncated.*build the engines again"):
        load(tmp_path / "engine")


@pytest.fixture
def rtx_engine(engine: Path, tmp_path: Path) -> Path:
    """An engine directory whose manifest names TensorRT for RTX as its backend."""
    import tensorrt_rtx

    directory = tmp_path / "engine"
    directory.mkdir()
    for path in engine.iterdir():
        (directory / path.name.replace(".onnx", ".engine")).symlink_to(path)
    (directory / "manifest.json").unlink()
    text = (engine / "manifest.json").read_text().replace(".onnx", ".engine").replace('"onnx"', '"tensorrt-rtx"')
    (directory / "manifest.json").write_text(text)
    edit_json(directory / "manifest.json")  # removes its hash
    record = load_record(directory)
    record |= {"backend_version": tensorrt_rtx.__version__, "targets": ["sm86", "sm89"]}
    edit_json(directory / "manifest.json", engine=record)
    return directory


def load_record(directory: Path) -> dict[str, object]:
    import json

    record: dict[str, object] = json.loads((directory / "manifest.json").read_text())["engine"]
    return record


def test_a_gpu_that_is_not_a_target_is_named(rtx_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cuda, "open", lambda: Cuda(driver=None, capability="sm90"))
    with pytest.raises(EnvironmentMismatchError, match=r"sm86, sm89; this GPU is sm90.*--sm 90"):
        load(rtx_engine)


def test_a_missing_gpu_is_reported(rtx_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liger_export.runtime.cuda.LIBRARY", "libcuda-absent.so")
    with pytest.raises(EnvironmentMismatchError, match="no NVIDIA driver"):
        load(rtx_engine)


def test_another_version_of_the_library_is_refused(rtx_engine: Path) -> None:
    edit_json(rtx_engine / "manifest.json", engine=load_record(rtx_engine) | {"backend_version": "1.2.3"})
    with pytest.raises(EnvironmentMismatchError, match=r"1\.2\.3.*pip install"):
        load(rtx_engine)
