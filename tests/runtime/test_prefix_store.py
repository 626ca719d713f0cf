"""Stores of states by text, against a dictionary. The state after a text is here a hash of it."""

import errno
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liger_export.errors import InputError, OutputError
from liger_export.runtime import Sampling, SavedState, load
from liger_export.runtime.prefix_files import PrefixFiles
from liger_export.runtime.prefix_store import PrefixStore
from liger_export.runtime.saved_state import package_identity
from tests.interruption import kill, runs_ended_by

Text = tuple[int, ...]

PACKAGE = "0123456789abcdef" * 4
STATE_BYTES = 1 << 12
TEXTS = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple)


def after(text: Text, *, has_logits: bool = True, nbytes: int = STATE_BYTES) -> SavedState:
    """Return the state after a text."""
    digest = np.frombuffer(sha256(repr(text).encode()).digest(), dtype=np.int64)
    tensors = {"past": np.resize(digest, (1, nbytes // 8))}
    return SavedState(len(text), tensors, logits=np.ones(4, dtype=np.float32) if has_logits else None)


def is_after(state: SavedState, text: Text) -> bool:
    return state.position == len(text) and np.array_equal(state.tensors["past"], after(text).tensors["past"])


def longest_in(texts: dict[Text, bool], text: Text) -> Text | None:
    """Return the longest of the texts that a text starts with; with the flag, they have logits."""
    usable = [known for known, has in texts.items() if text[: len(known)] == known and (has or len(known) < len(text))]
    return max(usable, key=len, default=None)


def shared_in(texts: dict[Text, bool], text: Text) -> int:
    starts = (text[:length] for length in range(len(text), 0, -1))
    return next((len(start) for start in starts if any(known[: len(start)] == start for known in texts)), 0)


def found(store: PrefixStore, text: Text) -> Text | None:
    """Return the start of a text that a store has a state for, after a check of the state."""
    result = store.longest(text)
    if result is None:
        return None
    length, state = result
    assert is_after(state, text[:length])
    return text[:length]


@pytest.fixture
def files(tmp_path: Path) -> PrefixFiles:
    return PrefixFiles(tmp_path / "states", 1 << 30)


@pytest.fixture
def store(files: PrefixFiles) -> Iterator[PrefixStore]:
    with PrefixStore(PACKAGE, memory_bytes=1 << 30, files=files) as store:
        yield store


@settings(deadline=None, max_examples=25)
@given(
    added=st.lists(st.tuples(TEXTS, st.booleans(), st.booleans()), max_size=12),
    asked=st.lists(TEXTS, max_size=8),
    memory=st.sampled_from([0, 3 * STATE_BYTES, 1 << 30]),
    has_files=st.booleans(),
)
def test_the_longest_stored_start_is_found_as_in_a_dictionary(
    added: list[tuple[Text, bool, bool]], asked: list[Text], memory: int, has_files: bool
) -> None:
    """With files, also if memory holds no state or three. Without, those in memory are the dictionary."""
    known: dict[Text, bool] = {}
    with TemporaryDirectory() as directory, patch("os.fsync"):
        files = PrefixFiles(directory, 1 << 30) if has_files else None
        with PrefixStore(PACKAGE, memory_bytes=memory, files=files) as store:
            for text, has_logits, ends_turn in added:
                store.add(text, after(text, has_logits=has_logits), ends_turn=ends_turn)
                known[text] = known.get(text, False) or has_logits
                if files is None:
                    known = {each: known[each] for each in store.texts()}
                assert store.texts() == known.keys()
                assert store.nbytes <= memory
            for text in asked:
                assert found(store, text) == longest_in(known, text)
                assert store.shared(text) == shared_in(known, text)
        if has_files:
            with PrefixStore(PACKAGE, memory_bytes=memory, files=PrefixFiles(directory, 1 << 30)) as store:
                for text in asked:
                    assert found(store, text) == longest_in(known, text)


@settings(deadline=None, max_examples=15)
@given(added=st.lists(st.tuples(TEXTS, st.booleans()), max_size=12), most=st.integers(0, 5))
def test_memory_and_files_stay_within_their_bounds_and_states_stay_exact(
    added: list[tuple[Text, bool]], most: int
) -> None:
    bound = most * (STATE_BYTES + 2000)
    with (
        patch("os.fsync"),
        TemporaryDirectory() as directory,
        PrefixStore(PACKAGE, memory_bytes=bound // 2, files=(files := PrefixFiles(directory, bound))) as store,
    ):
        for text, ends_turn in added:
            store.add(text, after(text), ends_turn=ends_turn)
            store.flush()
            assert store.nbytes <= bound // 2
            assert files.nbytes == sum(path.stat().st_size for path in Path(directory).iterdir()) <= bound
            found(store, text)
        for text, _ in added:
            start = found(store, text)
            assert start == longest_in(dict.fromkeys(store.texts(), True), text)


def test_ends_of_turns_and_places_where_texts_part_are_kept_longest() -> None:
    room = 3 * (STATE_BYTES + 100)
    store = PrefixStore(PACKAGE, memory_bytes=room)
    store.add((1, 2), after((1, 2)), ends_turn=False)  # the other two part here
    store.add((1, 2, 3), after((1, 2, 3)), ends_turn=False)
    store.add((1, 2, 4), after((1, 2, 4)), ends_turn=True)
    store.add((9,), after((9,)), ends_turn=True)
    assert store.texts() == {(1, 2), (1, 2, 4), (9,)}
    store.add((8,), after((8,)), ends_turn=False)
    assert store.texts() == {(1, 2), (1, 2, 4), (9,)}
    found(store, (1, 2))  # so that (1, 2, 4) is the one unused for longest
    store.add((7,), after((7,)), ends_turn=True)
    assert store.texts() == {(1, 2), (9,), (7,)}


def test_a_new_process_finds_what_the_last_one_stored(store: PrefixStore, files: PrefixFiles) -> None:
    for text in ((1,), (1, 2, 3), (4, 5)):
        store.add(text, after(text), ends_turn=len(text) > 1)
    store.flush()
    with PrefixStore(PACKAGE, memory_bytes=1 << 30, files=files) as other:
        assert other.texts() == {(1,), (1, 2, 3), (4, 5)}
        assert found(other, (1, 2, 3, 4)) == (1, 2, 3)
    with PrefixStore("f" * 64, memory_bytes=1 << 30, files=files) as other:
        assert other.texts() == set()


def test_another_process_on_the_same_files_finds_new_states_and_misses_removed_ones(
    store: PrefixStore, files: PrefixFiles
) -> None:
    with PrefixStore(PACKAGE, memory_bytes=0, files=files) as other:
        store.add((1, 2), after((1, 2)))
        store.flush()
        assert found(other, (1, 2, 3)) == (1, 2)
        [name] = files.names(PACKAGE)
        files.remove(name)
        assert found(other, (1, 2, 3)) is None
        assert found(store, (1, 2, 3)) == (1, 2)  # from memory


@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_damaged_file_is_removed_and_a_shorter_start_is_found(
    store: PrefixStore, files: PrefixFiles, tmp_path: Path, place: int
) -> None:
    store.add((1,), after((1,)))
    store.add((1, 2), after((1, 2)))
    store.flush()
    path = tmp_path / "states" / files.name(PACKAGE, np.array([1, 2], dtype=np.int32), is_kept=True)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with PrefixStore(PACKAGE, memory_bytes=1 << 30, files=files) as other:
        assert found(other, (1, 2, 3)) == (1,)
    assert not path.exists()


def test_the_file_of_another_text_is_not_taken_for_the_one_of_its_name(
    store: PrefixStore, files: PrefixFiles, tmp_path: Path
) -> None:
    store.add((1,), after((1,)))
    store.flush()
    first, second = (files.name(PACKAGE, np.array([token], dtype=np.int32), is_kept=True) for token in (1, 2))
    (tmp_path / "states" / first).rename(tmp_path / "states" / second)
    with PrefixStore(PACKAGE, memory_bytes=1 << 30, files=files) as other:
        assert found(other, (1,)) is None
        assert found(other, (2,)) is None


def test_a_store_that_is_killed_at_any_moment_keeps_exact_states_within_its_bound(tmp_path: Path) -> None:
    directory, bound = tmp_path / "states", 2 * (STATE_BYTES + 2000)
    texts = [(1,), (1, 2), (1, 2, 3)]

    def work() -> None:
        with PrefixStore(PACKAGE, memory_bytes=0, files=PrefixFiles(directory, bound)) as store:
            for text in texts:
                store.add(text, after(text))

    for _ in runs_ended_by(kill, work):
        files = PrefixFiles(directory, bound)
        assert files.nbytes <= bound
        with PrefixStore(PACKAGE, memory_bytes=0, files=files) as store:
            stored = store.texts()
            assert stored <= set(texts)
            assert all(found(store, text) == text for text in stored)
        assert {path.name for path in directory.iterdir()} == set(files.names(PACKAGE))
    assert len(stored) == 2


def test_states_that_are_not_those_after_their_text_are_refused(store: PrefixStore) -> None:
    pending = SavedState(1, {}, pending=(2,))
    for text, state in (((1, 2), after((1,))), ((), after(())), ((1,), pending)):
        with pytest.raises(InputError, match="is not the state after a text"):
            store.add(text, state)
    assert len(store) == 0


def test_bounds_and_directories_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for nbytes in (-1, 1.5):
        with pytest.raises(InputError, match="must be an integer"):
            PrefixStore(PACKAGE, memory_bytes=nbytes)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="must be an integer"):
            PrefixFiles(tmp_path, nbytes)  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be created"):
        PrefixFiles(tmp_path / "file", 1)


def test_states_that_cannot_be_written_stay_in_memory(
    store: PrefixStore, files: PrefixFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    store.add((1,), after((1,)))
    store.flush()
    assert files.names(PACKAGE) == []
    assert found(store, (1, 2)) == (1,)
    monkeypatch.undo()
    store.add((1,), after((1,)))
    store.flush()
    assert len(files.names(PACKAGE)) == 1


def test_a_session_goes_on_from_a_stored_state_as_it_would_have(package: Path, tmp_path: Path) -> None:
    session, text = load(package), [0, *b"def main():"]
    identity = package_identity(session.manifest)
    session.feed(text[:8])
    with PrefixStore(identity, memory_bytes=0, files=PrefixFiles(tmp_path, 1 << 24)) as store:
        store.add(text[:8], session.state())
    expected = "".join(load(package).generate(text, max_new_tokens=20, sampling=Sampling()))
    with PrefixStore(identity, memory_bytes=0, files=PrefixFiles(tmp_path, 1 << 24)) as store:
        known = store.longest(text)
        assert known is not None
        length, state = known
        other = load(package)
        other.load_state(state)
        assert length == 8
        assert "".join(other.generate(text[8:], max_new_tokens=20, sampling=Sampling())) == expected


def test_packages_that_differ_in_precision_or_files_have_different_identities(
    package: Path, package_copy: Path
) -> None:
    one, same = load(package).manifest, load(package_copy).manifest
    assert package_identity(one) == package_identity(same)
    same.files["model.onnx.data"]["sha256"] = "0" * 64
    assert package_identity(one) != package_identity(same)
