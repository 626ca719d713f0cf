"""``liger::gla_attention`` and its siblings: the attention of one layer as one torch operator a mixer.

The operator is what the model calls, what the exporter traces to one node a layer, and where a faster kernel
registers itself. Its gradient recomputes the forward, so training keeps only the operator's inputs.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from liger_export.ops.mixers import FORMS, Form, Heads

__all__ = ["ATTENTIONS", "AttentionOp"]

CALL_INPUTS = ("query", "key", "value", "cos", "sin", "position_ids")


@dataclass(frozen=True)
class AttentionOp:
    """The operator ``liger::{mixer}_attention``.

    Its tensors, in order:

    - query [B, T, H * D], key and value [B, T, G * D], as projected, after biases and q/k norms;
    - cos and sin [B, T, D / 2] of the rotary angles, float32 (float64 with float64 inputs);
    - position_ids, int64 [B, T], consecutive within a row; -1 marks padding, which may only end a row and
      leaves no trace;
    - the layer's state tensors, as the state table lists them: the recurrent ones, in float32, then window_key
      and window_value [B, G, W, D], oldest first;
    - the mixer's learned tensors.

    Its options, numbers, follow. It returns the output [B, T, H * D] and the next state tensors.
    """

    mixer: str
    form: Form

    @property
    def states(self) -> tuple[str, ...]:
        """Names of the state tensors."""
        return (*self.form.recurrent_states, "window_key", "window_value")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all tensors the operator takes."""
        return (*CALL_INPUTS, *self.states, *self.form.parameters)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of all tensors it returns."""
        return ("output", *(f"next_{name}" for name in self.states))

    @property
    def onnx_name(self) -> str:
        """Name of the ONNX operator that a traced graph holds for it."""
        return f"{self.form.title}Attention"

    @property
    def torch_op(self) -> Any:
        """The operator as ``torch.export`` sees it."""
        return getattr(torch.ops.liger, f"{self.mixer}_attention").default

    def __call__(self, *arguments: Any) -> tuple[Tensor, ...]:
        """Run the operator on its tensors and options, in order."""
        outputs: tuple[Tensor, ...] = self.torch_op(*arguments)
        return outputs

    def register(self) -> None:
        """Define the operator, its shapes and its gradient with torch."""
        tensors = ", ".join(f"Tensor {name}" for name in self.inputs)
        options = "".join(f", float {name}" for name in self.form.options)
        schema = f"({tensors}{options}) -> ({', '.join('Tensor' for _ in self.outputs)})"
        op = torch.library.custom_op(f"liger::{self.mixer}_attention", self._run, mutates_args=(), schema=schema)
        op.register_fake(self._fake)
        op.register_autograd(self._backward, setup_context=self._save_inputs)

    def _forward(self, *arguments: Any) -> tuple[Tensor, ...]:
        tensors, options = arguments[: len(self.inputs)], arguments[len(self.inputs) :]
        state = tensors[len(CALL_INPUTS) :][: len(self.states)]
        learned = tensors[len(CALL_INPUTS) + len(self.states) :]
        heads = Heads.of(state[-1].shape[-1], *tensors[: len(CALL_INPUTS)])
        output, *next_state = self.form.forward(heads, state, learned, *options)
        return output.flatten(2), *next_state

    def _run(self, *arguments: Any) -> tuple[Tensor, ...]:
        return tuple(tensor.contiguous() for tensor in self._forward(*arguments))

    def _fake(self, *arguments: Any) -> tuple[Tensor, ...]:
        query, states = arguments[0], arguments[len(CALL_INPUTS) :][: len(self.states)]
        return query.new_empty(query.shape), *(torch.empty_like(state) for state in states)

    def _save_inputs(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[: len(self.inputs)])
        ctx.options = inputs[len(self.inputs) :]

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


ATTENTIONS = {mixer: AttentionOp(mixer, form) for mixer, form in FORMS.items()}
for _op in ATTENTIONS.values():
    _op.register()
