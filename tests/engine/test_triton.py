"""Repositories for Triton Inference Server, which keeps states as these tests do: by name, from zeros at the start."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from liger_export.convert import convert
from liger_export.engine.build import EngineSettings, build_engine
from liger_export.engine.triton import TritonSettings, write_repository
from liger_export.errors import EngineError, InputError, OutputError, PackageError
from liger_export.package import read_manifest
from liger_export.precision import Precision
from liger_export.runtime import load
from tests.engine.conftest import Hybrid
from tests.tiny import edit_json, record_file

model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc]")
text_format = pytest.importorskip("google.protobuf.text_format")

HYBRIDS = [("gla", "fp32"), ("gsa", "int4"), ("lolcats", "fp16")]
TEXTS = ((5, 9, 200, 31, 7, 7, 90), (1,), tuple(range(40, 71)))
NUMPY = {"TYPE_FP32": np.float32, "TYPE_FP16": np.float16, "TYPE_INT64": np.int64}

Tensors = dict[str, npt.NDArray[Any]]


@dataclass
class Request:
    """Tokens of a sequence."""

    sequence: int
    tokens: tuple[int, ...]
    is_first: bool = False


@dataclass
class Batcher:
    """The sequence batcher's implicit state: what it does according to Triton's documentation and source."""

    directory: Path
    states: dict[int, Tensors] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config = model_config_pb2.ModelConfig()
        text_format.Parse((self.directory / "config.pbtxt").read_text(), self.config)
        self.model = onnxruntime.InferenceSession(self.directory / "1" / "model.onnx")

    def infer(self, *requests: Request) -> list[npt.NDArray[np.float32]]:
        """Run requests of different sequences as one batch, and return the logits of each."""
        config, [tokens_of] = self.config, self.config.input
        assert len({request.sequence for request in requests}) == len(requests) <= config.max_batch_size
        for request in requests:
            assert list(tokens_of.dims) in ([-1], [len(request.tokens)])
            if request.is_first:
                self.states[request.sequence] = self._initial()
        states = [self.states[request.sequence] for request in requests]
        feeds = {name: np.concatenate([state[name] for state in states]) for name in states[0]}
        feeds[tokens_of.name] = np.array([request.tokens for request in requests], dtype=np.int64)
        results = dict(zip(self.output_names, self.model.run(self.output_names, feeds), strict=True))
        inputs = sorted(state.input_name for state in config.sequence_batching.state)
        outputs = sorted(state.output_name for state in config.sequence_batching.state)
        for row, request in enumerate(requests):
            pairs = zip(inputs, outputs, strict=True)  # by the order of their names, as Triton does
            self.states[request.sequence] = {past: results[present][row : row + 1] for past, present in pairs}
        logits: list[npt.NDArray[np.float32]] = [row[0] for row in results["logits"]]
        return logits

    @property
    def output_names(self) -> list[str]:
        states = [state.output_name for state in self.config.sequence_batching.state]
        return [*(each.name for each in self.config.output), *states]

    def _initial(self) -> Tensors:
        tensors = {}
        for state in self.config.sequence_batching.state:
            [initial] = state.initial_state
            assert initial.zero_data
            assert (initial.data_type, list(initial.dims)) == (state.data_type, list(state.dims))
            dtype = NUMPY[model_config_pb2.DataType.Name(initial.data_type)]
            tensors[state.input_name] = np.zeros((1, *initial.dims), dtype)
        return tensors


def repository(package: Path, folder: Path, **settings: Any) -> Path:
    write_repository(package, folder / "repository", TritonSettings(name="tiny", **settings))
    return folder / "repository"


def continued(package: Path, tokens: tuple[int, ...], count: int) -> list[int]:
    """The most likely tokens after a text, chosen one by one from a session's logits."""
    session = load(package, lowering="stock")
    *read, last = tokens
    if read:
        session.feed(read)
    chosen = [last]
    for _ in range(count):
        chosen.append(int(session.step(chosen[-1]).argmax()))
    return chosen[1:]


