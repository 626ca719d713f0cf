"""The loss in parts against the loss from all logits."""

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.loss.loss_utils import ForCausalLMLoss

from liger_export.modeling import loss
from tests.tiny import load_model, relative_l2

VOCABULARY = 37


def example(dtype: torch.dtype) -> tuple[Tensor, nn.Linear, Tensor]:
    """Hidden states, a head and labels, some of which are ignored."""
    torch.manual_seed(0)
    head = nn.Linear(16, VOCABULARY, bias=False, dtype=dtype)
    labels = torch.randint(VOCABULARY, (3, 11))
    labels[1, 4:7] = labels[2, 5:] = loss.IGNORED
    return torch.randn(3, 11, 16, dtype=dtype, requires_grad=True), head, labels


@pytest.mark.parametrize("num_items", [None, 7, torch.tensor(9)], ids=str)
@pytest.mark.parametrize("rows_per_part", [1, 4, 100])
def test_loss_and_gradients_equal_those_from_all_logits(num_items: Tensor | int | None, rows_per_part: int) -> None:
    hidden_states, head, labels = example(torch.float64)
    expected = ForCausalLMLoss(head(hidden_states).float(), labels, VOCABULARY, num_items)
    with patch.object(loss, "LOGITS_PER_PART", rows_per_part * VOCABULARY):
        measured = loss.next_token_loss(hidden_states, head, labels, num_items)
    assert measured.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = [torch.autograd.grad(3 * each, (hidden_states, head.weight)) for each in (measured, expected)]
    for found, wanted in zip(*gradients, strict=True):
        assert relative_l2(found, wanted) < 1e-6


@pytest.mark.slow
def test_gradients_equal_finite_differences() -> None:
    hidden_states, head, labels = example(torch.float64)
    with patch.object(loss, "LOGITS_PER_PART", 4 * VOCABULARY):
        assert torch.autograd.gradcheck(
            lambda rows, _: loss.next_token_loss(rows, head, labels), (hidden_states, head.weight)
        )


def test_probabilities_close_to_one_keep_their_gradient_in_bfloat16() -> None:
    """A probability of 1 - 1e-4 is 1 in bfloat16."""
    head, labels = nn.Linear(2, 2, bias=False), torch.tensor([[0, 0]])
    head.weight.data = torch.tensor([[9.25, 0.0], [0.0, 0.0]])
    hidden_states = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]], requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = torch.autograd.grad(loss.next_token_loss(hidden_states, head, labels), hidden_states)
    (expected,) = torch.autograd.grad(loss.next_token_loss(hidden_states, head, labels), hidden_states)
    assert expected.any()
    assert relative_l2(found, expected) < 1e-2


def test_training_gives_the_loss_of_evaluation_and_no_logits(liger_checkpoint: Path) -> None:
    model = load_model(liger_checkpoint)
    tokens = torch.randint(0, 200, (2, 20), generator=torch.Generator().manual_seed(0))
    evaluated = model.eval()(tokens, labels=tokens)
    with patch.object(loss, "LOGITS_PER_PART", 1000):
        trained = model.train()(tokens, labels=tokens)
    assert trained.logits is None
    assert evaluated.logits.shape[:2] == tokens.shape
    assert trained.loss.item() == pytest.approx(evaluated.loss.item(), rel=1e-6)


def test_an_adapted_head_computes_all_logits(liger_checkpoint: Path) -> None:
    model = load_model(liger_checkpoint)
    tokens = torch.randint(0, 200, (2, 20), generator=torch.Generator().manual_seed(0))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)).train()
    assert adapted(tokens, labels=tokens).logits is not None


def test_adapted_projections_leave_the_loss_in_parts(liger_checkpoint: Path) -> None:
    """PEFT passes options of the model that are None."""
    model = load_model(liger_checkpoint)
    tokens = torch.randint(0, 200, (2, 20), generator=torch.Generator().manual_seed(0))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).train()
    trained = adapted(input_ids=tokens, labels=tokens)
    assert trained.logits is None
    assert trained.loss.item() == pytest.approx(adapted.eval()(tokens, labels=tokens).loss.item(), rel=1e-6)
