"""Calls of a package's graph, bound to memory once and run many times."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from liger_export.ort import ort
from liger_export.package import Manifest
from liger_export.runtime.buffers import CPU, CUDA, Buffer, View, bind, new_buffer
from liger_export.runtime.executor import Logits

__all__ = ["NO_CAPTURE", "Call", "Graph", "run_options"]

NO_CAPTURE = -1

Memory = Buffer | View


@dataclass(frozen=True, slots=True)
class Call:
    """A binding, and the owners of the memory it points to."""

    binding: ort.IOBinding
    owners: tuple[object, ...]
    options: ort.RunOptions | None


class Graph:
    """A package's graph in ONNX Runtime.

    Attributes:
        model: ONNX Runtime's session, which can be shared.
        manifest: The package's manifest.
        lowering: The graph's key in the manifest.
        device: ``cpu`` or ``cuda``.
        in_place: Input names of the state tensors that the graph may update in place.
        top_width: Width of an output row of ``liger::Candidates``; None if the graph does not compute them.
        computes_argmax: True if the graph computes the argmax of the logits.
    """

    def __init__(self, model: ort.InferenceSession, manifest: Manifest, *, lowering: str, device: str) -> None:
        self.model = model
        self.manifest = manifest
        self.lowering = lowering
        self.device = device
        self.in_place = manifest.graphs[lowering].in_place if device == CPU else []
        # Only fused graphs compute the argmax and the top logits.
        outputs = {output.name: output.shape for output in model.get_outputs()}
        self.computes_argmax = "most_likely" in outputs
        self.top_width: int | None = outputs["candidates"][1] if "candidates" in outputs else None
        self._temperature, self._zero_temperature = (new_buffer(device, (), "float32") for _ in range(2))
        self._requested_temperature = 0.0  # the value in the buffer

    def row_outputs(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return the shape and dtype of each output for the last position of one sequence, by name."""
        outputs: dict[str, tuple[tuple[int, ...], str]] = {}
        outputs["logits"] = ((1, self.manifest.model_config.vocab_size), "float32")
        if self.computes_argmax:
            outputs["most_likely"] = ((1,), "int64")
        if self.top_width is not None:
            outputs["candidates"] = ((self.top_width,), "float32")
        return outputs

    def request_top_logits(self, temperature: float) -> None:
        """See ``Executor``."""
        if self.top_width is not None and temperature != self._requested_temperature:
            self._requested_temperature = math.nan  # an interrupt here leaves the buffer's value unknown
            self._temperature.write(np.array(temperature, dtype=np.float32))
            self._requested_temperature = temperature

    def computes_top_logits(self, temperature: float) -> bool:
        """Return True if calls compute the top logits at this temperature."""
        return self.top_width is not None and temperature != 0 and temperature == self._requested_temperature

    def checked_argmax(self, token: int, read_logits: Callable[[], Logits]) -> int | None:
        """Return a token that ``most_likely`` holds, or None if the logits are not finite. See ``Prediction``."""
        if not 0 <= token < self.manifest.model_config.vocab_size:  # a logit is NaN, or the largest is infinite
            return None
        # Operators that were built before they reported this skip NaN. On a GPU, reading a logit costs a copy.
        return None if self.device == CPU and not np.isfinite(read_logits()[token]) else token

    def bind(
        self,
        text: Sequence[Memory],
        past: Sequence[Memory],
        outputs: Mapping[str, Memory],
        present: Sequence[Memory],
        *,
        keep: int,
        graph_id: int = NO_CAPTURE,
    ) -> Call:
        """Bind a call.

        Args:
            text: Tokens and their positions, each int64 [B, T].
            past: The state tensors to read, in the order of the state table.
            outputs: Takes the logits, and any other outputs that the caller reads.
            present: The state tensors to write.
            keep: Number of last positions to compute logits for; 0 for all.
            graph_id: Calls with the same id are captured as one CUDA graph and replayed.
        """
        table, device = self.manifest.state, self.device
        scalars = {"logits_to_keep": ort.OrtValue.ortvalue_from_numpy(np.array(keep, dtype=np.int64))}
        if self.top_width is not None:
            scalars["temperature"] = (self._temperature if "candidates" in outputs else self._zero_temperature).value
        binding = self.model.io_binding()
        for name, memory in zip(("input_ids", "position_ids"), text, strict=True):
            bind(binding.bind_input, name, memory, device)
        for name, memory in outputs.items():
            bind(binding.bind_output, name, memory, device)
        for entry, source, target in zip(table, past, present, strict=True):
            bind(binding.bind_input, entry.past_name, source, device)
            bind(binding.bind_output, entry.present_name, target, device)
        for name, scalar in scalars.items():
            binding.bind_ortvalue_input(name, scalar)
        owners = (*text, *past, *outputs.values(), *present, *scalars.values())
        return Call(binding, owners, run_options(device, graph_id))

    def run(self, call: Call) -> None:
        """Run a call and wait for its end."""
        self.model.run_with_iobinding(call.binding, call.options)


def run_options(device: str, graph_id: int) -> ort.RunOptions | None:
    """Return the options of a call. On CUDA they name the captured graph that it belongs to."""
    if device != CUDA:
        return None
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    return options
