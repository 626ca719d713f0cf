"""A checkpoint's weights, balanced and rounded by GPTQ, layer by layer, with the activations of a calibration text.

Memory holds one decoder layer in float32, the activations of the text (tokens x hidden size), the second moment of one
matrix's inputs and its factor (each ``in`` x ``in``), and the integers that are not yet written. For Llama-3-8B and
32,768 tokens these are 0.9 + 0.5 + 2 x 0.8 + 0.2 GB.
"""

import threading
from collections.abc import Callable
from dataclasses import replace

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
from liger_export.quantize.balance import channel_factors
from liger_export.quantize.blocks import Blocks, dequantize, encode
from liger_export.quantize.gptq import Inputs, quantize_matrix

__all__ = ["CalibratedCheckpoint", "read_calibration"]

SEQUENCE_LENGTH = 512
MINIMUM_TOKENS = 2048
TABLE_ROWS = 8192  # rows of the embedding table per read
GPTQ_BITS = 4  # 8 bits are rounded to nearest

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

    The inputs of every matrix come from the matrices before it, which are already rounded. Channels are balanced
    first, so norms change too (``balance``). GPTQ rounds to 4 bits; 8 bits are rounded to nearest, which is as good.
    The embedding table is rounded to nearest. A tied table is rounded as the head instead, and the layers read the
    unrounded table (rounding it to nearest measures the same: docs/results/quality.md).

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
        """Rows ``start`` to ``stop`` of a tensor, float32, balanced but not rounded."""
        if (layer := _layer_of(name)) is not None:
            with self._lock:
                changed = self._rounded(layer + 1).balanced.get(name)
            if changed is not None:
                return changed[start:stop]
        rows: npt.NDArray[np.float32] = self._weights.rows(name, start, stop).numpy()
        return rows

    def blocks(self, name: str, start: int, stop: int, scheme: Scheme) -> Blocks:
        """Rows ``start`` to ``stop`` of a matrix, rounded.

        Raises:
            KeyError: the rows were requested before, or the matrix does not exist or is not rounded.
        """
        if name == self._head:
            inputs = self._inputs_of_head() if scheme.bits == GPTQ_BITS else None
            return _quantize(self._weights.rows(name, start, stop), inputs, scheme)
        if name == EMBEDDING:
            return _quantize(self._weights.rows(name, start, stop), None, scheme)
        layer = _layer_of(name)
        if layer is None:
            raise KeyError(name)
        with self._lock:
            done = self._rounded(layer + 1).done
            whole = done[name]
            left = self._rows_left.pop(name, len(whole.packed)) - (stop - start)
            if left:
                self._rows_left[name] = left
            else:
                del done[name]
        zero_points = None if whole.zero_points is None else whole.zero_points[start:stop]
        return Blocks(whole.packed[start:stop], whole.scales[start:stop], zero_points)

    def _inputs_of_head(self) -> Inputs:
        with self._lock:
            if self._head_inputs is None:
                quantizer = self._rounded(self._config.num_hidden_layers)
                self._head_inputs = quantizer.inputs_of_head()
                quantizer.hidden = torch.empty(0)  # frees the activations
            return self._head_inputs

    def _rounded(self, layers: int) -> "_LayerQuantizer":
        """The quantizer, after at least this many layers."""
        if self._quantizer is None:
            self._quantizer = _LayerQuantizer(self._weights, self._config, self._precision, self._tokens)
        while self._quantizer.layer < layers:
            self._quantizer.round_layer()
        return self._quantizer


