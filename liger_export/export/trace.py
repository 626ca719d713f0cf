"""Trace a Liger model without its weights into one ONNX graph for prefill and decoding."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from onnxscript.values import Op, Opset
from torch import Tensor, nn

from liger_export.config import LigerConfig, rotary_turns
from liger_export.modeling import MODEL_CLASSES, LigerCache
from liger_export.modeling.model import LigerForCausalLM
from liger_export.onnx_functions.rotary_angles import ROTARY_ANGLES
from liger_export.onnx_functions.schemas import DOMAIN, OPSET, SCHEMAS
from liger_export.ops import ATTENTIONS, AttentionOp
from liger_export.package import STOCK
from liger_export.package.contract import graph_inputs, graph_outputs, state_ports
from liger_export.state import StateTensor, by_layer, state_table

__all__ = ["ONNX_OPSET", "trace"]

ONNX_OPSET = 23
ROTARY = "model.rotary_emb.turns"
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@torch.library.custom_op("liger::last_positions", mutates_args=())
def last_positions(hidden_states: Tensor, count: Tensor) -> Tensor:
    """Return the last ``count`` positions of [B, T, hidden_size], or all of them if ``count`` is 0."""
    return hidden_states[:, -int(count) :].clone()


@last_positions.register_fake
def _last_positions_fake(hidden_states: Tensor, count: Tensor) -> Tensor:
    kept = torch.library.get_ctx().new_dynamic_size()
    return hidden_states.new_empty(hidden_states.shape[0], kept, hidden_states.shape[2])


class _PureModel(nn.Module):
    """The model as a pure function of tokens, positions and past states. Returns logits and present states."""

    def __init__(self, model: LigerForCausalLM, table: tuple[StateTensor, ...]) -> None:
        super().__init__()
        self.causal_lm = model
        self.table = table

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, logits_to_keep: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        cache = LigerCache(by_layer(self.table, past), position_ids[:, 0])
        decoded = self.causal_lm.model(input_ids, position_ids=position_ids, past_key_values=cache, use_cache=True)
        logits = self.causal_lm.lm_head(last_positions(decoded.last_hidden_state, logits_to_keep))
        present = [tensor for layer in decoded.past_key_values.layers for tensor in layer]
        return logits.float(), *present


def trace(config: LigerConfig, config_values: dict[str, Any], activations: str = "float32") -> ir.Model:
    """Trace the model that a ``config.json`` describes.

    Inputs and outputs are those of ``package.contract``. Initializers have the checkpoint's tensor names and no data.
    Liger attention is one ``liger`` node per layer, and the rotary angles of the call are one more.

    Args:
        config: the model.
        config_values: the checkpoint's ``config.json``.
        activations: dtype of activations and window: ``float32``, ``float16`` or ``bfloat16``. Logits are float32.
    """
    dtype = getattr(torch, activations)
    table = state_table(config, activations)
    model_class = MODEL_CLASSES[config.model_type]
    with torch.device("meta"):
        causal_lm = model_class(model_class.config_class.from_dict(config_values)).eval().to(dtype)
        model = _PureModel(causal_lm, table)
        tokens = torch.zeros(2, 3, dtype=torch.int64)  # sizes that torch.export does not specialize on
        past = tuple(torch.zeros(2, *entry.shape, dtype=getattr(torch, entry.dtype)) for entry in table)
        arguments = (tokens, tokens.clone(), torch.zeros((), dtype=torch.int64), *past)

    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    dynamic = ({0: batch, 1: length}, {0: batch, 1: length}, None, tuple({0: batch} for _ in past))
    with warnings.catch_warnings(), _quiet_exporter():
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.export.export(model, arguments, dynamic_shapes=dynamic, strict=False)
        exported = torch.onnx.export(
            program,
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=ONNX_OPSET,
            custom_translation_table={
                **{attention.torch_op: _translator(attention) for attention in ATTENTIONS.values()},
                torch.ops.liger.last_positions.default: _translate_last_positions,
                torch.ops.liger.rotary_angles.default: _translate_rotary_angles,
            },
        )
    assert exported is not None  # None only when exporting to a file
    traced = exported.model
    _rename(traced, config, table)
    _strip_notes(traced)
    return traced


_LIGER = Opset(DOMAIN, OPSET)
_LAST_POSITIONS = Op(_LIGER, "LastPositions", SCHEMAS["LastPositions"])
_ROTARY_ANGLES = Op(_LIGER, ROTARY_ANGLES, SCHEMAS[ROTARY_ANGLES])


def _translator(attention: AttentionOp) -> Callable[..., Any]:
    """A function that translates a call of a torch operator into one ONNX node, with sizes as attributes."""
    signature = attention.signature
    node = Op(_LIGER, signature.onnx_name, SCHEMAS[signature.onnx_name])

    def translate(*arguments: Any, **named: Any) -> Any:
        arguments = (*arguments, *named.values())
        tensors, options = arguments[: len(signature.inputs)], arguments[len(signature.inputs) :]
        by_name = dict(zip(signature.inputs, tensors, strict=True))
        _, num_key_value_heads, window_size, head_dim = by_name["window_value"].shape
        sizes = {
            "num_heads": by_name["query"].shape[-1] // head_dim,
            "num_key_value_heads": num_key_value_heads,
            "head_dim": head_dim,
            "window_size": window_size,
        }
        if "num_slots" in signature.sizes:
            sizes["num_slots"] = by_name["slot_key"].shape[2]
        return node(*tensors, **sizes, **dict(zip(signature.options, options, strict=True)))

    return translate


def _translate_last_positions(hidden_states: Any, count: Any) -> Any:
    return _LAST_POSITIONS(hidden_states, count)


def _translate_rotary_angles(position_ids: Any, turns: Any) -> Any:
    return _ROTARY_ANGLES(position_ids, turns)


def _rename(model: ir.Model, config: LigerConfig, table: tuple[StateTensor, ...]) -> None:
    """Name inputs and outputs as the contract does, and initializers as the checkpoint does."""
    graph = model.graph
    past, present = state_ports(table)
    ports = (*graph_inputs(STOCK, past), *graph_outputs(STOCK, config.vocab_size, present))
    for value, port in zip((*graph.inputs, *graph.outputs), ports, strict=True):
        value.name, value.shape = port.name, ir.Shape(port.shape)
    for value in list(graph.initializers.values()):
        name = value.name.removeprefix("causal_lm.") if value.name else ""
        tied = config.tie_word_embeddings and name == "lm_head.weight"
        value.name = "model.embed_tokens.weight" if tied else name
        if value.name == ROTARY:
            value.const_value = ir.tensor(rotary_turns(config.rope, config.head_dim))
        elif value.dtype in FLOATS:
            value.const_value = None  # it was on the meta device


def _strip_notes(model: ir.Model) -> None:
    """Remove the exporter's notes: stack traces and file names of this machine."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.name = "liger"
    model.producer_name, model.producer_version = "liger-export", None
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's messages about packages that are not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
