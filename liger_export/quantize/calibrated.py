"""A checkpoint's weights rounded by GPTQ, layer by layer, with the activations of a calibration text.

Memory holds one decoder layer in float32, the activations of the text (tokens x hidden size), the second moment of one
matrix's inputs and its factor (each ``in`` x ``in``), and the integers that are not yet written. For Llama-3-8B and
32,768 tokens these are 0.9 + 0.5 + 2 x 0.8 + 0.2 GB.
"""

import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from liger_export.checkpoint import MergedCheckpoint
from liger_export.config import LigerConfig
from liger_export.data import TextEncoder, read_tokens
from liger_export.errors import QuantizationError
from liger_export.modeling import LigerCache
from liger_export.modeling.model import LigerDecoderLayer, LigerRotaryEmbedding, Positions
from liger_export.precision import EMBEDDING, LM_HEAD, Calibration, Precision, Scheme
from liger_export.quantize.blocks import Blocks, dequantize, encode
from liger_export.quantize.gptq import Inputs, quantize_matrix

__all__ = ["CalibratedCheckpoint", "read_calibration"]

SEQUENCE_LENGTH = 512
MINIMUM_TOKENS = 2048
TABLE_ROWS = 8192  # rows of the embedding table per read

QUERY_KEY_VALUE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")

Activations = Callable[[Tensor], Tensor]  # residual stream [1, T, hidden_size] to activations [1, T, any]


