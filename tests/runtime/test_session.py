import functools
import os
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from liger_export.convert import convert
from liger_export.errors import EnvironmentMismatchError, InputError, PackageError
from liger_export.linearize import LinearizeSettings
from liger_export.precision import Precision
from liger_export.runtime import Sampling, SavedState, Session, load, read_tokenizer
from tests.cells import slow_except
from tests.tiny import END_OF_TEXT, Shape, load_model, record_file, relative_l2, write_liger

TOKENS = [int(token) for token in np.random.default_rng(0).integers(1, 260, 200)]
SHAPES = [Shape(), Shape(6, 2, 24, 5), Shape(3, 3, 16, 17), Shape(8, 1, 8, 1)]


@functools.cache
def converted(shape: Shape) -> tuple[Path, Path]:
    """A checkpoint of a shape and its package, created once per test run."""
    directory = Path(tempfile.mkdtemp())
    checkpoint = write_liger(directory / "liger", shape)
    convert(checkpoint, directory / "package")
    return checkpoint, directory / "package"


@pytest.fixture
def session(package: Path) -> Session:
    return load(package)


def in_calls(session: Session, tokens: list[int], cuts: list[int]) -> torch.Tensor:
    session.reset()
    parts = [session.all_logits(tokens[start:stop]) for start, stop in pairwise([0, *cuts, len(tokens)])]
    return torch.from_numpy(np.concatenate(parts))


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(data=st.data(), shape=st.sampled_from(SHAPES), length=st.integers(2, 120))
def test_any_split_into_calls_equals_the_pytorch_forward(data: st.DataObject, shape: Shape, length: int) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1))))
    checkpoint, package = converted(shape)
    session, model = load(package), load_model(checkpoint)
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS[:length]]))
    assert relative_l2(in_calls(session, TOKENS[:length], cuts), expected.logits[0]) < 1e-5
    state = list(session.state().tensors.values())
    for measured, reference in zip(state, (t for layer in expected.past_key_values.layers for t in layer), strict=True):
        assert relative_l2(torch.from_numpy(measured), reference) < 1e-5


def test_steps_equal_prefill_at_the_windows_edge_and_beyond(session: Session) -> None:
    whole = in_calls(session, TOKENS, [])
    session.reset()
    steps = np.stack([session.step(token) for token in TOKENS])
    for position in (7, 8, 9, 16, 80):
        assert relative_l2(torch.from_numpy(steps[position]), whole[position]) < 1e-5


