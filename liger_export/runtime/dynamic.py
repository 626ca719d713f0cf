"""Run the graph of a package in ONNX Runtime. It takes any number of tokens per call."""

import math
from dataclasses import dataclass
from itertools import count

import numpy as np

from liger_export.ort import ort
from liger_export.package import Manifest
from liger_export.runtime.buffers import CPU, CUDA, Array, Buffer, bind, new_buffer, row_of
from liger_export.runtime.executor import Logits, Tokens
from liger_export.runtime.state_buffers import StateBuffers
from liger_export.runtime.top_logits import TopLogits
from liger_export.state import StateTensor

__all__ = ["NO_CAPTURE", "PREFILL_CHUNK", "DynamicExecutor", "run_options"]

# Tokens per call. On a CPU, longer calls are not faster and need more memory; a GPU needs more work per call.
PREFILL_CHUNK = {CPU: 128, CUDA: 1024}
NO_CAPTURE = -1
# Executors that share a model need different ids: a captured graph holds the addresses of one executor's buffers.
_capture_ids = count(1)


@dataclass(frozen=True, slots=True)
class _Call:
    """A binding, and the owners of the memory it points to.

    ``text`` holds tokens in its first row and their positions in its second, int64 [2, T]: one copy to a GPU.
    """

    text: Buffer
    binding: ort.IOBinding
    owners: list[ort.OrtValue]
    options: ort.RunOptions | None


