"""The header of GGUF files. Damaged files are refused before anything of the size that they announce is allocated."""

import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from liger_export.checkpoint.gguf import GgufModel
from liger_export.checkpoint.gguf_file import GgufFile
from liger_export.errors import CheckpointError, LigerExportError, UnsupportedModelError
from liger_export.linearize import LinearizeSettings, linearize
from tests.gguf_files import write_gguf
from tests.tiny import write_base

HUGE = 2**63
Edit = Callable[[bytearray], None]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gguf")
    base = write_base(directory / "base", vocab_size=320, num_hidden_layers=1)
    return write_gguf(directory / "good.gguf", base, GGMLQuantizationType.F16)


def put(offset: int, form: str, value: int) -> Edit:
    """Overwrite a number at an offset."""

    def edit(data: bytearray) -> None:
        struct.pack_into(f"<{form}", data, offset, value)

    return edit


def put_after(name: bytes, offset: int, form: str, value: int) -> Edit:
    """Overwrite a number after the only occurrence of a key or tensor name."""

    def edit(data: bytearray) -> None:
        assert data.count(name) == 1
        struct.pack_into(f"<{form}", data, data.index(name) + len(name) + offset, value)

    return edit


def replace(old: bytes, new: bytes) -> Edit:
    def edit(data: bytearray) -> None:
        assert data.count(old) == 1
        data[:] = data.replace(old, new)

    return edit


def cut(length: int) -> Edit:
    def edit(data: bytearray) -> None:
        del data[length:]

    return edit


ROWS, TYPE, OFFSET = 12, 20, 24  # of a matrix, after its name: the number of dimensions, columns, rows, ...
GATE = b"blk.0.ffn_gate.weight"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (cut(0), "ends within magic"),
        (cut(3), "ends within magic"),
        (cut(20), "tensors: 12 are announced, which do not fit in 20 bytes"),
        (cut(1000), "tokenizer.ggml.tokens: 320 are announced, which do not fit in 1,000 bytes"),
        (cut(-1), r"ends at byte [\d,]+, but the file has"),
        (put(0, "I", 0x4C4D4747), "is not a GGUF file"),
        (put(8, "Q", HUGE), "tensors: 9,223,372,036,854,775,808 are announced"),
        (put(16, "Q", HUGE), "metadata pairs: 9,223,372,036,854,775,808 are announced"),
        (put(24, "Q", HUGE), "ends within a key"),
        (put_after(b"tokenizer.ggml.tokens", 8, "Q", HUGE), "tokenizer.ggml.tokens: 9,223,372,036,854,775,808"),
        (put_after(b"tokenizer.ggml.token_type", 8, "Q", HUGE), "tokenizer.ggml.token_type: 9,223"),
        (put_after(b"tokenizer.ggml.tokens", 4, "I", 9), "array of the unsupported type 9"),
        (put_after(b"tokenizer.ggml.tokens", 0, "I", 77), "unknown type 77"),
        (put_after(b"tokenizer.ggml.add_bos_token", 4, "B", 2), "neither 0 nor 1"),
        (replace(b"tokenizer.ggml.pre", b"tokenizer.ggml.\xff\xff\xff"), "a key is not valid UTF-8"),
        (replace(b"llama.context_length", b"general.architecture"), "general.architecture twice"),
        (replace(GATE, b"blk.0.attn_norm.weigh"), "has no|contains blk.0.attn_norm.weigh"),
        (put_after(GATE, 0, "I", 0), "has 0 dimensions"),
        (put_after(GATE, 0, "I", 2**31), "has 2147483648 dimensions"),
        (put_after(GATE, ROWS, "Q", 0), r"has shape \[0, 24\]"),
        (put_after(GATE, ROWS, "Q", HUGE), "blk.0.ffn_gate.weight ends at byte"),
        (put_after(GATE, TYPE, "I", 8), r"multiple of Q8_0's block of 32"),
        (put_after(GATE, OFFSET, "Q", 1), "which is not a multiple of 32"),
        (put_after(GATE, OFFSET, "Q", 0), "overlap"),
        (put_after(GATE, OFFSET, "Q", HUGE), "ends at byte"),
    ],
)
def test_a_damaged_file_is_refused(edit: Edit, words: str, good: Path, tmp_path: Path) -> None:
    data = bytearray(good.read_bytes())
    edit(data)
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    GgufFile.open(good)  # what is loaded once is not counted
    tracemalloc.start()
    with pytest.raises((CheckpointError, UnsupportedModelError), match=words) as caught:
        GgufModel.open(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20
    assert str(path) in str(caught.value)
    with pytest.raises(LigerExportError):
        linearize(str(path), tmp_path / "liger")
    assert [each.name for each in tmp_path.iterdir()] == ["damaged.gguf"]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (put_after(b"tokenizer.ggml.token_type", 8, "Q", 2**30), "1,073,741,824 are announced.* in 67,108,864 bytes"),
        (put_after(b"tokenizer.ggml.pre", 4, "Q", 2**30), "header exceeds 67,108,864 bytes within tokenizer.ggml.pre"),
    ],
)
def test_the_header_of_a_large_file_has_a_limit_of_its_own(edit: Edit, words: str, good: Path, tmp_path: Path) -> None:
    data = bytearray(good.read_bytes())
    edit(data)
    path = tmp_path / "large.gguf"
    path.write_bytes(data)
    os.truncate(path, 16 << 30)  # a sparse file
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=words):
        GgufModel.open(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (put(4, "I", 1), "has version 1"),
        (put(4, "I", 4), "has version 4"),
        (put(4, "I", 0x03000000), "is big-endian"),
        (put_after(GATE, TYPE, "I", 24), r"cannot dequantize \(I8\)"),
        (put_after(GATE, TYPE, "I", 9999), r"cannot dequantize \(number 9999\).*Q8_0 or Q4_K_M"),
    ],
)
def test_another_version_or_quantization_is_refused(edit: Edit, words: str, good: Path, tmp_path: Path) -> None:
    data = bytearray(good.read_bytes())
    edit(data)
    path = tmp_path / "other.gguf"
    path.write_bytes(data)
    with pytest.raises(UnsupportedModelError, match=words):
        GgufModel.open(path)


