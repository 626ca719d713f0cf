"""One runner for each measured library: a loaded model and one sequence. ``RUNNERS`` names the measured systems."""

import ctypes
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]

VOCAB_SIZE = 128256
MARGIN = 128  # cache positions after the context


def tokens_for(start: int, stop: int) -> list[int]:
    """Return the token ids at positions ``start`` to ``stop`` of the text that every system reads."""
    return np.random.default_rng(0).integers(0, VOCAB_SIZE, stop)[start:].tolist()


class Runner(Protocol):
    """A model and one sequence.

    Attributes:
        weight_bytes: bytes of weights that decoding a token reads.
    """

    weight_bytes: int

    def read(self, tokens: list[int]) -> Logits:
        """Append tokens in one prefill and return the logits after the last one, float32 [vocab_size]."""

    def step(self, token: int) -> None:
        """Append one token and compute its logits."""

    def fill(self, length: int) -> str:
        """Extend the sequence to ``length`` tokens, set the mark there, and describe how."""

    def rewind(self) -> None:
        """Return to the mark."""

    def clear(self) -> None:
        """Clear the sequence."""


class Liger:
    """A Liger package in this project's runtime. It reads every context."""

    def __init__(self, directory: Path, package: str, threads: int, length: int) -> None:
        from liger_export.runtime import load

        self.weight_bytes = (directory / package / "model.onnx.data").stat().st_size
        self._session = load(directory / package, threads=threads, verify=False)
        self._mark = self._session.state()

    def read(self, tokens: list[int]) -> Logits:
        return self._session.prefill(tokens)

    def step(self, token: int) -> None:
        self._session.step(token)

    def fill(self, length: int) -> str:
        self._session.prefill(tokens_for(self._session.position, length))
        self._mark = self._session.state()
        return "read"

    def rewind(self) -> None:
        self._session.load_state(self._mark)

    def clear(self) -> None:
        self._session.reset()
        self._mark = self._session.state()