@pytest.fixture(scope="module")
def tiny(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(package, tmp_path_factory.mktemp("triton"))


@pytest.mark.slow
@pytest.mark.parametrize(("mixer", "weights"), HYBRIDS)
def test_interleaved_sequences_continue_as_in_a_session(
    mixer: str, weights: str, hybrid: Hybrid, tmp_path: Path
) -> None:
    """Each reads its text token by token; they start at different steps and run in one batch at different places."""
    package = hybrid(mixer, precision=Precision(weights=weights))
    batcher = Batcher(repository(package, tmp_path) / "tiny_step")
    texts: dict[int, list[int]] = {}
    for step in range(60):
        if step % 4 == 0 and step // 4 < len(TEXTS):
            texts[step // 4] = list(TEXTS[step // 4])
        place = {key: step - 4 * key for key in texts}
        requests = [Request(key, (text[place[key]],), place[key] == 0) for key, text in texts.items()]
        for (key, text), logits in zip(texts.items(), batcher.infer(*requests), strict=True):
            if place[key] == len(text) - 1:
                text.append(int(logits.argmax()))
    for key, tokens in enumerate(TEXTS):
        assert texts[key][len(tokens) :] == continued(package, tokens, len(texts[key]) - len(tokens))


@pytest.mark.slow
@pytest.mark.parametrize(("mixer", "weights"), HYBRIDS)
def test_the_chunk_model_reads_any_number_of_tokens_and_then_one_by_one(
    mixer: str, weights: str, hybrid: Hybrid, tmp_path: Path
) -> None:
    package = hybrid(mixer, precision=Precision(weights=weights))
    batcher = Batcher(repository(package, tmp_path) / "tiny_chunk")
    chosen: dict[int, list[int]] = {}
    for key, text in enumerate(TEXTS):  # the first ones in two chunks, all before any goes on
        cut = len(text) // 3
        if cut:
            batcher.infer(Request(key, text[:cut], is_first=True))
        [logits] = batcher.infer(Request(key, text[cut:], is_first=not cut))
        chosen[key] = [int(logits.argmax())]
    for _ in range(20):
        for key, tokens in chosen.items():
            [logits] = batcher.infer(Request(key, (tokens[-1],)))
            tokens.append(int(logits.argmax()))
    assert list(chosen.values()) == [continued(package, text, 21) for text in TEXTS]


def test_a_sequence_that_starts_again_starts_from_zeros(tiny: Path) -> None:
    batcher = Batcher(tiny / "tiny_step")
    [first] = batcher.infer(Request(7, (11,), is_first=True))
    batcher.infer(Request(7, (12,)))
    [again] = batcher.infer(Request(7, (11,), is_first=True))
    assert np.array_equal(first, again)


@pytest.mark.parametrize("name", ["tiny_step", "tiny_chunk"])
def test_the_inputs_of_a_graph_are_the_tokens_and_every_state_once(name: str, package: Path, tiny: Path) -> None:
    batcher = Batcher(tiny / name)
    states = batcher.config.sequence_batching.state
    pairs = {state.input_name: state.output_name for state in states}
    table = {entry.past_name: entry.present_name for entry in read_manifest(package).state}
    assert pairs == {**table, "past_position": "present_position"}
    assert len(states) == len(pairs)
    inputs = {each.name: each.shape for each in batcher.model.get_inputs()}
    outputs = {each.name: each.shape for each in batcher.model.get_outputs()}
    assert inputs.keys() == {"input_ids", *pairs}
    assert outputs.keys() == {"logits", *pairs.values()}
    for state in states:
        assert inputs[state.input_name] == outputs[state.output_name] == ["batch", *state.dims]
    assert outputs["logits"] == ["batch", *batcher.config.output[0].dims]  # Triton compares these exactly


def test_names_of_states_have_the_order_of_their_outputs(tiny: Path) -> None:
    """Triton pairs them by this order; see ``Batcher.infer``."""
    states = Batcher(tiny / "tiny_step").config.sequence_batching.state
    by_order = zip(sorted(each.input_name for each in states), sorted(each.output_name for each in states), strict=True)
    assert dict(by_order) == {each.input_name: each.output_name for each in states}


def test_settings_reach_the_configuration(package: Path, tmp_path: Path) -> None:
    folder = repository(package, tmp_path, batch=3, sequences=5, idle_seconds=7)
    step, chunk = (Batcher(folder / f"tiny_{name}").config for name in ("step", "chunk"))
    assert (step.name, step.max_batch_size, list(step.input[0].dims)) == ("tiny_step", 3, [1])
    assert (chunk.name, chunk.max_batch_size, list(chunk.input[0].dims)) == ("tiny_chunk", 1, [-1])
    for config in (step, chunk):
        assert config.backend == "onnxruntime"
        assert config.sequence_batching.oldest.max_candidate_sequences == 5
        assert config.sequence_batching.max_sequence_idle_microseconds == 7_000_000


def test_both_models_share_the_weights_on_disk(tiny: Path) -> None:
    files = [tiny / name / "1" / "model.onnx.data" for name in ("tiny_step", "tiny_chunk")]
    assert files[0].samefile(files[1])


def test_a_package_that_triton_would_run_wrongly_is_refused(package_copy: Path, tmp_path: Path) -> None:
    stock = {**asdict(read_manifest(package_copy).graphs["stock"]), "exact_angles": False}
    edit_json(package_copy / "manifest.json", graphs={"stock": stock})
    with pytest.raises(EngineError, match="not exact"):
        repository(package_copy, tmp_path)


def test_bfloat16_is_refused(liger_checkpoint: Path, tmp_path: Path) -> None:
    convert(liger_checkpoint, tmp_path / "package", precision=Precision(weights="bf16"))
    with pytest.raises(EngineError, match="bfloat16"):
        repository(tmp_path / "package", tmp_path)


def test_an_engine_directory_is_refused(package: Path, tmp_path: Path) -> None:
    build_engine(package, tmp_path / "engine", EngineSettings(backend="onnx", chunk=0, check_tokens=0))
    with pytest.raises(EngineError, match="engine directory"):
        repository(tmp_path / "engine", tmp_path)


def test_a_graph_that_reads_a_file_outside_its_package_is_refused(package_copy: Path, tmp_path: Path) -> None:
    graph = onnx.load(package_copy / "model.onnx", load_external_data=False)
    locations = [each for tensor in graph.graph.initializer for each in tensor.external_data if each.key == "location"]
    locations[0].value = "../secret"
    onnx.save(graph, package_copy / "model.onnx")
    record_file(package_copy, "model.onnx")
    with pytest.raises(PackageError, match="not of its package"):
        repository(package_copy, tmp_path)


@pytest.mark.parametrize("settings", [{"name": "a b"}, {"name": ""}, {"batch": 0}, {"sequences": 1 << 31}])
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        TritonSettings(**{"name": "tiny", **settings})


def test_a_repository_is_replaced_only_if_asked(package: Path, tmp_path: Path) -> None:
    folder = repository(package, tmp_path)
    with pytest.raises(OutputError, match="already exists"):
        repository(package, tmp_path)
    write_repository(package, folder, TritonSettings(name="other"), overwrite=True)
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"other_step", "other_chunk"}
