from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

import liger_export
from liger_export.config import MIXERS
from liger_export.modeling import CONFIG_CLASSES, MODEL_CLASSES, LigerForCausalLM, liger_config
from liger_export.state import state_table
from tests.tiny import VOCABULARY, Shape, edit_json, load_model, relative_l2, write_liger

shapes = st.builds(
    lambda num_key_value_heads, num_queries_per_kv, head_dim, window: Shape(
        num_key_value_heads * num_queries_per_kv, num_key_value_heads, head_dim, window
    ),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([2, 6, 10]),
    st.integers(1, 20),
)


def random_model(
    shape: Shape, dtype: torch.dtype = torch.float32, *, model_type: str = "liger_gla", **fields: object
) -> LigerForCausalLM:
    torch.manual_seed(0)
    config = CONFIG_CLASSES[model_type](**{**shape.base_values, "window_size": shape.window, **fields})
    return MODEL_CLASSES[model_type](config).to(dtype).eval()


TYPES = {mixer: "lolcats" if mixer == "lolcats" else f"liger_{mixer}" for mixer in MIXERS}
mixers = pytest.mark.parametrize("model_type", TYPES.values(), ids=list(TYPES))


def random_tokens(length: int, batch: int = 2) -> Tensor:
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(length))


@torch.no_grad()
def in_calls(model: LigerForCausalLM, tokens: Tensor, cuts: list[int]) -> tuple[Tensor, list[Tensor]]:
    cache, logits = None, []
    for start, stop in pairwise([0, *cuts, tokens.shape[1]]):
        output = model(tokens[:, start:stop], past_key_values=cache)
        cache = output.past_key_values
        logits.append(output.logits)
    assert cache is not None
    return torch.cat(logits, 1), [tensor for layer in cache.layers for tensor in layer]


@mixers
@settings(max_examples=6, deadline=None)
@given(data=st.data(), shape=shapes, length=st.integers(2, 60), hybrid=st.booleans())
def test_any_split_into_calls_gives_the_same_logits_and_state(
    model_type: str, data: st.DataObject, shape: Shape, length: int, hybrid: bool
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1))))
    kept = {"softmax_layers": [1], "softmax_window": 3 * shape.window} if hybrid else {}
    model, tokens = random_model(shape, model_type=model_type, **kept), random_tokens(length)
    whole, final = in_calls(model, tokens, [])
    parts, state = in_calls(model, tokens, cuts)
    assert relative_l2(parts, whole) < 1e-5
    for measured, expected in zip(state, final, strict=True):
        assert relative_l2(measured, expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES.values(), ids=list(TYPES))
def test_single_steps_do_not_drift_from_the_full_sequence(model_type: str) -> None:
    model, tokens = random_model(Shape(), model_type=model_type), random_tokens(1024, batch=1)
    whole, _ = in_calls(model, tokens, [])
    steps, _ = in_calls(model, tokens, list(range(1, 1024)))
    assert relative_l2(steps[:, -128:], whole[:, -128:]) <= 2 * relative_l2(steps[:, :128], whole[:, :128])


def test_state_is_what_the_table_says() -> None:
    model = random_model(Shape())
    _, state = in_calls(model, random_tokens(5), [])
    table = state_table(liger_config(model.config))
    assert [tuple(tensor.shape) for tensor in state] == [(2, *entry.shape) for entry in table]
    assert {str(tensor.dtype) for tensor in state} == {"torch.float32"}


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    ("backbone", "overrides"),
    [
        ("llama", {"rope_parameters": LLAMA3_ROPE, "attention_bias": True, "mlp_bias": True}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
        ("mistral", {"sliding_window": 40}),
        ("qwen2", {}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 0}),
        ("qwen3", {}),
        ("qwen3", {"attention_bias": True}),
    ],
)
def test_with_softmax_in_every_layer_the_model_equals_transformers_own(
    tmp_path: Path, backbone: str, overrides: dict[str, Any]
) -> None:
    """Everything but the mixers against independent implementations: rope scaling, biases, norms, head."""
    window = overrides.get("sliding_window", 64)
    checkpoint = write_liger(tmp_path / "liger", Shape(window=8), backbone=backbone, **overrides)
    edit_json(checkpoint / "config.json", softmax_layers=[0, 1], softmax_window=window)
    tokens = random_tokens(60)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "liger-base").eval()
    with torch.no_grad():
        assert relative_l2(load_model(checkpoint)(tokens).logits, base(tokens).logits) < 1e-5


