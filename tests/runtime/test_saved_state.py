"""Files of saved states: what is written is read, and every change is noticed."""

import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example as with_values
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from liger_export.errors import InputError
from liger_export.runtime import SavedState
from liger_export.runtime.buffers import Array


def example() -> SavedState:
    tensors: dict[str, Array] = {
        "past_key_values.0.recurrent_state": np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4),
        "past_key_values.0.key": np.full((1, 2, 4, 2), 0x3F80, dtype=np.uint16),
    }
    logits = np.linspace(-1, 1, 7, dtype=np.float32)
    return SavedState(
        *(9, tensors),
        model="m",
        pending=(3,),
        recent=(1, 2),
        seen=np.array([1, 2, 3]),
        logits=logits,
        digest="d",
        messages="[]",
        random="{}",
    )


def write_archive(path: Path, state: SavedState) -> None:
    """Write a state as version 0.1.0 did."""
    arrays = {
        "position": np.array(state.position),
        "model": np.array(state.model),
        "pending": np.array(state.pending),
        "recent": np.array(state.recent),
        "seen": state.seen,
        "logits": state.logits,
        "digest": np.array(state.digest),
        "messages": np.array(state.messages),
    }
    present = {name: np.asarray(array) for name, array in arrays.items()} | state.tensors
    digest = sha256()
    for name, array in sorted(present.items()):
        digest.update(f"{name} {array.dtype.str} {list(array.shape)}\n".encode() + array.tobytes())
    np.savez(path, **present, sha256=np.array(digest.hexdigest()))  # type: ignore[arg-type]


def assert_equal(read: SavedState, expected: SavedState) -> None:
    for name in ("position", "model", "pending", "recent", "digest", "messages", "random"):
        assert getattr(read, name) == getattr(expected, name)
    np.testing.assert_array_equal(read.seen, expected.seen)
    np.testing.assert_array_equal(read.logits, expected.logits)
    assert read.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        np.testing.assert_array_equal(read.tensors[name], tensor, strict=True)


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    state = example()
    turned = {name: np.asfortranarray(tensor) for name, tensor in state.tensors.items()}
    state.save(tmp_path / "a.safetensors")
    replace(state, tensors=turned).save(tmp_path / "b.safetensors")  # the same values
    for name in ("a.safetensors", "b.safetensors"):
        read = SavedState.read(tmp_path / name)
        assert_equal(read, state)
        assert all(tensor.flags.c_contiguous and tensor.flags.writeable for tensor in read.tensors.values())


def test_the_safetensors_library_reads_the_tensors(tmp_path: Path) -> None:
    """Its numpy functions read bfloat16 as a type of ml_dtypes, here as bits."""
    example().save(tmp_path / "state.safetensors")
    tensors = load_file(tmp_path / "state.safetensors")
    expected = {**example().tensors, "seen": example().seen, "logits": example().logits}
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(tensors[name].view(tensor.dtype), tensor)  # type: ignore[union-attr]


def test_an_archive_of_an_older_version_is_read(tmp_path: Path) -> None:
    write_archive(tmp_path / "state.npz", example())
    assert_equal(SavedState.read(tmp_path / "state.npz"), replace(example(), random=None))


def test_a_state_without_a_hash_is_read(tmp_path: Path) -> None:
    state = example()
    np.savez(tmp_path / "old.npz", position=np.array(9), **state.tensors)
    assert_equal(SavedState.read(tmp_path / "old.npz"), SavedState(9, state.tensors))


def with_header(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the JSON header of a saved state."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
    return path


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda header: header["__metadata__"].update(position="10"), "has changed since it was written"),
        (lambda header: header["__metadata__"].update(recent="[1, 3]"), "has changed since it was written"),
        (lambda header: header["__metadata__"].pop("sha256"), "has changed since it was written"),
        (lambda header: header.update(other=header.pop("logits")), "has changed since it was written"),
        (lambda header: header.pop("logits"), "do not fill the file"),
        (lambda header: header["logits"].update(shape=[10**12]), "another size than its shape says"),
        (lambda header: header["logits"].update(shape=[-7]), "not a number"),
        (lambda header: header["logits"].update(dtype="F99"), "header is damaged"),
        (lambda header: header.pop("__metadata__"), "header is damaged"),
        (lambda header: header["__metadata__"].update(position=10), "not text"),
    ],
)
def test_a_changed_header_is_noticed(tmp_path: Path, change: Callable[[dict[str, Any]], object], cause: str) -> None:
    path = tmp_path / "state.safetensors"
    example().save(path)
    with pytest.raises(InputError, match=cause):
        SavedState.read(with_header(path, change))


