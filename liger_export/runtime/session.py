"""Run a package in ONNX Runtime: one session, one sequence, memory that does not grow."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from liger_export.errors import EnvironmentMismatchError, InputError, PackageError
from liger_export.ort import ort
from liger_export.package import MODEL_FILE, Manifest, read_manifest
from liger_export.runtime.sampling import Sampler, Sampling
from liger_export.runtime.text import TextStream

__all__ = ["SavedState", "Session", "StateArrays", "load", "read_tokenizer"]

PREFILL_CHUNK = 128  # tokens a call: as fast as any longer one on a CPU, and activations stay small
ERRORS_ONLY = 3


@dataclass(frozen=True, slots=True)
class SavedState:
    """Everything a sequence has left behind: carry it to another session, process or backend.

    Attributes:
        position: tokens seen.
        tensors: by the name of the graph input that takes it, each [1, ...].
    """

    position: int
    tensors: dict[str, npt.NDArray[np.float32]]

    def save(self, path: str | Path) -> None:
        """Write to a ``.npz`` file."""
        with Path(path).open("wb") as stream:
            np.savez(stream, position=np.array(self.position), **self.tensors)  # type: ignore[arg-type]

    @classmethod
    def read(cls, path: str | Path) -> "SavedState":
        """Read what ``save`` wrote. Raises InputError if the file is not that."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                return cls(int(stored["position"]), {name: stored[name] for name in stored.files if name != "position"})
        except (OSError, EOFError, BadZipFile, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} holds no saved state ({error}).", "Pass a file that save wrote.") from error


@dataclass(slots=True)
class StateArrays:
    """One set of state tensors, in the order of the state table."""

    arrays: list[npt.NDArray[np.float32]]


class _Buffers(StateArrays):
    """One set of state tensors, bound to ONNX Runtime where they lie.

    A second set ``beside`` a first shares those tensors that the graph updates in place.
    """

    def __init__(self, manifest: Manifest, beside: "_Buffers | None" = None) -> None:
        self.arrays = [np.zeros((1, *entry.shape), dtype=entry.dtype) for entry in manifest.state]
        if beside is not None:
            in_place = [entry.past_name in manifest.in_place for entry in manifest.state]
            choices = zip(in_place, beside.arrays, self.arrays, strict=True)
            self.arrays = [first if shared else own for shared, first, own in choices]
        self.values = [ort.OrtValue.ortvalue_from_numpy(array) for array in self.arrays]


@dataclass(frozen=True, slots=True)
class _Call:
    """A binding, and the owners of the memory it points to."""

    binding: ort.IOBinding
    owners: list[ort.OrtValue]