class Llama:
    """llama.cpp. Above ``block`` tokens, the cache holds copies of the first block, moved to their positions."""

    block = 4096

    def __init__(
        self, directory: Path, model: str, threads: int, length: int, *, quantized_cache: bool = False
    ) -> None:
        import llama_cpp

        self._api = llama_cpp
        self.weight_bytes = (directory / model).stat().st_size
        llama_cpp.llama_log_set(SILENT, None)
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(directory / model), parameters)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot open {directory / model}")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = (length if length <= self.block else self._blocks(length)) + MARGIN
        options.n_threads = options.n_threads_batch = threads
        options.n_seq_max = 2  # the second sequence is used to move a copied block
        options.kv_unified = True
        options.flash_attn_type = 1
        if quantized_cache:
            options.type_k = options.type_v = llama_cpp.GGML_TYPE_Q8_0
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch_size = llama_cpp.llama_n_batch(self._context)
        self._batch = llama_cpp.llama_batch_init(self._batch_size, 0, 1)
        self._length = self._mark = 0

    def read(self, tokens: list[int]) -> Logits:
        self._decode(tokens, self._length, 0)
        self._length += len(tokens)
        logits = self._api.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, (VOCAB_SIZE,)).copy()

    def step(self, token: int) -> None:
        self._decode([token], self._length, 0)
        self._api.llama_get_logits_ith(self._context, -1)
        self._length += 1

    def fill(self, length: int) -> str:
        if self._length < min(length, self.block):
            self.read(tokens_for(self._length, min(length, self.block)))
        if length > self.block:
            self._repeat_block(length)
        self._mark = length
        self.rewind()
        return "read" if length <= self.block else f"{self.block:,} read, then repeated"

    def rewind(self) -> None:
        self._api.llama_memory_seq_rm(self._memory, 0, self._mark, -1)
        self._length = self._mark

    def clear(self) -> None:
        self._api.llama_memory_clear(self._memory, True)
        self._length = self._mark = 0

    def _blocks(self, length: int) -> int:
        """Round ``length`` up to whole blocks."""
        return -(-length // self.block) * self.block

    def _repeat_block(self, length: int) -> None:
        """Append copies of the first block until there are at least ``length`` tokens.

        Reading so many tokens would take minutes, and would change the cached values but not their size.
        """
        api, memory, count = self._api, self._memory, ctypes.c_size_t()
        unused = (api.llama_token * 1)()
        with tempfile.TemporaryDirectory() as folder:
            file = os.fsencode(Path(folder, "block"))
            api.llama_memory_seq_rm(memory, 0, self.block, -1)
            if not api.llama_state_seq_save_file(self._context, file, 0, unused, 0):
                raise SystemExit(f"llama.cpp cannot write {folder}")
            for start in range(self.block, length, self.block):
                if not api.llama_state_seq_load_file(self._context, file, 1, unused, 1, ctypes.byref(count)):
                    raise SystemExit("llama.cpp cannot restore a block")
                api.llama_memory_seq_add(memory, 1, 0, self.block, start)
                api.llama_memory_seq_cp(memory, 1, 0, start, start + self.block)
                api.llama_memory_seq_rm(memory, 1, -1, -1)
        self._length = self._blocks(length)

    def _decode(self, tokens: list[int], position: int, sequence: int) -> None:
        for first in range(0, len(tokens), self._batch_size):
            part = tokens[first : first + self._batch_size]
            for index, token in enumerate(part):
                self._batch.token[index] = token
                self._batch.pos[index] = position + first + index
                self._batch.n_seq_id[index] = 1
                self._batch.seq_id[index][0] = sequence
                self._batch.logits[index] = first + index == len(tokens) - 1
            self._batch.n_tokens = len(part)
            if code := self._api.llama_decode(self._context, self._batch):
                raise SystemExit(f"llama_decode returned {code}")


class GenAI:
    """ONNX Runtime GenAI. It reads every context, so it is measured at short ones only."""

    def __init__(self, directory: Path, package: str, threads: int, length: int) -> None:
        import onnxruntime_genai

        self.weight_bytes = (directory / package / "model.onnx.data").stat().st_size
        config = onnxruntime_genai.Config(str(directory / package))
        session = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self._genai = onnxruntime_genai
        self._model = onnxruntime_genai.Model(config)
        self._parameters = onnxruntime_genai.GeneratorParams(self._model)
        self._parameters.set_search_options(max_length=length + MARGIN, do_sample=False)
        self.clear()

    def read(self, tokens: list[int]) -> Logits:
        self._generator.append_tokens(np.array(tokens, dtype=np.int32))
        logits: Logits = np.asarray(self._generator.get_logits(), dtype=np.float32).reshape(-1)[-VOCAB_SIZE:]
        return logits

    def step(self, token: int) -> None:
        self._generator.append_tokens(np.array([token], dtype=np.int32))

    def fill(self, length: int) -> str:
        self.read(tokens_for(self._generator.token_count(), length))
        self._mark = length
        return "read"

    def rewind(self) -> None:
        self._generator.rewind_to(self._mark)

    def clear(self) -> None:
        self._generator = self._genai.Generator(self._model, self._parameters)
        self._mark = 0


class GenAIGraph:
    """GenAI's package run by ONNX Runtime directly, with GenAI's bindings: past and present share one full buffer.

    GenAI cannot restore a cache and reads long contexts slowly, so here the cache holds random values. Work that GenAI
    does outside the graph, such as choosing the token, is not measured.
    """

    def __init__(self, directory: Path, package: str, threads: int, length: int) -> None:
        import onnxruntime

        self.weight_bytes = (directory / package / "model.onnx.data").stat().st_size
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._ort = onnxruntime
        self._model = onnxruntime.InferenceSession(
            directory / package / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        random = np.random.default_rng(0)
        self._values: dict[str, Any] = {}
        for entry in self._model.get_inputs():
            if entry.name.startswith("past_key_values."):
                shape = (1, entry.shape[1], length + MARGIN, 64)
                if entry.type == "tensor(int8)":
                    array = random.integers(-127, 128, shape, dtype=np.int8)
                else:
                    array = random.standard_normal(shape, dtype=np.float32)
                self._values[entry.name] = onnxruntime.OrtValue.ortvalue_from_numpy(array)
        self._length = self._mark = 0

    def read(self, tokens: list[int]) -> Logits:
        self._length += len(tokens)
        feeds = {
            "input_ids": np.array([tokens], dtype=np.int64),
            "attention_mask": np.ones((1, self._length), dtype=np.int64),
        }
        binding = self._model.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name, value in self._values.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        binding.bind_output("logits", "cpu")
        self._model.run_with_iobinding(binding)
        logits: Logits = binding.get_outputs()[-1].numpy().reshape(-1)[-VOCAB_SIZE:]
        return logits

    def step(self, token: int) -> None:
        self.read([token])

    def fill(self, length: int) -> str:
        self._length = self._mark = length
        return "random values"

    def rewind(self) -> None:
        self._length = self._mark

    def clear(self) -> None:
        self._length = self._mark = 0


class Transformers:
    """transformers in bfloat16 with its default settings. It reads every context."""

    def __init__(self, directory: Path, package: str, threads: int, length: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, DynamicCache

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._torch, self._new_cache = torch, DynamicCache
        self._model = AutoModelForCausalLM.from_pretrained(
            directory / package, dtype=torch.bfloat16, trust_remote_code=False
        ).eval()
        self.weight_bytes = sum(parameter.nbytes for parameter in self._model.parameters())
        self.clear()

    def read(self, tokens: list[int]) -> Logits:
        ids = self._torch.tensor([tokens])
        logits: Logits = self._model(ids, past_key_values=self._cache, logits_to_keep=1).logits[0, -1].float().numpy()
        return logits

    def step(self, token: int) -> None:
        self.read([token])

    def fill(self, length: int) -> str:
        self.read(tokens_for(self._cache.get_seq_length(), length))
        self._mark = length
        return "read"

    def rewind(self) -> None:
        if extra := self._cache.get_seq_length() - self._mark:
            self._cache.crop(-extra)

    def clear(self) -> None:
        self._cache = self._new_cache()
        self._mark = 0


def _quantized_cache(directory: Path, package: str, threads: int, length: int) -> Runner:
    return Llama(directory, package, threads, length, quantized_cache=True)


RUNNERS: dict[str, tuple[Callable[[Path, str, int, int], Runner], str]] = {
    "Liger int4": (Liger, "package-int4"),
    "llama.cpp Q4_0": (Llama, "q4_0.gguf"),
    "llama.cpp Q4_0, Q8_0 cache": (_quantized_cache, "q4_0.gguf"),
    "GenAI int4": (GenAI, "genai"),
    "GenAI int4, int8 cache": (GenAI, "genai-int8-cache"),
    "GenAI int4, graph": (GenAIGraph, "genai"),
    "GenAI int4, int8 cache, graph": (GenAIGraph, "genai-int8-cache"),
    "Liger int8": (Liger, "package-int8"),
    "llama.cpp Q8_0": (Llama, "q8_0.gguf"),
    "transformers bf16": (Transformers, "base"),
}


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def SILENT(level: int, text: bytes, data: None) -> None:  # noqa: N802
    """Discard llama.cpp's log."""
