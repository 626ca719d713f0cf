"""``liger::gla_attention`` and its siblings: the attention of one layer as one torch operator a mixer.

The operator is what the model calls, what the exporter traces to one node a layer, and where a faster kernel
registers itself. Its gradient recomputes the forward, so training keeps only the operator's inputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from liger_export.ops.heads import Heads
from liger_export.ops.mixers import FORWARDS
from liger_export.ops.signatures import CALL_INPUTS, SIGNATURES, AttentionSignature

__all__ = ["ATTENTIONS", "AttentionOp"]


@dataclass(frozen=True)
class AttentionOp:
    """The operator ``liger::{mixer}_attention``. Its form says what it takes and gives."""

    signature: AttentionSignature
    forward: Callable[..., tuple[Tensor, ...]]

    @property
    def name(self) -> str:
        """Name of the operator, of torch's ``liger`` namespace."""
        return f"{self.signature.mixer}_attention"

    @property
    def torch_op(self) -> Any:
        """The operator as ``torch.export`` sees it."""
        return getattr(torch.ops.liger, self.name).default

    def __call__(self, *arguments: Any) -> tuple[Tensor, ...]:
        """Run the operator on its tensors and options, in order."""
        outputs: tuple[Tensor, ...] = self.torch_op(*arguments)
        return outputs

    def register(self) -> None:
        """Define the operator, its shapes and its gradient with torch."""
        tensors = ", ".join(f"Tensor {name}" for name in self.signature.inputs)
        options = "".join(f", float {name}" for name in self.signature.options)
        schema = f"({tensors}{options}) -> ({', '.join('Tensor' for _ in self.signature.outputs)})"
        op = torch.library.custom_op(f"liger::{self.name}", self.run, mutates_args=(), schema=schema)
        op.register_fake(self._fake)
        op.register_autograd(self._backward, setup_context=self._save_inputs)

    def _forward(self, *arguments: Any) -> tuple[Tensor, ...]:
        tensors, options = arguments[: len(self.signature.inputs)], arguments[len(self.signature.inputs) :]
        call, state = tensors[: len(CALL_INPUTS)], tensors[len(CALL_INPUTS) :][: len(self.signature.states)]
        learned = tensors[len(call) + len(state) :]
        heads = Heads.of(state[-1].shape[-1], *call)
        output, *next_state = self.forward(heads, state, learned, *options)
        return output.flatten(2), *next_state

    def run(self, *arguments: Any) -> tuple[Tensor, ...]:
        """The operator's implementation in PyTorch, on any device."""
        return tuple(tensor.contiguous() for tensor in self._forward(*arguments))

    def _fake(self, *arguments: Any) -> tuple[Tensor, ...]:
        query, states = arguments[0], arguments[len(CALL_INPUTS) :][: len(self.signature.states)]
        return query.new_empty(query.shape), *(torch.empty_like(state) for state in states)

    def _save_inputs(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[: len(self.signature.inputs)])
        ctx.options = inputs[len(self.signature.inputs) :]

    def _backward(self, ctx: Any, *output_gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs = [tensor.detach() for tensor in ctx.saved_tensors]
        wanted = [index for index, needed in enumerate(ctx.needs_input_grad[: len(inputs)]) if needed]
        for index in wanted:
            inputs[index].requires_grad_()
        with torch.enable_grad(), torch.autocast(inputs[0].device.type, enabled=False):
            outputs = self._forward(*inputs, *ctx.options)
        pairs = zip(outputs, output_gradients, strict=True)
        used = [(out, grad) for out, grad in pairs if grad is not None and out.requires_grad]
        gradients = torch.autograd.grad(
            [out for out, _ in used], [inputs[index] for index in wanted], [grad for _, grad in used], allow_unused=True
        )
        by_input: list[Tensor | None] = [None] * (len(inputs) + len(ctx.options))
        for index, gradient in zip(wanted, gradients, strict=True):
            by_input[index] = gradient
        return tuple(by_input)


ATTENTIONS = {mixer: AttentionOp(signature, FORWARDS[mixer]) for mixer, signature in SIGNATURES.items()}
for _op in ATTENTIONS.values():
    _op.register()
