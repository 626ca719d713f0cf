"""Run a package in ONNX Runtime: one session, one sequence, memory that does not grow."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from liger_export.errors import InputError
from liger_export.ort import ort
from liger_export.package import Manifest
from liger_export.runtime.buffers import CPU, CUDA, Array, Buffer, SavedState, bind, new_buffer, row_of
from liger_export.runtime.candidates import Candidates
from liger_export.runtime.sampling import Sampler, Sampling
from liger_export.runtime.text import TextStream

__all__ = ["Session"]

# Tokens a call: on a CPU as fast as any longer one, and activations stay small; a GPU wants more work at a time.
PREFILL_CHUNK = {CPU: 128, CUDA: 1024}
NO_CAPTURE = -1
_captures = count(1)  # forks share a model, and a captured graph holds the addresses of one session's buffers


@dataclass(frozen=True, slots=True)
class _Call:
    """A binding, and the owners of the memory it points to."""

    binding: ort.IOBinding
    owners: list[ort.OrtValue]
    options: ort.RunOptions | None = None


class Session:
    """A sequence being read and written.

    State lives in fixed buffers: one for each tensor that the graph updates in place, two for any other, which a
    call reads from and writes to in turn. Nothing is allocated per token, and nothing depends on how many tokens have
    been seen. On a GPU the two turns of a step are captured as two CUDA graphs and replayed.

    Attributes:
        manifest: what the package says of itself.
        tokenizer: the package's tokenizer.
        lowering: which of the package's graphs runs.
        device: ``cpu`` or ``cuda``.
        position: tokens the model has read.
    """

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer, model: Any, *, lowering: str, device: str) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.lowering = lowering
        self.device = device
        self.position = 0
        self._model = model
        self._table = manifest.state
        self._vocab_size = manifest.model_config.vocab_size
        self._end_ids = manifest.model_config.eos_token_ids
        self._seen = np.zeros(self._vocab_size, dtype=np.bool_)  # tokens in the text, for the repetition penalty
        self._pending: list[int] = []  # chosen by generate, not read by the model yet
        self._turn = 0
        # What fused graphs alone find: the most likely token, and candidates at a temperature, none at 0.
        self._most_likely: Buffer | None = None
        self._candidates: Buffer | None = None
        self._asked = 0.0  # the temperature in the buffer
        self._set_up()

    def _set_up(self) -> None:
        """Allocate the buffers of a call of one token and bind them."""
        device = self.device
        self._logits = new_buffer(device, (1, 1, self._vocab_size), "float32")
        outputs = {output.name: output.shape for output in self._model.get_outputs()}
        if "most_likely" in outputs:
            self._most_likely = new_buffer(device, (1, 1), "int64")
        if "candidates" in outputs:
            self._candidates = new_buffer(device, (1, outputs["candidates"][1]), "float32")
        self._temperature, self._no_candidates = (new_buffer(device, (), "float32") for _ in range(2))
        self._text = new_buffer(device, (2, 1), "int64")
        first = [new_buffer(device, (1, *entry.shape), entry.dtype) for entry in self._table]
        self._buffers = [first, self._beside(first)]  # [past, present]
        self._steps = [self._bind(self._text, turn, self._logits, keep=1, capture=next(_captures)) for turn in (0, 1)]

    def _beside(self, first: list[Buffer]) -> list[Buffer]:
        """A second set of state buffers, which shares those that the graph updates in place."""
        in_place = self.manifest.graphs[self.lowering].in_place if self.device == CPU else []
        return [
            shared if entry.past_name in in_place else new_buffer(self.device, (1, *entry.shape), entry.dtype)
            for entry, shared in zip(self._table, first, strict=True)
        ]

    @property
    def state_bytes(self) -> int:
        """Bytes of the state itself; for a tensor that is not updated in place the session holds a second buffer."""
        return sum(entry.nbytes for entry in self._table)

    @property
    def length(self) -> int:
        """Tokens of the text so far, the one that ``generate`` chose last included."""
        return self.position + len(self._pending)

    def prefill(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Read tokens and return the logits after the last one, float32 [vocab_size].

        Raises:
            InputError: there are no tokens, or one is outside the vocabulary.
        """
        tokens = self._take_tokens(token_ids)
        if not len(tokens):
            raise InputError("There are no tokens to read.", "Pass at least one token.")
        self._read_in_chunks(tokens)
        return self._read_logits().copy()

    def step(self, token_id: int) -> npt.NDArray[np.float32]:
        """Read one token and return the logits after it, float32 [vocab_size]. Raises as ``prefill``."""
        return self.prefill([token_id])

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """Read a prompt and yield the continuation's text as it is chosen.

        Continues the session's text: a second call goes on where the first ended. Ends at an end-of-text token,
        at a stop string (not yielded), or after ``max_new_tokens``.

        Args:
            prompt: text; at the start of a session the tokenizer's opening token comes before it.
            max_new_tokens: most tokens to choose.
            sampling: how to choose them; default greedy.
            stop: strings to stop at.

        Raises:
            InputError: the prompt is empty of tokens, or ``max_new_tokens`` is negative.
        """
        if max_new_tokens < 0:
            raise InputError(f"max_new_tokens is {max_new_tokens}.", "It must be 0 or more.")
        if any("\ud800" <= character <= "\udfff" for character in prompt):  # what undecodable arguments become
            raise InputError("The prompt is not valid Unicode text.", "Pass it as UTF-8.")
        prompt_ids = self.tokenizer.encode(prompt, add_special_tokens=self.position == 0).ids
        sampler = Sampler(sampling or Sampling(), self._seen)
        text = TextStream(self.tokenizer, prompt_ids, (stop,) if isinstance(stop, str) else tuple(stop))
        self._ask_for(sampler)
        self.prefill(prompt_ids)
        for _ in range(max_new_tokens):
            if self._pending:
                self._ask_for(sampler)
                self._read_in_chunks(self._take_tokens([]))
            token = self._choose(sampler)
            if token in self._end_ids:
                break
            self._pending = [token]
            if piece := text.push(token):
                yield piece
            if text.stopped:
                return
        if rest := text.finish():
            yield rest

    def sample_tokens(self, count: int, sampling: Sampling) -> list[int]:
        """Start over and choose ``count`` tokens, end-of-text tokens included."""
        self.reset()
        sampler = Sampler(sampling, self._seen)
        tokens = [self.manifest.model_config.bos_token_id or 0]
        while len(tokens) < count:
            self._ask_for(sampler)
            self._read_in_chunks(self._take_tokens(tokens[-1:]))
            tokens.append(self._choose(sampler))
        return tokens

    def reset(self) -> None:
        """Forget everything read."""
        for buffer in self._buffers[self._turn]:
            buffer.clear()
        self.position, self._pending = 0, []
        self._seen.fill(False)

    def fork(self) -> "Session":
        """A second session on the same weights, starting from a copy of this one's state."""
        other = type(self)(self.manifest, self.tokenizer, self._model, lowering=self.lowering, device=self.device)
        other.load_state(self.state())
        other._seen[:] = self._seen
        return other

    def state(self) -> SavedState:
        """A copy of the state, after everything that ``generate`` has yielded."""
        if self._pending:
            self.prefill([])
        named = zip(self._table, self._buffers[self._turn], strict=True)
        return SavedState(self.position, {entry.past_name: buffer.read().copy() for entry, buffer in named})

    def load_state(self, state: SavedState) -> None:
        """Continue from a saved state.

        Raises:
            InputError: its tensors are not those of this model.
        """
        if state.position < 0:
            raise InputError(f"The saved state's position is {state.position}.", "Load a state that save wrote.")
        for entry, buffer in zip(self._table, self._buffers[self._turn], strict=True):
            tensor = state.tensors.get(entry.past_name)
            if tensor is None or tensor.shape != buffer.shape or tensor.dtype != buffer.dtype:
                raise InputError(
                    f"The saved state's {entry.past_name} is not {entry.dtype} {[1, *entry.shape]}.",
                    "Load a state that the same model saved.",
                )
        for entry, buffer in zip(self._table, self._buffers[self._turn], strict=True):
            buffer.write(state.tensors[entry.past_name])
        self.position, self._pending = state.position, []

    def all_logits(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Read tokens in one call and return the logits after each, float32 [T, vocab_size]. Raises as ``prefill``."""
        if not len(token_ids):
            raise InputError("There are no tokens to read.", "Pass at least one token.")
        tokens = self._take_tokens(token_ids)
        logits: npt.NDArray[np.float32] = self._read(tokens, every_position=True)[0, -len(token_ids) :]
        return logits

    def run(
        self, token_ids: npt.NDArray[np.int64], position: int, past: dict[str, Array]
    ) -> tuple[npt.NDArray[np.float32], dict[str, Array]]:
        """Run the graph on any batch, without touching this session's state.

        ONNX Runtime's CPU kernel continues several sequences by one token a call only; for more tokens the rows
        run one after the other.

        Args:
            token_ids: int64 [B, T].
            position: tokens each sequence has read before.
            past: the state by input name, each [B, ...], as ``SavedState`` holds it.

        Returns:
            Logits, float32 [B, T, vocab_size], and the next state by input name.
        """
        batch, length = token_ids.shape
        if batch > 1 and length > 1 and position > 0:
            rows = [{name: tensor[row : row + 1] for name, tensor in past.items()} for row in range(batch)]
            results = [self.run(token_ids[row : row + 1], position, rows[row]) for row in range(batch)]
            nexts = {name: np.concatenate([present[name] for _, present in results]) for name in past}
            return np.concatenate([logits for logits, _ in results]), nexts
        positions = np.broadcast_to(np.arange(position, position + length), token_ids.shape)
        inputs = {"input_ids": token_ids, "position_ids": positions, **past}
        dtypes = {entry.past_name: entry.dtype for entry in self._table}
        logits = new_buffer(self.device, (batch, length, self._vocab_size), "float32")
        present = [new_buffer(self.device, (batch, *entry.shape), entry.dtype) for entry in self._table]
        owners = [logits, *present]
        binding = self._model.io_binding()
        for name, array in inputs.items():
            owners.append(new_buffer(self.device, array.shape, dtypes.get(name, "int64")))
            owners[-1].write(array)
            bind(binding.bind_input, name, owners[-1], self.device)
        bind(binding.bind_output, "logits", logits, self.device)
        for entry, buffer in zip(self._table, present, strict=True):
            bind(binding.bind_output, entry.present_name, buffer, self.device)
        self._model.run_with_iobinding(binding, _run_options(self.device, NO_CAPTURE))
        return logits.read(), {entry.past_name: each.read() for entry, each in zip(self._table, present, strict=True)}

    def buffer_addresses(self) -> list[int]:
        """Where the state lies in memory; constant for the life of the session."""
        return sorted({buffer.address for buffers in self._buffers for buffer in buffers})

    def _take_tokens(self, token_ids: Sequence[int]) -> npt.NDArray[np.int64]:
        """Tokens to read now, int64 [T]: the pending one, which is then no longer pending, and ``token_ids``."""
        fix = "Encode text with the package's own tokenizer."
        tokens = np.asarray(token_ids)
        if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
            raise InputError(f"{token_ids!r} is no sequence of token ids.", fix)
        outside = tokens[(tokens < 0) | (tokens >= self._vocab_size)]
        if outside.size:
            raise InputError(f"Token id {outside[0]} is outside the vocabulary of {self._vocab_size} entries.", fix)
        pending, self._pending = self._pending, []
        return np.array([*pending, *tokens], dtype=np.int64)

    def _ask_for(self, sampler: Sampler) -> None:
        """Have the calls that follow give the candidates that a sampler chooses from."""
        temperature = sampler.candidates_temperature if self._candidates else 0.0
        if temperature != self._asked:
            self._temperature.write(np.array(temperature, dtype=np.float32))
            self._asked = temperature

    def _choose(self, sampler: Sampler) -> int:
        """The next token: the most likely one, or one of the likeliest, as the fused graph has found them.

        Logits leave a GPU only where those do not decide.
        """
        if sampler.is_greedy and self._most_likely is not None:
            return int(self._most_likely.read()[0, 0])
        temperature = sampler.candidates_temperature
        if self._candidates is None or temperature == 0 or temperature != self._asked:
            return sampler.choose(self._read_logits())
        candidates = Candidates.read(self._candidates.read()[0], self._vocab_size, temperature)
        return sampler.choose_among(candidates, self._read_logits)

    def _read_logits(self) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = self._logits.read()[0, 0]
        return logits

    def _read_in_chunks(self, tokens: npt.NDArray[np.int64]) -> None:
        chunk = PREFILL_CHUNK[self.device]
        for start in range(0, len(tokens), chunk):
            self._read(tokens[start : start + chunk])

    def _read(self, tokens: npt.NDArray[np.int64], *, every_position: bool = False) -> npt.NDArray[np.float32]:
        """Run the graph once and swap the state buffers; returns the logits of every position if they are wanted."""
        logits = self._logits
        if every_position:
            logits = new_buffer(self.device, (1, len(tokens), self._vocab_size), "float32")
        if len(tokens) == 1 and not every_position:
            text, call = self._text, self._steps[self._turn]
        else:
            text = new_buffer(self.device, (2, len(tokens)), "int64")
            call = self._bind(text, self._turn, logits, keep=0 if every_position else 1)
        text.write(np.array([tokens, np.arange(self.position, self.position + len(tokens))]))
        self._model.run_with_iobinding(call.binding, call.options)
        self._turn = 1 - self._turn
        self.position += len(tokens)
        self._seen[tokens] = True
        read: npt.NDArray[np.float32] = logits.read() if every_position else np.empty(0, dtype=np.float32)
        return read

    def _bind(
        self,
        text: Buffer,
        turn: int,
        logits: Buffer,
        *,
        keep: int,
        capture: int = NO_CAPTURE,
    ) -> _Call:
        """Bind one call that reads the states of set ``turn`` and writes the other's.

        ``text`` has tokens in its first row and their positions in its second, int64 [2, T]: one copy to a GPU.
        ``keep`` is how many of the last positions get logits, 0 for all. Calls that share a number ``capture`` are
        captured as one CUDA graph and replayed.
        """
        kept = ort.OrtValue.ortvalue_from_numpy(np.array(keep, dtype=np.int64))
        inputs = {"logits_to_keep": kept}
        outputs = {"logits": logits.value}
        if self._most_likely is not None:
            shape = tuple(logits.value.shape()[:2])
            chosen = self._most_likely if shape == (1, 1) else new_buffer(self.device, shape, "int64")
            outputs["most_likely"] = chosen.value
        if self._candidates is not None:
            inputs["temperature"] = (self._temperature if keep == 1 else self._no_candidates).value
            outputs["candidates"] = self._candidates.value
        binding = self._model.io_binding()
        for row, name in enumerate(("input_ids", "position_ids")):
            bind(binding.bind_input, name, row_of(text, row), self.device)
        for entry, past, present in zip(self._table, self._buffers[turn], self._buffers[1 - turn], strict=True):
            bind(binding.bind_input, entry.past_name, past, self.device)
            bind(binding.bind_output, entry.present_name, present, self.device)
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        owners = [buffer.value for buffer in (text, *self._buffers[turn], *self._buffers[1 - turn])]
        owners += [*inputs.values(), *outputs.values()]
        return _Call(binding, owners, _run_options(self.device, capture))


def _run_options(device: str, capture: int) -> ort.RunOptions | None:
    """Options of a call: on CUDA, which captured graph it belongs to."""
    if device != CUDA:
        return None
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(capture))
    return options