def test_saves_and_loads_through_the_auto_classes(liger_checkpoint: Path, tmp_path: Path) -> None:
    liger_export.register()
    liger_export.register()
    model = AutoModelForCausalLM.from_pretrained(liger_checkpoint, dtype=torch.float32).eval()
    model.save_pretrained(tmp_path / "copy")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "copy").eval()
    assert type(again) is MODEL_CLASSES["liger_gla"]
    assert again.config.window_size == 8
    tokens = random_tokens(20)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, again(tokens).logits)


def test_generate_equals_choosing_from_full_sequence_logits() -> None:
    model, tokens = random_model(Shape()), random_tokens(6)
    model.generation_config.eos_token_id = None
    generated = model.generate(tokens, max_new_tokens=20, do_sample=False)
    with torch.no_grad():
        for _ in range(20):
            tokens = torch.cat((tokens, model(tokens).logits[:, -1:].argmax(-1)), 1)
    assert torch.equal(generated, tokens)


@mixers
def test_generate_continues_from_a_cache_as_from_the_whole_text(model_type: str) -> None:
    model, tokens = (
        random_model(Shape(), model_type=model_type, softmax_layers=[1], softmax_window=9),
        random_tokens(12),
    )
    model.generation_config.eos_token_id = None
    whole = model.generate(tokens, max_new_tokens=8, do_sample=False)
    with torch.no_grad():
        cache = model(tokens[:, :-1]).past_key_values
    assert torch.equal(model.generate(tokens, past_key_values=cache, max_new_tokens=8, do_sample=False), whole)


@mixers
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side: str, model_type: str) -> None:
    model, tokens = random_model(Shape(), model_type=model_type), random_tokens(30)
    mask = torch.ones_like(tokens)
    padded = slice(0, 11) if side == "left" else slice(19, 30)
    kept = slice(11, 30) if side == "left" else slice(0, 19)
    mask[1, padded] = 0
    with torch.no_grad():
        both = model(tokens, attention_mask=mask)
        alone = model(tokens[1:, kept])
    assert relative_l2(both.logits[1, kept], alone.logits[0]) < 1e-6
    for row, expected in zip(both.past_key_values.layers[-1], alone.past_key_values.layers[-1], strict=True):
        assert relative_l2(row[1], expected[0]) < 1e-6


def test_left_padded_batch_generates_as_each_prompt_alone() -> None:
    model, tokens = random_model(Shape()), random_tokens(12)
    model.generation_config.eos_token_id = None
    mask = torch.ones_like(tokens)
    mask[1, :5] = 0
    both = model.generate(tokens, attention_mask=mask, max_new_tokens=12, do_sample=False)
    alone = model.generate(tokens[1:, 5:], max_new_tokens=12, do_sample=False)
    assert torch.equal(both[1, 12:], alone[0, 7:])


@mixers
def test_gradient_checkpointing_gives_the_same_gradients(model_type: str) -> None:
    model, tokens = random_model(Shape(), model_type=model_type).train(), random_tokens(40)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(list(model.parameters()))
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_bfloat16_stays_close_to_float32() -> None:
    tokens = random_tokens(40)
    with torch.no_grad():
        expected = random_model(Shape())(tokens).logits
        output = random_model(Shape(), torch.bfloat16)(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = random_model(Shape())(tokens)
    assert output.logits.dtype == torch.bfloat16
    assert relative_l2(output.logits, expected) < 5e-2
    assert relative_l2(mixed.logits, expected) < 5e-2
    assert [tensor.dtype for tensor in output.past_key_values.layers[0]] == [
        torch.float32,
        torch.bfloat16,
        torch.bfloat16,
    ]


def test_positions_beyond_the_trained_context_are_allowed() -> None:
    model, tokens = random_model(Shape()), random_tokens(300, batch=1)
    assert tokens.shape[1] > model.config.max_position_embeddings
    with torch.no_grad():
        assert model(tokens).logits.isfinite().all()


def test_conflicting_arguments_are_rejected() -> None:
    model, tokens = random_model(Shape()), random_tokens(4)
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="attention_mask or position_ids"):
        model(tokens, attention_mask=torch.ones_like(tokens), position_ids=torch.arange(4).expand(2, -1))


@pytest.mark.parametrize("use_cache", [None, True])
def test_only_a_state_that_is_returned_has_a_gradient_in_training(use_cache: bool | None) -> None:
    """Compiled layers would compute the others' gradients too, for which there is no kernel."""
    model, states = random_model(Shape()).train(), []
    model.model.layers[0].register_forward_hook(lambda layer, arguments, output: states.extend(output[1]))
    output = model(random_tokens(20), use_cache=use_cache)
    assert [state.requires_grad for state in states] == [use_cache is True] * 3
    assert (output.past_key_values is not None) == (use_cache is True)
