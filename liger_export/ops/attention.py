"""The attention of one layer as a torch operator, one per mixer: ``liger::gla_attention`` and its siblings.

The model calls the operator, the exporter traces it to one node per layer, and faster kernels register for it. Its
backward recomputes the forward, so training stores only the operator's inputs. Kernels can register for it too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from liger_export.ops.heads import Heads
from liger_export.ops.mixers import FORWARDS
from liger_export.ops.signatures import CALL_INPUTS, SIGNATURES, AttentionSignature

__all__ = ["ATTENTIONS", "AttentionOp"]

PROJECTIONS = 3  # query, key and value, the first inputs

# Maps the operator's inputs and options and the gradient of its output to those of the projections; None if it cannot.
ProjectionGradients = Callable[..., tuple[Tensor, ...] | None]


@dataclass(frozen=True)
class AttentionOp:
    """The operator ``liger::{mixer}_attention``, with the inputs and outputs of its signature."""

    signature: AttentionSignature
    forward: Callable[..., tuple[Tensor, ...]]
    _gradients: dict[str, ProjectionGradients] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the operator in torch's ``liger`` namespace."""
        return f"{self.signature.mixer}_attention"

    @property
    def torch_op(self) -> Any:
        """The registered overload, as ``torch.export`` sees it."""
        return getattr(torch.ops.liger, self.name).default

    def __call__(self, *arguments: Any) -> tuple[Tensor, ...]:
        """Run the operator on its tensors and options, in the signature's order."""
        outputs: tuple[Tensor, ...] = self.torch_op(*arguments)
        return outputs

    def register(self) -> None:
        """Register the operator, its output shapes and its gradient with torch."""
        tensors = ", ".join(f"Tensor {name}" for name in self.signature.inputs)
        options = "".join(f", float {name}" for name in self.signature.options)
        schema = f"({tensors}{options}) -> ({', '.join('Tensor' for _ in self.signature.outputs)})"
        op = torch.library.custom_op(f"liger::{self.name}", self.run, mutates_args=(), schema=schema)
        op.register_fake(self._fake)
        op.register_autograd(self._backward, setup_context=self._save_inputs)

    def register_gradients(self, device_type: str, function: ProjectionGradients) -> None:
        """Register a function for the usual gradient on a device: of projections only, from that of the output only."""
        self._gradients[device_type] = function

    def _forward(self, *arguments: Any) -> tuple[Tensor, ...]:
        tensors, options = arguments[: len(self.signature.inputs)], arguments[len(self.signature.inputs) :]
        call, state = tensors[: len(CALL_INPUTS)], tensors[len(CALL_INPUTS) :][: len(self.signature.states)]
        parameters = tensors[len(call) + len(state) :]
        heads = Heads.of(state[-1].shape[-1], *call)
        output, *next_state = self.forward(heads, state, parameters, *options)
        return output.flatten(2), *next_state

    def run(self, *arguments: Any) -> tuple[Tensor, ...]:
        """Run the PyTorch implementation of the operator, on any device."""
        return tuple(tensor.contiguous() for tensor in self._forward(*arguments))

    def _fake(self, *arguments: Any) -> tuple[Tensor, ...]:
        query, states = arguments[0], arguments[len(CALL_INPUTS) :][: len(self.signature.states)]
        return query.new_empty(query.shape), *(torch.empty_like(state) for state in states)

    def _save_inputs(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)  # so that a state that nothing reads has None
        ctx.save_for_backward(*inputs[: len(self.signature.inputs)])
        ctx.options = inputs[len(self.signature.inputs) :]

    def _backward(self, ctx: Any, *output_gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        wanted = [index for index, needed in enumerate(ctx.needs_input_grad[: len(inputs)]) if needed]
        gradients = None
        if wanted[-1] < PROJECTIONS and all(gradient is None for gradient in output_gradients[1:]):
            function = self._gradients.get(inputs[0].device.type)
            gradients = function(*inputs, *ctx.options, output_gradients[0]) if function else None
        if gradients is None:
            gradients = self.recomputed_gradients((*inputs, *ctx.options), output_gradients, wanted)
        else:
            gradients = tuple(gradients[index] for index in wanted)
        by_input: list[Tensor | None] = [None] * (len(inputs) + len(ctx.options))
        for index, gradient in zip(wanted, gradients, strict=True):
            by_input[index] = gradient
        return tuple(by_input)

    def recomputed_gradients(
        self,
        arguments: Sequence[Any],
        output_gradients: Sequence[Tensor | None],
        wanted: Sequence[int] = tuple(range(PROJECTIONS)),
    ) -> tuple[Tensor, ...]:
        """Run the PyTorch implementation again and differentiate it, on any device.

        Args:
            arguments: the operator's tensors and options, in order.
            output_gradients: gradients of the first outputs; the others have none.
            wanted: indices of the inputs whose gradients to return.
        """
        count = len(self.signature.inputs)
        inputs = [tensor.detach() for tensor in arguments[:count]]
        for index in wanted:
            inputs[index].requires_grad_()
        with torch.enable_grad(), torch.autocast(inputs[0].device.type, enabled=False):
            outputs = self._forward(*inputs, *arguments[count:])
        pairs = zip(outputs, output_gradients, strict=False)
        used = [(output, gradient) for output, gradient in pairs if gradient is not None and output.requires_grad]
        return torch.autograd.grad(
            [output for output, _ in used],
            [inputs[index] for index in wanted],
            [gradient for _, gradient in used],
            allow_unused=True,
        )


ATTENTIONS = {mixer: AttentionOp(signature, FORWARDS[mixer]) for mixer, signature in SIGNATURES.items()}
for _op in ATTENTIONS.values():
    _op.register()