class DynamicExecutor:
    """See ``Executor``. Nothing is allocated per step, and memory does not depend on the number of tokens read.

    On a GPU, the steps that read the first set of state buffers are captured as one CUDA graph and those that read the
    second as another; both are then replayed.

    Attributes:
        model: ONNX Runtime's session, which executors can share.
    """

    def __init__(
        self, model: ort.InferenceSession, manifest: Manifest, *, lowering: str, device: str, capture: bool = True
    ) -> None:
        """Allocate the buffers and bind the steps.

        Args:
            model: ONNX Runtime's session of the graph.
            manifest: The package's manifest.
            lowering: The graph's key in the manifest.
            device: ``cpu`` or ``cuda``.
            capture: On a GPU, capture and replay steps; otherwise their kernels are launched one by one.
        """
        self.model = model
        self.lowering = lowering
        self.device = device
        self._manifest = manifest
        self._capture = capture
        self._vocab_size = manifest.model_config.vocab_size
        self._logits = new_buffer(device, (1, 1, self._vocab_size), "float32")
        # Only fused graphs compute the argmax and the top logits.
        outputs = {output.name: output.shape for output in model.get_outputs()}
        self._argmax: Buffer | None = None
        self._top_logits: Buffer | None = None
        if "most_likely" in outputs:
            self._argmax = new_buffer(device, (1, 1), "int64")
        if "candidates" in outputs:
            self._top_logits = new_buffer(device, (1, outputs["candidates"][1]), "float32")
        self._temperature, self._zero_temperature = (new_buffer(device, (), "float32") for _ in range(2))
        self._requested_temperature = 0.0  # the value in the buffer
        in_place = manifest.graphs[lowering].in_place if device == CPU else []
        self._state = StateBuffers(manifest.state, self._new_state, in_place)
        text = new_buffer(device, (2, 1), "int64")
        graph_ids = [next(_capture_ids) if capture else NO_CAPTURE for _ in self._state.sets]
        self._steps = [self._bind(text, turn, self._logits, keep=1, graph_id=graph_ids[turn]) for turn in (0, 1)]

    @property
    def position(self) -> int:
        """See ``Executor``."""
        return self._state.position

    def last_logits(self) -> Logits:
        """See ``Prediction``."""
        logits: Logits = self._logits.read()[0, 0]
        return logits

    def argmax(self) -> int | None:
        """See ``Prediction``."""
        if self._argmax is None:
            return None
        token = int(self._argmax.read()[0, 0])
        if not 0 <= token < self._vocab_size:  # a logit is NaN, or the largest is infinite
            return None
        # Operators that were built before they reported this skip NaN. On a GPU, reading a logit costs a copy.
        return None if self.device == CPU and not np.isfinite(self.last_logits()[token]) else token

    def top_logits(self, temperature: float) -> TopLogits | None:
        """See ``Prediction``."""
        if self._top_logits is None or temperature == 0 or temperature != self._requested_temperature:
            return None
        return TopLogits.from_output(self._top_logits.read()[0], self._vocab_size, temperature)

    def request_top_logits(self, temperature: float) -> None:
        """See ``Executor``."""
        if self._top_logits is not None and temperature != self._requested_temperature:
            self._requested_temperature = math.nan  # an interrupt here leaves the buffer's value unknown
            self._temperature.write(np.array(temperature, dtype=np.float32))
            self._requested_temperature = temperature

    def read(self, tokens: Tokens) -> None:
        """See ``Executor``."""
        chunk = PREFILL_CHUNK[self.device]
        for start in range(0, len(tokens), chunk):
            piece = tokens[start : start + chunk]
            if len(piece) == 1:
                call = self._steps[self._state.turn]
            else:
                text = new_buffer(self.device, (2, len(piece)), "int64")
                call = self._bind(text, self._state.turn, self._logits, keep=1)
            self._run(call, piece)

    def read_with_all_logits(self, tokens: Tokens) -> Logits:
        """See ``Executor``. This is always a single call of the graph."""
        logits = new_buffer(self.device, (1, len(tokens), self._vocab_size), "float32")
        text = new_buffer(self.device, (2, len(tokens)), "int64")
        self._run(self._bind(text, self._state.turn, logits, keep=0), tokens)
        read: Logits = logits.read()[0]
        return read

    def read_state(self) -> dict[str, Array]:
        """See ``Executor``."""
        return self._state.read()

    def write_state(self, position: int, tensors: dict[str, Array]) -> None:
        """See ``Executor``."""
        self._state.write(position, tensors)

    def clear_state(self) -> None:
        """See ``Executor``."""
        self._state.clear()

    def fresh(self) -> "DynamicExecutor":
        """See ``Executor``."""
        lowering, device, capture = self.lowering, self.device, self._capture
        return DynamicExecutor(self.model, self._manifest, lowering=lowering, device=device, capture=capture)

    def run(self, token_ids: Tokens, position: int, past: dict[str, Array]) -> tuple[Logits, dict[str, Array]]:
        """See ``Executor``.

        ONNX Runtime's CPU kernel can continue several sequences only by one token per call. With more tokens, the rows
        run one after the other.
        """
        batch, length = token_ids.shape
        if batch > 1 and length > 1 and position > 0:
            rows = [{name: tensor[row : row + 1] for name, tensor in past.items()} for row in range(batch)]
            results = [self.run(token_ids[row : row + 1], position, rows[row]) for row in range(batch)]
            nexts = {name: np.concatenate([present[name] for _, present in results]) for name in past}
            return np.concatenate([logits for logits, _ in results]), nexts
        table = self._manifest.state
        positions = np.broadcast_to(np.arange(position, position + length), token_ids.shape)
        inputs = {"input_ids": token_ids, "position_ids": positions, **past}
        dtypes = {entry.past_name: entry.dtype for entry in table}
        logits = new_buffer(self.device, (batch, length, self._vocab_size), "float32")
        present = [new_buffer(self.device, (batch, *entry.shape), entry.dtype) for entry in table]
        owners = [logits, *present]
        binding = self.model.io_binding()
        for name, array in inputs.items():
            owners.append(new_buffer(self.device, array.shape, dtypes.get(name, "int64")))
            owners[-1].write(array)
            bind(binding.bind_input, name, owners[-1], self.device)
        bind(binding.bind_output, "logits", logits, self.device)
        scalars = {"logits_to_keep": ort.OrtValue.ortvalue_from_numpy(np.array(0, dtype=np.int64))}
        if self._top_logits is not None:
            scalars["temperature"] = self._zero_temperature.value
        for name, scalar in scalars.items():
            binding.bind_ortvalue_input(name, scalar)
        for entry, buffer in zip(table, present, strict=True):
            bind(binding.bind_output, entry.present_name, buffer, self.device)
        self.model.run_with_iobinding(binding, run_options(self.device, NO_CAPTURE))
        return logits.read(), {entry.past_name: each.read() for entry, each in zip(table, present, strict=True)}

    def buffer_addresses(self) -> list[int]:
        """See ``Executor``."""
        return self._state.addresses()

    def _new_state(self, entry: StateTensor) -> Buffer:
        return new_buffer(self.device, (1, *entry.shape), entry.dtype)

    def _run(self, call: _Call, tokens: Tokens) -> None:
        """Read tokens in one call of the graph."""
        position = self._state.position
        call.text.write(np.array([tokens, np.arange(position, position + len(tokens))]))
        self.model.run_with_iobinding(call.binding, call.options)
        self._state.advance(len(tokens))

    def _bind(self, text: Buffer, turn: int, logits: Buffer, *, keep: int, graph_id: int = NO_CAPTURE) -> _Call:
        """Bind a call that reads the state buffers of set ``turn`` and writes the other set.

        Args:
            text: See ``_Call``.
            turn: Index of the set to read.
            logits: Takes the logits, float32 [1, kept, vocab_size].
            keep: Number of last positions to compute logits for; 0 for all.
            graph_id: Calls with the same id are captured as one CUDA graph and replayed.
        """
        past_buffers, present_buffers = self._state.sets[turn], self._state.sets[1 - turn]
        inputs = {"logits_to_keep": ort.OrtValue.ortvalue_from_numpy(np.array(keep, dtype=np.int64))}
        outputs = {"logits": logits.value}
        if self._argmax is not None:
            shape = tuple(logits.value.shape()[:2])
            argmax = self._argmax if shape == (1, 1) else new_buffer(self.device, shape, "int64")
            outputs["most_likely"] = argmax.value
        if self._top_logits is not None:
            inputs["temperature"] = (self._temperature if keep == 1 else self._zero_temperature).value
            outputs["candidates"] = self._top_logits.value
        binding = self.model.io_binding()
        for row, name in enumerate(("input_ids", "position_ids")):
            bind(binding.bind_input, name, row_of(text, row), self.device)
        for entry, past, present in zip(self._manifest.state, past_buffers, present_buffers, strict=True):
            bind(binding.bind_input, entry.past_name, past, self.device)
            bind(binding.bind_output, entry.present_name, present, self.device)
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        owners = [buffer.value for buffer in (text, *past_buffers, *present_buffers)]
        owners += [*inputs.values(), *outputs.values()]
        return _Call(text, binding, owners, run_options(self.device, graph_id))


def run_options(device: str, graph_id: int) -> ort.RunOptions | None:
    """Return the options of a call. On CUDA they name the captured graph that it belongs to."""
    if device != CUDA:
        return None
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    return options