def read_calibration(calibration: Calibration, encoder: TextEncoder) -> Tensor:
    """Read a calibration text as int64 [S, SEQUENCE_LENGTH]; an incomplete last sequence is dropped.

    Raises:
        DataError: the text is missing or unreadable.
        InputError: the model does not know a token.
        QuantizationError: the text is too short.
    """
    ids = read_tokens(encoder, calibration.text, calibration.max_tokens)
    if len(ids) < MINIMUM_TOKENS:
        raise QuantizationError(
            f"The calibration text has {len(ids):,} tokens; at least {MINIMUM_TOKENS:,} are needed.",
            "Pass more text, or increase --calibration-tokens.",
        )
    return torch.tensor(ids[: len(ids) // SEQUENCE_LENGTH * SEQUENCE_LENGTH]).view(-1, SEQUENCE_LENGTH)


class CalibratedCheckpoint:
    """Rows of a checkpoint with merged adapters, rounded to minimize the change of the outputs on a text.

    The inputs of every matrix come from the matrices before it, which are already rounded. The embedding table is
    rounded to nearest. A tied table is rounded as the head instead, and the layers read the unrounded table (rounding
    it to nearest measures the same: docs/quality.md).

    Safe to use from several threads. A layer is computed on first request, so request integers layer by layer, then
    those of the head, and each row once.
    """

    def __init__(self, weights: MergedCheckpoint, config: LigerConfig, precision: Precision, tokens: Tensor) -> None:
        """Store the arguments. Weights are read on first request.

        Args:
            weights: checkpoint and adapters.
            config: the model.
            precision: precision of each matrix.
            tokens: calibration tokens from ``read_calibration``, int64 [S, T].
        """
        self._weights, self._config, self._precision, self._tokens = weights, config, precision, tokens
        self._head = EMBEDDING if config.tie_word_embeddings else LM_HEAD
        self._lock = threading.Lock()
        self._quantizer: _LayerQuantizer | None = None
        self._head_inputs: Inputs | None = None
        self._rows_left: dict[str, int] = {}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._weights.checkpoint.tensors[name].shape

    def rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows ``start`` to ``stop`` of a tensor, float32, not rounded."""
        rows: npt.NDArray[np.float32] = self._weights.rows(name, start, stop).numpy()
        return rows

    def blocks(self, name: str, start: int, stop: int, scheme: Scheme) -> Blocks:
        """Rows ``start`` to ``stop`` of a matrix, rounded.

        Raises:
            KeyError: the rows were requested before, or the matrix does not exist or is not rounded.
        """
        if name == self._head:
            return quantize_matrix(self._weights.rows(name, start, stop), self._inputs_of_head(), scheme)
        if name == EMBEDDING:
            return encode(self.rows(name, start, stop), scheme, "rtn")
        with self._lock:
            quantizer = self._started_quantizer()
            while name not in quantizer.done:
                if quantizer.layer == self._config.num_hidden_layers:
                    raise KeyError(name)
                quantizer.round_layer()
            whole = quantizer.done[name]
            left = self._rows_left.pop(name, len(whole.packed)) - (stop - start)
            if left:
                self._rows_left[name] = left
            else:
                del quantizer.done[name]
        zero_points = None if whole.zero_points is None else whole.zero_points[start:stop]
        return Blocks(whole.packed[start:stop], whole.scales[start:stop], zero_points)

    def _inputs_of_head(self) -> Inputs:
        with self._lock:
            if self._head_inputs is None:
                quantizer = self._started_quantizer()
                while quantizer.layer < self._config.num_hidden_layers:
                    quantizer.round_layer()
                self._head_inputs = quantizer.inputs_of_head()
                quantizer.hidden = torch.empty(0)  # frees the activations
            return self._head_inputs

    def _started_quantizer(self) -> "_LayerQuantizer":
        if self._quantizer is None:
            self._quantizer = _LayerQuantizer(self._weights, self._config, self._precision, self._tokens)
        return self._quantizer


class _LayerQuantizer:
    """The progress of a text through the model.

    Attributes:
        layer: index of the next layer.
        hidden: residual stream before that layer, [S, T, hidden_size].
        done: rounded matrices of earlier layers that are not yet fetched, by name.
    """

    def __init__(self, weights: MergedCheckpoint, config: LigerConfig, precision: Precision, tokens: Tensor) -> None:
        self.weights, self.config, self.precision = weights, config, precision
        self.layer, self.done = 0, dict[str, Blocks]()
        ids = torch.arange(tokens.shape[1])[None]
        cos, sin = LigerRotaryEmbedding(config)(ids, torch.float32)
        self.positions = Positions(cos, sin, ids)
        self.start = LigerCache.zeros(config, 1, torch.float32).layers
        self.hidden = self._embed(tokens)

    @torch.no_grad()
    def round_layer(self) -> None:
        """Round the next layer's matrices and apply the rounded layer to the text."""
        layer, state = self._load(), self.start[self.layer]
        attention, mlp = layer.self_attn, layer.mlp

        def mixed(hidden: Tensor) -> Tensor:
            return attention.mix(attention.project(layer.input_layernorm(hidden)), self.positions, state)[0]

        def gated(hidden: Tensor) -> Tensor:
            return mlp.gated(layer.post_attention_layernorm(hidden))

        self._round(layer, QUERY_KEY_VALUE, layer.input_layernorm)
        self._round(layer, ("self_attn.o_proj",), mixed)
        self._add(lambda hidden: attention.o_proj(mixed(hidden)))
        self._round(layer, GATE_UP, layer.post_attention_layernorm)
        self._round(layer, ("mlp.down_proj",), gated)
        self._add(lambda hidden: mlp.down_proj(gated(hidden)))
        self.layer += 1

    @torch.no_grad()
    def inputs_of_head(self) -> Inputs:
        """Statistics of the head's inputs, after the last layer."""
        norm = nn.RMSNorm(self.config.hidden_size, eps=self.config.rms_norm_eps)
        norm.weight.copy_(self.weights.rows("model.norm.weight", 0, self.config.hidden_size))
        return self._inputs(norm)

    def _embed(self, tokens: Tensor) -> Tensor:
        scheme = None if self.config.tie_word_embeddings else self.precision.scheme(EMBEDDING)
        hidden = torch.empty(*tokens.shape, self.config.hidden_size)
        for start in range(0, self.config.vocab_size, TABLE_ROWS):
            rows = self.weights.rows(EMBEDDING, start, min(start + TABLE_ROWS, self.config.vocab_size))
            if scheme:
                rows = torch.from_numpy(dequantize(encode(rows.numpy(), scheme, "rtn"), scheme))
            inside = (tokens >= start) & (tokens < start + len(rows))
            hidden[inside] = rows[tokens[inside] - start]
        return hidden

    def _load(self) -> LigerDecoderLayer:
        layer = LigerDecoderLayer(self.config, self.layer)
        for name, parameter in layer.named_parameters():
            parameter.copy_(self.weights.rows(f"model.layers.{self.layer}.{name}", 0, len(parameter)))
        return layer

    def _round(self, layer: LigerDecoderLayer, names: tuple[str, ...], read: Activations) -> None:
        """Round those of the matrices ``names`` that have a scheme. All of them read the same activations."""
        prefix = f"model.layers.{self.layer}"
        schemes = {name: self.precision.scheme(f"{prefix}.{name}.weight") for name in names}
        inputs = self._inputs(read) if any(schemes.values()) else None
        for name, scheme in schemes.items():
            if inputs is None or scheme is None:
                continue
            weight = layer.get_submodule(name).weight
            blocks = quantize_matrix(weight, inputs, scheme)
            self.done[f"{prefix}.{name}.weight"] = blocks
            weight.copy_(torch.from_numpy(dequantize(blocks, scheme)))

    def _inputs(self, read: Activations) -> Inputs:
        moments: Tensor | None = None
        for sequence in self.hidden.split(1):
            activations = read(sequence)[0]
            width = activations.shape[1]
            moments = torch.zeros(width, width) if moments is None else moments
            moments.addmm_(activations.T, activations)
        assert moments is not None, "there are no sequences"
        if not moments.isfinite().all():
            raise QuantizationError(
                f"The activations of the calibration text overflow float32 before or in layer {self.layer}.",
                "Check the checkpoint in PyTorch, or choose another method.",
            )
        return Inputs.of(moments)

    def _add(self, update: Activations) -> None:
        """Add an update to the residual stream, one sequence at a time."""
        for sequence in self.hidden.split(1):
            sequence += update(sequence)
