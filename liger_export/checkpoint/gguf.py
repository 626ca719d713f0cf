"""Models in GGUF files, llama.cpp's format, opened as base checkpoints whose weights are bfloat16."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from liger_export.checkpoint.gguf_config import ROPE_FACTORS, gguf_config_values, tensor_name
from liger_export.checkpoint.gguf_file import GgufFile, StoredTensor
from liger_export.checkpoint.gguf_tokenizer import GgufTokenizer, read_gguf_tokenizer
from liger_export.checkpoint.reader import Checkpoint, TensorInfo
from liger_export.errors import UnsupportedModelError

__all__ = ["GgufModel"]


@dataclass(frozen=True, slots=True)
class _GgufTensor(TensorInfo):
    """A tensor of a GGUF file, dequantized and rounded to bfloat16 when it is read.

    Attributes:
        stored: the tensor in the file.
        head_dim: head size if the rows of each head are in llama.cpp's order, else None.
    """

    stored: StoredTensor
    head_dim: int | None

    def read(self, start: int, stop: int) -> Tensor:
        """Read rows ``start`` to ``stop`` in Hugging Face's order.

        llama.cpp rotates neighbouring rows of a Llama head as pairs, Hugging Face rows half a head apart. So llama.cpp
        stores row i of the first half of a head before row i of the second half.
        """
        if self.head_dim is None:
            return torch.from_numpy(self.stored.read(start, stop)).to(torch.bfloat16)
        first, last = start // self.head_dim * self.head_dim, -(-stop // self.head_dim) * self.head_dim
        rows = torch.from_numpy(self.stored.read(first, last)).to(torch.bfloat16)
        pairs = rows.unflatten(0, (-1, self.head_dim // 2, 2))  # [heads, row of a half, half, ...]
        ordered: Tensor = pairs.transpose(1, 2).flatten(0, 2)
        return ordered[start - first : stop - first]


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A model in a GGUF file.

    Attributes:
        config_values: the values of its ``config.json``.
        checkpoint: its tensors, with Hugging Face's names.
        tokenizer: its tokenizer.
    """

    config_values: dict[str, Any]
    checkpoint: Checkpoint
    tokenizer: GgufTokenizer

    @classmethod
    def open(cls, path: Path) -> "GgufModel":
        """Read everything but the tensors' data.

        Raises:
            CheckpointError: the file is missing, damaged or not a GGUF file.
            UnsupportedModelError: the architecture, a setting, a tensor or the tokenizer is not supported.
            EnvironmentMismatchError: the gguf package is not installed.
        """
        gguf = GgufFile.open(path)
        values = gguf_config_values(gguf)
        tokenizer = read_gguf_tokenizer(gguf.metadata, values["vocab_size"])
        values |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": list(tokenizer.eos_token_ids) or None}
        checkpoint = Checkpoint(path, _tensors(gguf, values), is_converted=True)
        return cls(values, checkpoint, tokenizer)

    def write_companions(self, directory: Path) -> None:
        """Write the tokenizer's files and ``generation_config.json``."""
        self.tokenizer.tokenizer.save(str(directory / "tokenizer.json"))
        _write_json(directory / "tokenizer_config.json", self.tokenizer.config)
        if self.tokenizer.chat_template is not None:
            (directory / "chat_template.jinja").write_text(self.tokenizer.chat_template, encoding="utf-8")
        ids = {name: self.config_values[name] for name in ("bos_token_id", "eos_token_id")}
        _write_json(
            directory / "generation_config.json", {name: value for name, value in ids.items() if value is not None}
        )


def _tensors(gguf: GgufFile, values: dict[str, Any]) -> dict[str, TensorInfo]:
    architecture = gguf.metadata.text("general.architecture")
    tensors: dict[str, TensorInfo] = {}
    for stored_name, stored in gguf.tensors.items():
        name = tensor_name(stored_name, architecture)
        if name is None and stored_name == ROPE_FACTORS:
            continue  # the config has the parameters of these factors
        if name is None:
            raise UnsupportedModelError(
                f"{gguf.path} contains {stored_name}, which a {architecture} model does not have here.",
                "Use a GGUF file of a Llama, Mistral, Qwen2 or Qwen3 model without additions.",
            )
        is_permuted = architecture == "llama" and (".q_proj." in name or ".k_proj." in name)
        tensors[name] = _GgufTensor(
            gguf.path, stored_name, stored.shape, "BF16", stored, values["head_dim"] if is_permuted else None
        )
    return tensors


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
