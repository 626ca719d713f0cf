"""The sizes that a portable body is written for."""

from dataclasses import dataclass

__all__ = ["CHUNK", "Sizes"]

CHUNK = 16  # tokens that the recurrence processes in parallel, with the decay between each pair of them


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes and numbers that are fixed in the text of one portable body. The batch is one sequence.

    Attributes:
        length: T, tokens of a call: 1 or a multiple of ``CHUNK``.
        num_heads: H.
        num_key_value_heads: G.
        head_dim: D.
        window_size: W.
        activation: dtype of the activations, as its number in ``onnx.TensorProto``.
        num_slots: M of gsa, otherwise 0.
        feature_dim: outputs of one of lolcats' feature maps, otherwise 0.
        gate_normalizer: divisor of the log gate.
        recurrent_weight: weight of the recurrence in the output.
    """

    length: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    window_size: int
    activation: int
    num_slots: int = 0
    feature_dim: int = 0
    gate_normalizer: float = 1.0
    recurrent_weight: float = 0.5

    @property
    def num_queries_per_kv(self) -> int:
        """R, query heads per key/value head."""
        return self.num_heads // self.num_key_value_heads

    @property
    def num_features(self) -> int:
        """F, lolcats' features per head."""
        return 2 * self.feature_dim

    @property
    def num_chunks(self) -> int:
        """N, chunks in a call of many tokens."""
        return self.length // CHUNK