class _LayerQuantizer:
    """The progress of a text through the model.

    Attributes:
        layer: index of the next layer.
        hidden: residual stream before that layer, [S, T, hidden_size].
        done: rounded matrices of earlier layers that are not yet fetched, by name.
        balanced: norms and biases of earlier layers that balancing changed, by name.
    """

    def __init__(self, weights: MergedCheckpoint, config: LigerConfig, precision: Precision, tokens: Tensor) -> None:
        self.weights, self.config, self.precision = weights, config, precision
        self.layer, self.done, self.balanced = 0, dict[str, Blocks](), dict[str, npt.NDArray[np.float32]]()
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

        self._round(layer, QUERY_KEY_VALUE, layer.input_layernorm, "input_layernorm")
        self._round(layer, ("self_attn.o_proj",), mixed)
        self._add(lambda hidden: attention.o_proj(mixed(hidden)))
        self._round(layer, GATE_UP, layer.post_attention_layernorm, "post_attention_layernorm")
        self._round(layer, ("mlp.down_proj",), gated, "mlp.up_proj")
        self._add(lambda hidden: mlp.down_proj(gated(hidden)))
        self.layer += 1

    @torch.no_grad()
    def inputs_of_head(self) -> Inputs:
        """The statistics of the head's inputs, after the last layer."""
        norm = nn.RMSNorm(self.config.hidden_size, eps=self.config.rms_norm_eps)
        norm.weight.copy_(self.weights.rows("model.norm.weight", 0, self.config.hidden_size))
        return Inputs.of(self._moments(norm))

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

    def _round(
        self, layer: LigerDecoderLayer, names: tuple[str, ...], read: Activations, producer: str | None = None
    ) -> None:
        """Round those of the matrices ``names`` that have a scheme.

        Args:
            layer: the layer, which is changed.
            names: matrices that read the same activations.
            read: computes these activations.
            producer: norm or matrix that can divide each channel of the activations by a factor. Channels are balanced
                if all of these matrices are stored as integers.
        """
        schemes = {name: self.precision.scheme(self._full(name)) for name in names}
        if not any(schemes.values()):
            return
        moments = self._moments(read)
        if producer and all(schemes.values()) and self._can_divide(producer):
            factors = channel_factors(moments.diagonal())
            self._divide(layer, producer, factors)
            for name in names:
                layer.get_submodule(name).weight.mul_(factors)
            moments /= factors.outer(factors)
        uses_gptq = any(scheme and scheme.bits == GPTQ_BITS for scheme in schemes.values())
        inputs = Inputs.of(moments) if uses_gptq else None
        for name, scheme in schemes.items():
            if scheme:
                weight = layer.get_submodule(name).weight
                blocks = _quantize(weight, inputs, scheme)
                self.done[self._full(name)] = blocks
                weight.copy_(torch.from_numpy(dequantize(blocks, scheme)))

    def _can_divide(self, producer: str) -> bool:
        """True for norms, and for matrices whose integers are not yet written."""
        return producer.endswith("norm") or self._full(producer) in self.done

    def _divide(self, layer: LigerDecoderLayer, producer: str, factors: Tensor) -> None:
        """Divide each channel that a norm or a rounded matrix produces by a factor."""
        for kind, parameter in layer.get_submodule(producer).named_parameters():
            parameter.div_(factors if parameter.dim() == 1 else factors[:, None])
            if parameter.dim() == 1:
                self.balanced[self._full(producer, kind)] = parameter.numpy().copy()
        name = self._full(producer)
        if (blocks := self.done.get(name)) is not None:
            self.done[name] = replace(blocks, scales=blocks.scales / factors[:, None].numpy())

    def _full(self, name: str, kind: str = "weight") -> str:
        """Checkpoint name of a tensor of the current layer."""
        return f"model.layers.{self.layer}.{name}.{kind}"

    def _moments(self, read: Activations) -> Tensor:
        """Sum of x x^T over the activations x that ``read`` computes, [in, in]."""
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
        return moments

    def _add(self, update: Activations) -> None:
        """Add an update to the residual stream, one sequence at a time."""
        for sequence in self.hidden.split(1):
            sequence += update(sequence)


def _quantize(weight: Tensor, inputs: Inputs | None, scheme: Scheme) -> Blocks:
    """Round a matrix or some of its rows: by GPTQ to 4 bits, else to nearest."""
    if scheme.bits == GPTQ_BITS and inputs is not None:
        return quantize_matrix(weight, inputs, scheme)
    return encode(weight.detach().numpy(), scheme, "rtn")


def _layer_of(name: str) -> int | None:
    """Index of the layer that a checkpoint tensor belongs to; None outside the layers."""
    _, part, *rest = name.split(".")
    return int(rest[0]) if part == "layers" else None
