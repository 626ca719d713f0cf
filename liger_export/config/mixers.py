"""The mixers that can replace softmax attention, one row of data per mixer.

The state table, the operators' signatures, the model types and the settings of ``linearize`` are derived from these
rows. The computation of a mixer has one place per form: ``ops/mixers.py`` (PyTorch), ``ops/naive.py`` (reference),
``onnx_functions/stock`` and ``onnx_functions/portable`` (ONNX).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["LAYER_MIXERS", "MIXERS", "SOFTMAX", "Mixer"]

Dims = tuple[str, ...]  # a shape; each dimension is named after the ``LigerConfig`` attribute that holds its size


@dataclass(frozen=True, slots=True)
class Mixer:
    """A mixer: the operation by which the tokens of a layer interact.

    Attributes:
        title: name as the literature writes it; part of class names and of the ONNX operator's name.
        states: recurrent state tensors and their shapes without the batch dimension. They are float32.
        options: ``config.json`` fields that the operator takes as floats, after its tensors.
        sizes: ``config.json`` fields that the ONNX node takes as integers; PyTorch reads them from the shapes.
        parameter_sizes: ``config.json`` fields that only set the shape of learned tensors.
        parameters: learned tensors of a layer and their shapes.
    """

    title: str
    states: Mapping[str, Dims] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    parameter_sizes: tuple[str, ...] = ()
    parameters: Mapping[str, Dims] = field(default_factory=dict)

    @property
    def fields(self) -> tuple[str, ...]:
        """The mixer's ``config.json`` fields, besides those that every Liger model has."""
        return (*self.options, *self.sizes, *self.parameter_sizes)

    def state_shapes(self, config: object) -> dict[str, tuple[int, ...]]:
        """Shape of each recurrent state tensor, without the batch dimension, in a model of this ``LigerConfig``."""
        return _shapes(self.states, config)

    def parameter_shapes(self, config: object) -> dict[str, tuple[int, ...]]:
        """Shape of each learned tensor of a layer in a model of this ``LigerConfig``."""
        return _shapes(self.parameters, config)


def _shapes(tensors: Mapping[str, Dims], config: object) -> dict[str, tuple[int, ...]]:
    return {name: tuple(getattr(config, dim) for dim in dims) for name, dims in tensors.items()}


MATRIX = ("num_key_value_heads", "head_dim", "head_dim")  # [G, D (key), D (value)], shared by G's query heads
SLOTS = ("num_key_value_heads", "num_slots", "head_dim")  # [G, M, D]
FEATURES = ("num_attention_heads", "num_features")  # [H, F]: each query head has its own feature maps
FEATURE_MAP = ("num_attention_heads", "head_dim", "feature_dim")  # [H, D, F / 2]

MIXERS = {
    "gla": Mixer("GLA", states={"recurrent_state": MATRIX}, options=("gate_normalizer", "recurrent_weight")),
    "hgrn2": Mixer("HGRN2", states={"recurrent_state": MATRIX}, options=("recurrent_weight",)),
    "gsa": Mixer(
        "GSA",
        states={"slot_key": SLOTS, "slot_value": SLOTS},
        options=("gate_normalizer", "recurrent_weight"),
        sizes=("num_slots",),
    ),
    "lolcats": Mixer(
        "LoLCATs",
        states={"recurrent_state": (*FEATURES, "head_dim"), "normalizer": FEATURES},
        parameter_sizes=("feature_dim",),
        parameters={"query_map": FEATURE_MAP, "key_map": FEATURE_MAP, "window_factors": ("num_attention_heads",)},
    ),
}

SOFTMAX = "softmax"  # the mixer of a layer that keeps the base model's attention, in a bounded window
LAYER_MIXERS = {**MIXERS, SOFTMAX: Mixer("Softmax")}