def rewritten(path: Path, change: Callable[[dict[str, Array]], object]) -> Path:
    """Change arrays of a saved state, with valid checksums of the archive."""
    with np.load(path) as stored:
        arrays = dict(stored)
    change(arrays)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.update(position=np.array(10)),
        lambda arrays: arrays.update(recent=np.array([1, 3])),
        lambda arrays: arrays.pop("seen"),
        lambda arrays: arrays["past_key_values.0.recurrent_state"].fill(1),
        lambda arrays: arrays.update({"past_key_values.0.value": arrays.pop("past_key_values.0.key")}),
    ],
)
def test_arrays_of_an_archive_that_were_changed_are_noticed(
    tmp_path: Path, change: Callable[[dict[str, Array]], object]
) -> None:
    write_archive(tmp_path / "state.npz", example())
    with pytest.raises(InputError, match="has changed since it was written"):
        SavedState.read(rewritten(tmp_path / "state.npz", change))


@pytest.mark.parametrize(
    ("arrays", "cause"),
    [
        ({"position": np.array(1.5)}, "not integers"),
        ({"position": np.array([9])}, "not integers"),
        ({"position": np.array(9), "recent": np.array([1.5])}, "not integers"),
        ({"position": np.array(9), "key": np.asfortranarray(np.ones((2, 3)))}, "laid out differently"),
        ({"position": np.array(9), "key": np.ones(3, dtype=">f4")}, "laid out differently"),
        ({"position": np.array(9), "key": np.array([None])}, "laid out differently"),
        ({"key": np.ones(3)}, "position"),
    ],
)
def test_arrays_that_save_does_not_write_are_refused(tmp_path: Path, arrays: dict[str, Array], cause: str) -> None:
    np.savez(tmp_path / "state.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=cause):
        SavedState.read(tmp_path / "state.npz")


def test_a_state_needs_no_more_memory_than_its_file(tmp_path: Path) -> None:
    """A header that asks for 3.6 TiB, a compressed array of zeros, and one array that is listed twice."""
    huge, packed, double = (tmp_path / name for name in ("huge.npz", "packed.npz", "double.npz"))
    with zipfile.ZipFile(huge, "w") as archive, archive.open("key.npy", "w") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    np.savez_compressed(packed, position=np.array(9), key=np.zeros(10**6))
    with zipfile.ZipFile(double, "w") as archive:
        archive.writestr("key.npy", b"")
        archive.filelist *= 2
    for path, cause in ((huge, "another size"), (packed, "compressed"), (double, "two arrays")):
        with pytest.raises(InputError, match=cause):
            SavedState.read(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "state.npz")
    with pytest.raises(InputError, match="not a regular file"):
        SavedState.read(tmp_path / "state.npz")
    with pytest.raises(InputError, match="not a saved state"):
        SavedState.read("/dev/zero")


@settings(deadline=None)
@with_values(place=0.8875275383110427, bit=1, cut=False, saves=False)  # a length in the archive's directory
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans(), saves=st.booleans())
def test_a_changed_byte_or_a_lost_end_gives_the_same_state_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int, cut: bool, saves: bool
) -> None:
    path = tmp_path_factory.mktemp("state") / "state"
    example().save(path) if saves else write_archive(path.with_suffix(".npz"), example())
    path = path if saves else path.with_suffix(".npz")
    content = bytearray(path.read_bytes())
    index = int(place * len(content))
    if cut:
        del content[index:]
    else:
        content[index] ^= 1 << bit
    path.write_bytes(content)
    try:
        read = SavedState.read(path)
    except InputError:
        return
    assert_equal(read, example() if saves else replace(example(), random=None))