def test_prefill_in_chunks_returns_the_last_logits(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = in_calls(session, TOKENS, [])[-1]
    session.reset()
    monkeypatch.setattr("liger_export.runtime.dynamic.PREFILL_CHUNK", {"cpu": 33})
    assert relative_l2(torch.from_numpy(session.prefill(TOKENS)), expected) < 1e-5
    assert session.position == len(TOKENS)


def test_only_the_requested_logits_are_computed(package: Path) -> None:
    model = ort.InferenceSession(package / "model.onnx", providers=["CPUExecutionProvider"])
    session = load(package)
    feeds = {"input_ids": np.array([TOKENS]), "position_ids": np.arange(len(TOKENS))[None], **session.state().tensors}
    kept = [model.run(["logits"], {**feeds, "logits_to_keep": np.array(count)})[0].shape[1] for count in (0, 1, 3)]
    assert kept == [len(TOKENS), 1, 3]


def test_state_never_moves_grows_or_gains_buffers(session: Session) -> None:
    addresses, size = session.buffer_addresses(), session.state_bytes
    session.prefill(TOKENS)
    for token in TOKENS:
        session.step(token)
    session.reset()
    list(session.generate("text", max_new_tokens=5))
    assert session.buffer_addresses() == addresses
    in_place = session.manifest.graphs["stock"].in_place
    assert len(addresses) == len(in_place) == len(session.manifest.state)  # gla: all in place
    assert session.state_bytes == size == sum(entry.nbytes for entry in session.manifest.state)


@pytest.mark.parametrize(
    ("mixer", "in_place"),
    slow_except(
        [("gla", {"recurrent_state", "key", "value"})],
        [
            ("gla", {"recurrent_state", "key", "value"}),
            ("hgrn2", {"recurrent_state", "key", "value"}),
            ("gsa", {"slot_value", "key", "value"}),
            ("lolcats", {"recurrent_state"}),
        ],
    ),
)
def test_updating_in_place_is_bit_exact(mixer: str, in_place: set[str], tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger", settings=LinearizeSettings(mixer=mixer))
    convert(checkpoint, tmp_path / "package")
    session = load(tmp_path / "package")
    table = session.manifest.state
    assert {entry.name for entry in table if entry.past_name in session.manifest.graphs["stock"].in_place} == in_place
    past = {entry.past_name: np.zeros((1, *entry.shape), dtype=entry.dtype) for entry in table}
    for start, stop in pairwise([0, 1, 2, 9, 10, 40, 41, 120]):
        expected, past = session.run(np.array([TOKENS[start:stop]]), start, past)  # ONNX Runtime's own buffers
        assert np.array_equal(session.all_logits(TOKENS[start:stop]), expected[0])
        state = session.state().tensors
        for entry in table:
            held = min(stop, 8) if entry.name in ("key", "value") else None
            assert np.array_equal(state[entry.past_name][:, :, :held], past[entry.past_name][:, :, :held])
            assert held is None or not state[entry.past_name][:, :, held:].any()


def test_batch_rows_equal_single_sequences(session: Session) -> None:
    rows = np.array([TOKENS[:20], TOKENS[20:40]])
    past = {entry.past_name: np.zeros((2, *entry.shape), dtype=entry.dtype) for entry in session.manifest.state}
    logits = []
    for start, stop in ((0, 11), (11, 12), (12, 20)):
        part, past = session.run(rows[:, start:stop], start, past)
        logits.append(part)
    for row, measured in zip(rows, np.concatenate(logits, axis=1), strict=True):
        assert relative_l2(torch.from_numpy(measured), in_calls(session, row.tolist(), [])) < 1e-5


def test_state_round_trips_through_a_file_and_a_fork(session: Session, package: Path, tmp_path: Path) -> None:
    session.prefill(TOKENS[:50])
    session.state().save(tmp_path / "state.npz")
    fork, other = session.fork(), load(package)
    other.load_state(SavedState.read(tmp_path / "state.npz"))
    expected = session.prefill(TOKENS[50:])
    assert np.array_equal(fork.prefill(TOKENS[50:]), expected)
    assert np.array_equal(other.prefill(TOKENS[50:]), expected)
    assert other.position == len(TOKENS)


def test_an_interrupted_save_keeps_the_old_file(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    file = tmp_path / "state.safetensors"
    session.prefill(TOKENS[:50])
    session.state().save(file)
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.state().save(file)
    assert SavedState.read(file).position == 50
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_state_of_another_model_is_refused(session: Session, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"past_key_values\.0\.recurrent_state"):
        session.load_state(SavedState(3, {}))
    (tmp_path / "no.npz").write_text("no")
    with pytest.raises(InputError, match="is not a saved state"):
        SavedState.read(tmp_path / "no.npz")


def test_a_state_of_another_model_with_equal_shapes_is_refused(session: Session, tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger", seed=1)
    convert(checkpoint, tmp_path / "package")
    convert(checkpoint, tmp_path / "int8", precision=Precision(overrides=(("*.o_proj.weight", "int8"),)))
    other, integers = load(tmp_path / "package"), load(tmp_path / "int8")
    other.prefill(TOKENS[:9])
    session.prefill(TOKENS[:3])
    with pytest.raises(InputError, match="another model"):
        session.load_state(other.state())
    assert session.position == 3
    integers.load_state(other.state())  # the same checkpoint in another precision
    assert integers.position == 9


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, seed=3, repetition_penalty=1.5)])
@pytest.mark.parametrize("prompt", ["", "()"])
@pytest.mark.parametrize("first", ["generate", "unfinished", "prefill", "all_logits"])
def test_every_route_continues_with_the_same_text(
    session: Session, package: Path, tmp_path: Path, sampling: Sampling, prompt: str, first: str
) -> None:
    if first in ("generate", "unfinished"):
        pieces = session.generate("def f", max_new_tokens=6, sampling=Sampling(temperature=1.0, seed=8))
        next(pieces) if first == "unfinished" else list(pieces)
        pieces.close()
    else:
        getattr(session, first)(TOKENS[:20])
    session.state().save(tmp_path / "state.npz")
    fork, fresh, used = session.fork(), load(package), load(package)
    list(used.generate("xyz", max_new_tokens=9))
    for each in (fresh, used):
        each.load_state(SavedState.read(tmp_path / "state.npz"))
    assert {each.length for each in (fork, fresh, used)} == {session.length}
    texts = {
        "".join(each.generate(prompt, max_new_tokens=12, sampling=sampling)) for each in (session, fork, fresh, used)
    }
    assert len(texts) == 1
    assert texts != {""}


def test_a_text_written_in_parts_equals_one_written_at_once(session: Session) -> None:
    whole = "".join(session.generate("def f", max_new_tokens=8))
    session.reset()
    session.prefill(session.tokenizer.encode("def f").ids)
    assert "".join("".join(session.generate("", max_new_tokens=count)) for count in (3, 5)) == whole


def test_fed_text_is_read_at_once_and_continues(session: Session) -> None:
    whole = "".join(session.generate("def f(a", max_new_tokens=8))
    session.reset()
    assert session.feed("def f") == session.position == 6  # with BOS
    assert session.feed("") == 0
    assert session.feed(session.tokenizer.encode("(a", add_special_tokens=False).ids) == 2
    assert "".join(session.generate("", max_new_tokens=8)) == whole
    assert session.feed("x") == 2  # the last token of the continuation, too
    assert session.position == session.length == 8 + 8 + 1


def test_fed_text_has_special_tokens_only_as_asked(session: Session) -> None:
    assert session.feed("ab", add_special_tokens=False) == 2
    assert session.feed(END_OF_TEXT) == len(END_OF_TEXT)
    assert session.feed(END_OF_TEXT, parse_special_tokens=True) == 1
    session.reset()
    assert session.feed(END_OF_TEXT + "ab", parse_special_tokens=True) == 3  # no second BOS
    assert session.encode("ab") == [65, 66]


@pytest.mark.parametrize("parses", [True, False])
def test_a_generation_reads_the_encoded_prompt(session: Session, parses: bool) -> None:
    text = f"a {END_OF_TEXT} b"
    expected = session.encode(text, parse_special_tokens=parses)
    assert len(expected) == (6 if parses else 1 + len(text))
    list(session.generate(text, parse_special_tokens=parses, max_new_tokens=0))
    logits = session.step(7)
    session.reset()
    assert relative_l2(torch.from_numpy(session.prefill([*expected, 7])), torch.from_numpy(logits)) < 1e-5


def test_a_generation_that_is_not_iterated_leaves_the_session_as_it_was(session: Session) -> None:
    list(session.generate("def f", max_new_tokens=3))
    before, expected = session.state(), session.fork().step(5)
    for prompt in ("abc", "", [1, 2]):
        session.generate(prompt).close()
        session.generate(prompt, sampling=Sampling(temperature=1.0))
    after = session.state()
    assert (after.position, after.pending, after.recent) == (before.position, before.pending, before.recent)
    assert after.seen is not None
    assert np.array_equal(after.seen, before.seen)
    assert all(np.array_equal(after.tensors[name], tensor) for name, tensor in before.tensors.items())
    assert np.array_equal(session.step(5), expected)


def test_a_special_token_stops_a_generation(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    special = "<|im_end|>"
    session.tokenizer.add_special_tokens([special])
    chosen = iter([65, session.tokenizer.token_to_id(special), 66])
    monkeypatch.setattr("liger_export.runtime.sampling.Sampler.choose_next", lambda *_: next(chosen))
    assert "".join(session.generate("a", stop=[special], max_new_tokens=3)) == "a"
    assert session.length == 4  # the special token is part of the text that goes on


def test_states_saved_before_they_had_more_than_tensors_still_load(session: Session, tmp_path: Path) -> None:
    session.prefill(TOKENS[:9])
    state = session.state()
    np.savez(tmp_path / "old.npz", position=np.array(state.position), **state.tensors)
    expected = session.step(5)
    session.load_state(SavedState.read(tmp_path / "old.npz"))
    with pytest.raises(InputError, match="without the logits of its next token"):
        session.generate("")
    assert np.array_equal(session.step(5), expected)


def test_a_damaged_saved_state_is_refused(session: Session) -> None:
    session.prefill(TOKENS[:9])
    state = session.state()
    assert state.logits is not None
    with pytest.raises(InputError, match=r"logits are not \[260\]"):
        session.load_state(replace(state, logits=state.logits[1:]))
    for name in ("pending", "recent", "seen"):
        with pytest.raises(InputError, match="vocabulary of 260"):
            session.load_state(replace(state, **{name: np.array([260])}))
    for position in (-1, 1.5, 2**63, None):
        with pytest.raises(InputError, match="has position"):
            session.load_state(replace(state, position=cast(Any, position)))
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(InputError, match="logits are not"):
            session.load_state(replace(state, logits=np.full_like(state.logits, value)))
        for name, tensor in state.tensors.items():
            changed = tensor.copy()
            changed.flat[-1] = value
            with pytest.raises(InputError, match=f"{name} contains NaN or infinity"):
                session.load_state(replace(state, tensors=state.tensors | {name: changed}))
    for changes, cause in (
        ({"logits": [0.5] * 260}, "logits are not"),
        ({"digest": 5}, "digest is 5"),
        ({"tensors": None}, "None is not a mapping"),
    ):
        with pytest.raises(InputError, match=cause):
            session.load_state(replace(state, **cast(Any, changes)))
    with pytest.raises(InputError, match="None is not a saved state"):
        session.load_state(cast(Any, None))
    assert session.position == 9


def test_reset_starts_over(session: Session) -> None:
    first = session.prefill(TOKENS)
    session.reset()
    assert np.array_equal(session.prefill(TOKENS), first)


def test_generate_equals_greedy_choice_step_by_step(session: Session) -> None:
    text = "".join(session.generate("def f", max_new_tokens=12))
    session.reset()
    logits, ids = session.prefill(session.tokenizer.encode("def f").ids), []
    while len(ids) < 12 and (token := int(logits.argmax())) != 0:
        ids.append(token)
        logits = session.step(token)
    assert text == session.tokenizer.decode(ids)
    assert text


def test_a_second_generate_reads_all_that_the_first_wrote(session: Session) -> None:
    ids, logits = session.tokenizer.encode("def f").ids, session.prefill(session.tokenizer.encode("def f").ids)
    for _ in range(5):
        ids.append(int(logits.argmax()))
        logits = session.step(ids[-1])
    session.reset()
    expected = session.prefill([*ids, *session.tokenizer.encode("()", add_special_tokens=False).ids])

    session.reset()
    list(session.generate("def f", max_new_tokens=5))
    fork = session.fork()
    for continued in (session, fork):
        list(continued.generate("()", max_new_tokens=0))
        assert continued.position == len(ids) + 2
        np.testing.assert_allclose(continued.step(7), reference_step(continued, ids, expected), rtol=1e-4, atol=1e-5)


def reference_step(session: Session, ids: list[int], expected: np.ndarray) -> np.ndarray:
    other = session.fork()
    other.reset()
    parentheses = session.tokenizer.encode("()", add_special_tokens=False).ids
    assert np.array_equal(other.prefill([*ids, *parentheses]), expected)
    return other.step(7)


@pytest.mark.parametrize("stopped_by", ["a stop string", "the caller"])
def test_a_state_saved_after_an_early_stop_includes_every_token(session: Session, stopped_by: str) -> None:
    sampling = Sampling(temperature=1.0, seed=3)
    text = "".join(session.generate("def f", max_new_tokens=9, sampling=sampling))
    session.reset()
    pieces = session.generate("def f", max_new_tokens=9, sampling=sampling, stop=text[3:5])
    list(pieces) if stopped_by == "a stop string" else next(pieces)
    pieces.close()
    other = load_like(session)
    assert np.array_equal(other.step(5), session.step(5))


def load_like(session: Session) -> Session:
    other = session.fork()
    other.reset()
    other.load_state(session.state())
    return other


def test_repetition_penalty_applies_to_the_whole_text(session: Session) -> None:
    strong = Sampling(repetition_penalty=1e6)
    first = "".join(session.generate("abc", max_new_tokens=6, sampling=strong))
    second = "".join(session.generate("", max_new_tokens=6, sampling=strong))
    unreadable = {"\ufffd"}  # the random model also chooses bytes that are not UTF-8
    assert set(second) - unreadable
    assert not (set(second) - unreadable) & set("abc" + first)


def test_stop_string_and_token_limit_end_the_text(session: Session) -> None:
    text = "".join(session.generate("def f", max_new_tokens=30, sampling=Sampling(temperature=1.0, seed=3)))
    session.reset()
    stop = text[4:6]
    stopped = session.generate("def f", max_new_tokens=30, sampling=Sampling(temperature=1.0, seed=3), stop=[stop])
    assert "".join(stopped) == text.split(stop)[0]
    session.reset()
    (end,) = session.generate("def f", max_new_tokens=0)
    assert (end, end.finish_reason) == ("", "length")


def test_inputs_out_of_range_are_refused_and_change_nothing(session: Session) -> None:
    session.prefill(TOKENS[:5])
    state = session.state()
    calls = [
        lambda: session.step(260),
        lambda: session.step(-1),
        lambda: session.prefill([1, 999]),
        lambda: session.run(np.array([[1, 999]]), state.position, state.tensors),
    ]
    for call in calls:
        with pytest.raises(InputError, match="vocabulary of 260"):
            call()
    for empty in (session.prefill, session.all_logits):
        with pytest.raises(InputError, match="no tokens"):
            empty([])
    for odd in ([1.5], [[1, 2]], [[1], [2, 3]], ["a"], [2**70], None):
        for call in (session.prefill, session.generate, session.feed):
            with pytest.raises(InputError, match="is not a sequence of token ids"):
                call(odd)  # type: ignore[operator]
    for stop in ([1], [""], ""):
        with pytest.raises(InputError, match="stop string is"):
            session.generate("x", stop=stop)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not valid Unicode"):
        next(session.generate("a\udcff"))
    with pytest.raises(InputError, match="max_new_tokens"):
        next(session.generate("x", max_new_tokens=-1))
    assert session.position == 5


def test_a_batch_that_does_not_fit_the_model_is_refused(session: Session) -> None:
    state = session.state().tensors
    name, *_ = state
    row = np.array([[1, 2]])
    calls: list[tuple[tuple[Any, ...], str]] = [
        (([[1, 2]], 0, state), "not an array"),
        ((row[0], 0, state), "not an array"),
        ((row.astype(np.float32), 0, state), "not an array"),
        ((row[:, :0], 0, state), "no tokens"),
        ((row, "a", state), "position is 'a'"),
        ((row, 1.5, state), "position is 1.5"),
        ((row, 0, {}), f"{name} is not float32"),
        ((row, 0, state | {name: state[name][0]}), f"{name} is not float32"),
        ((row, 0, state | {name: state[name].astype(np.float64)}), f"{name} is not float32"),
        ((row.repeat(2, 0), 0, state), rf"{name} is not float32 \[2, "),
    ]
    for arguments, cause in calls:
        with pytest.raises(InputError, match=cause):
            session.run(*arguments)


@pytest.mark.parametrize("count", [0, -1, 1.5, None])
def test_a_number_of_sampled_tokens_that_is_none_is_refused(session: Session, count: Any) -> None:
    session.prefill(TOKENS[:3])
    with pytest.raises(InputError, match="number of tokens is"):
        session.sample_tokens(count, Sampling())
    assert session.position == 3


def test_onnxruntime_too_old_for_the_operators_is_refused(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "__version__", "1.20.1")
    with pytest.raises(EnvironmentMismatchError, match=r"needs ONNX Runtime 1\.31\.0 .* pip install"):
        load(package)


def test_damaged_package_does_not_open(package_copy: Path) -> None:
    data = package_copy / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[100] ^= 255
    data.write_bytes(content)
    with pytest.raises(PackageError, match="has changed"):
        load(package_copy, verify=True)
    assert load(package_copy).position == 0
    (package_copy / "model.onnx").write_bytes(b"x")
    record_file(package_copy, "model.onnx")
    with pytest.raises(PackageError, match="cannot be opened"):
        load(package_copy)
    with pytest.raises(PackageError, match="data has changed"):
        load(package_copy, verify=True)
    data.write_bytes(content[:-1])
    with pytest.raises(PackageError, match="was truncated"):
        load(package_copy)


def test_a_small_file_that_has_changed_is_always_noticed(package_copy: Path) -> None:
    """The changed tokenizer has the same size and can be read: it would give other tokens silently."""
    file, ids = package_copy / "tokenizer.json", load(package_copy).encode("a")
    file.write_bytes(file.read_bytes().replace(b'"a": ', b'"b": '))
    with pytest.raises(PackageError, match="json has changed"):
        load(package_copy)
    record_file(package_copy, "tokenizer.json")
    assert load(package_copy).encode("a") != ids


def test_a_tokenizer_that_truncates_and_pads_reads_texts_whole(package_copy: Path) -> None:
    plain = load(package_copy).tokenizer.encode("abcdefgh").ids
    tokenizer = read_tokenizer(package_copy)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=20)
    tokenizer.save(str(package_copy / "tokenizer.json"))
    assert read_tokenizer(package_copy).encode("abcdefgh").ids == plain


def test_a_restored_session_goes_on_with_the_random_numbers_of_the_saved_one(package: Path, tmp_path: Path) -> None:
    """In the middle of a generation: the rest of the text is that of the session that was not saved."""
    session, sampling = load(package), Sampling(temperature=1.0, seed=3)
    pieces = session.generate("abc", max_new_tokens=40, sampling=sampling)
    for _ in range(5):
        next(pieces)
    session.state().save(tmp_path / "state.safetensors")
    expected = "".join(pieces)
    others = [load(package, lowering="stock"), session.fork()]
    for other in others:
        other.load_state(SavedState.read(tmp_path / "state.safetensors"))
    left = 40 - (others[0].length - 4)  # BOS and the prompt
    rests = ["".join(each.generate("", max_new_tokens=left, sampling=Sampling(temperature=1.0))) for each in others]
    assert rests == [expected, expected]


def test_damaged_random_numbers_are_refused(package: Path) -> None:
    session = load(package)
    session.feed("abc")
    for random in ("{}", "no", '{"bit_generator": "MT19937"}'):
        with pytest.raises(InputError, match="random numbers are damaged"):
            session.load_state(replace(session.state(), random=random))
    assert session.position == 4


def test_forks_make_different_random_choices(package: Path) -> None:
    session = load(package)
    session.feed("abc")
    sampling = Sampling(temperature=1.0)
    texts = {"".join(session.fork().generate("", max_new_tokens=30, sampling=sampling)) for _ in range(4)}
    assert len(texts) == 4