def test_version_2_has_the_same_layout(good: Path, tmp_path: Path) -> None:
    data = bytearray(good.read_bytes())
    put(4, "I", 2)(data)
    (tmp_path / "2.gguf").write_bytes(data)
    assert GgufFile.open(tmp_path / "2.gguf").metadata.values == GgufFile.open(good).metadata.values


def test_metadata_and_tensors_are_those_that_gguf_reads(tmp_path: Path) -> None:
    writer = GGUFWriter(str(tmp_path / "a.gguf"), "llama")
    writer.add_custom_alignment(128)
    writer.add_int64("a", -(2**62))
    writer.add_float64("b", 0.1)
    writer.add_uint8("c", 255)
    writer.add_array("d", [1.5, 2.5])
    writer.add_array("e", ["", "é"])
    writer.add_array("f", [True, False])
    values = np.arange(96, dtype=np.float32).reshape(2, 48)
    writer.add_tensor("t", values)
    writer.add_tensor("u", values[0].astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = GgufFile.open(tmp_path / "a.gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert dict(found.metadata.values) == fields
    assert np.array_equal(found.tensors["t"].read(1, 2), values[1:])
    assert np.array_equal(found.tensors["u"].read(3, 48), values[0, 3:])
    assert [tensor.offset for tensor in found.tensors.values()] == [tensor.data_offset for tensor in reader.tensors]


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a file"):
        GgufFile.open(tmp_path)


def test_a_file_that_becomes_shorter_is_reported(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "base.gguf"
    path.write_bytes(good.read_bytes())
    checkpoint = GgufModel.open(path).checkpoint
    path.write_bytes(good.read_bytes()[:-4096])
    with pytest.raises(CheckpointError, match="has become shorter"):
        checkpoint.read(list(checkpoint.tensors)[-1])


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 12_000), value=st.integers(0, 255), length=st.one_of(st.none(), st.integers(0, 12_000)))
def test_any_changed_byte_or_cut_gives_an_answer_or_our_error(
    position: int, value: int, length: int | None, good: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(good.read_bytes())[:length]
    if position < len(data):
        data[position] = value
    directory = tmp_path_factory.mktemp("changed")
    (directory / "a.gguf").write_bytes(data)
    try:
        linearize(str(directory / "a.gguf"), directory / "liger", LinearizeSettings(mixer="lolcats", window_size=16))
    except LigerExportError:
        assert not (directory / "liger").exists()