class Session:
    """A sequence being read and written.

    State lives in fixed buffers: one for each tensor that the graph updates in place, two for any other, which a
    call reads from and writes to in turn. Nothing is allocated per token, and nothing depends on how many tokens have
    been seen.

    Attributes:
        manifest: what the package says of itself.
        tokenizer: the package's tokenizer.
        position: tokens the model has read.
    """

    _buffers: list[StateArrays]  # [past, present]

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer, model: Any) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.position = 0
        self._model = model
        self._table = manifest.state
        self._vocab_size = manifest.model_config.vocab_size
        self._end_ids = manifest.model_config.eos_token_ids
        self._seen = np.zeros(self._vocab_size, dtype=np.bool_)  # tokens in the text, for the repetition penalty
        self._pending: list[int] = []  # chosen by generate, not read by the model yet
        self._turn = 0
        self._set_up()

    def _set_up(self) -> None:
        """Allocate the buffers of a call of one token and bind them."""
        self._logits = np.zeros((1, 1, self._vocab_size), dtype=np.float32)
        self._logits_value = ort.OrtValue.ortvalue_from_numpy(self._logits)
        self._token = np.zeros((1, 1), dtype=np.int64)
        self._token_position = np.zeros((1, 1), dtype=np.int64)
        first = _Buffers(self.manifest)
        second = _Buffers(self.manifest, beside=first)
        self._buffers, self._values = [first, second], [first.values, second.values]
        self._steps = [self._bind(self._token, self._token_position, *order) for order in ((0, 1), (1, 0))]

    @property
    def state_bytes(self) -> int:
        """Bytes of the state itself; for a tensor that is not updated in place the session holds a second buffer."""
        return sum(array.nbytes for array in self._buffers[0].arrays)

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
        for start in range(0, len(tokens), PREFILL_CHUNK):
            self._read(tokens[start : start + PREFILL_CHUNK])
        logits: npt.NDArray[np.float32] = self._logits[0, 0].copy()
        return logits

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
        self.prefill(prompt_ids)
        for _ in range(max_new_tokens):
            if self._pending:
                self.prefill([])
            token = sampler.choose(self._logits[0, 0])
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
            tokens.append(sampler.choose(self.step(tokens[-1])))
        return tokens

    def reset(self) -> None:
        """Forget everything read."""
        for array in self._buffers[self._turn].arrays:
            array.fill(0)
        self.position, self._pending = 0, []
        self._seen.fill(False)

    def fork(self) -> "Session":
        """A second session on the same weights, starting from a copy of this one's state."""
        other = type(self)(self.manifest, self.tokenizer, self._model)
        other.load_state(self.state())
        other._seen[:] = self._seen
        return other

    def state(self) -> SavedState:
        """A copy of the state, after everything that ``generate`` has yielded."""
        if self._pending:
            self.prefill([])
        arrays = self._buffers[self._turn].arrays
        named = zip(self._table, arrays, strict=True)
        return SavedState(self.position, {entry.past_name: array.copy() for entry, array in named})

    def load_state(self, state: SavedState) -> None:
        """Continue from a saved state.

        Raises:
            InputError: its tensors are not those of this model.
        """
        if state.position < 0:
            raise InputError(f"The saved state's position is {state.position}.", "Load a state that save wrote.")
        for entry, array in zip(self._table, self._buffers[self._turn].arrays, strict=True):
            tensor = state.tensors.get(entry.past_name)
            if tensor is None or tensor.shape != array.shape or tensor.dtype != array.dtype:
                raise InputError(
                    f"The saved state's {entry.past_name} is not {entry.dtype} {[1, *entry.shape]}.",
                    "Load a state that the same model saved.",
                )
        for entry, array in zip(self._table, self._buffers[self._turn].arrays, strict=True):
            array[:] = state.tensors[entry.past_name]
        self.position, self._pending = state.position, []

    def all_logits(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Read tokens in one call and return the logits after each, float32 [T, vocab_size]. Raises as ``prefill``."""
        if not len(token_ids):
            raise InputError("There are no tokens to read.", "Pass at least one token.")
        tokens = self._take_tokens(token_ids)
        logits = np.empty((1, len(tokens), self._vocab_size), dtype=np.float32)
        self._read(tokens, logits)
        return logits[0, -len(token_ids) :]

    def run(
        self, token_ids: npt.NDArray[np.int64], position: int, past: dict[str, npt.NDArray[np.float32]]
    ) -> tuple[npt.NDArray[np.float32], dict[str, npt.NDArray[np.float32]]]:
        """Run the graph on any batch, without touching this session's state.

        ONNX Runtime's CPU kernel continues several sequences by one token a call only; for more tokens the rows
        run one after the other.

        Args:
            token_ids: int64 [B, T].
            position: tokens each sequence has read before.
            past: the state by input name, each [B, ...].

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
        feeds = {"input_ids": token_ids, "position_ids": np.ascontiguousarray(positions), **past}
        logits, *present = self._model.run(["logits", *(entry.present_name for entry in self._table)], feeds)
        return logits, {entry.past_name: tensor for entry, tensor in zip(self._table, present, strict=True)}

    def buffer_addresses(self) -> list[int]:
        """Where the state lies in memory; constant for the life of the session."""
        return sorted({array.ctypes.data for buffers in self._buffers for array in buffers.arrays})

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

    def _read(self, tokens: npt.NDArray[np.int64], logits: npt.NDArray[np.float32] | None = None) -> None:
        """Run the graph once and swap the state buffers."""
        if len(tokens) == 1 and logits is None:
            self._token[0, 0], self._token_position[0, 0] = tokens[0], self.position
            call = self._steps[self._turn]
        else:
            positions = np.arange(self.position, self.position + len(tokens), dtype=np.int64)
            call = self._bind(tokens[None], positions[None], self._turn, 1 - self._turn, logits)
        self._model.run_with_iobinding(call.binding)
        self._turn = 1 - self._turn
        self.position += len(tokens)
        self._seen[tokens] = True

    def _bind(
        self,
        tokens: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        past: int,
        present: int,
        logits: npt.NDArray[np.float32] | None = None,
    ) -> _Call:
        kept = np.array(1 if logits is None else 0, dtype=np.int64)
        feeds = {"input_ids": tokens, "position_ids": positions, "logits_to_keep": kept}
        inputs = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
        outputs = {"logits": self._logits_value if logits is None else ort.OrtValue.ortvalue_from_numpy(logits)}
        for index, entry in enumerate(self._table):
            inputs[entry.past_name] = self._values[past][index]
            outputs[entry.present_name] = self._values[present][index]
        binding = self._model.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        return _Call(binding, [*inputs.values(), *outputs.values()])


def load(directory: str | Path, *, threads: int | None = None, verify: bool = False) -> Session:
    """Open a package, or an engine directory, and start a session.

    Args:
        directory: what ``convert`` or ``build-engine`` wrote.
        threads: ONNX Runtime's threads within an operator; None lets it choose.
        verify: compare every file's SHA-256 with the manifest, which takes about as long again as opening it;
            otherwise sizes only.

    Raises:
        PackageError: the package is incomplete, changed, or of a newer format.
        EnvironmentMismatchError: the installed ONNX Runtime is too old for the graph's operators, or nothing here runs
            the engine.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    if manifest.engine is not None:
        from liger_export.runtime.fixed import open_engine  # a session of another kind, made of this one

        return open_engine(directory, manifest, threads=threads, verify=verify)
    _check_onnxruntime(manifest)
    manifest.check_files(directory, hashes=False)  # first: ONNX Runtime maps files, and a cut one could crash it
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    with ThreadPoolExecutor(1) as beside:  # ONNX Runtime prepares weights on one core; hash on another
        verified = beside.submit(manifest.check_files, directory, hashes=verify)
        try:
            model = ort.InferenceSession(directory / MODEL_FILE, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises its own types
            verified.result()  # a file that has changed says more than what ONNX Runtime makes of it
            fix = "Copy or convert the package again."
            raise PackageError(f"{directory} cannot be opened ({error}).", fix) from error
        verified.result()
    return Session(manifest, read_tokenizer(directory), model)


def read_tokenizer(directory: Path) -> Tokenizer:
    """A package's tokenizer, which reads texts of any length whole. Raises PackageError if there is none."""
    try:
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # tokenizers raises bare Exception
        raise PackageError(
            f"{directory}'s tokenizer.json cannot be read ({error}).", "Copy or convert the package again."
        ) from error
    tokenizer.no_truncation()  # tokenizer.json may carry what some training run had set
    tokenizer.no_padding()
    return tokenizer


def _check_onnxruntime(manifest: Manifest) -> None:
    installed, needed = ort.__version__, manifest.onnxruntime
    if _release(installed) < _release(needed):
        raise EnvironmentMismatchError(
            f"The package needs ONNX Runtime {needed} or newer; {installed} is installed.",
            f"Run: pip install 'onnxruntime>={needed}'",
        )


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".")[:3] if part.isdigit())
