import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from liger_export.checkpoint import Adapter, learned_tensors, open_liger
from liger_export.config import inverse_frequencies
from liger_export.data import token_blocks
from liger_export.errors import InputError, OutputError
from liger_export.evaluate import open_model
from liger_export.finetune import AttentionTransfer, FinetuneSettings, finetune, training, transfer
from liger_export.linearize import LinearizeSettings
from liger_export.ops.naive import NAIVE_ATTENTIONS
from tests.paper import write_paper_checkpoint
from tests.tiny import VOCABULARY, Shape, load_model, relative_l2, write_liger

SETTINGS = FinetuneSettings(sequence_length=48, batch_size=4, learning_rate=3e-2, max_steps=15, save_steps=5)
LOLCATS = LinearizeSettings(mixer="lolcats")


@pytest.fixture(scope="module")
def lolcats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_liger(tmp_path_factory.mktemp("transfer") / "liger", settings=LOLCATS)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("def add(a, b):\n    return a + b\n\n" * 100)
    return path


def tokens(length: int = 48) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (2, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("backbone", "window"), [("llama", None), ("mistral", 12)])
def test_loss_is_the_distance_from_the_bases_softmax_attention(
    backbone: str, window: int | None, tmp_path: Path
) -> None:
    """Compare with the naive references, on one layer whose queries, keys and values are computed here."""
    overrides = {"sliding_window": window} if window else {}
    checkpoint = write_liger(
        tmp_path / "liger", Shape(window=5), backbone=backbone, settings=LOLCATS, num_hidden_layers=1, **overrides
    )
    model = load_model(checkpoint, torch.float64)
    layer, batch = model.model.layers[0], tokens(20)
    normed = layer.input_layernorm(model.model.embed_tokens(batch))
    heads = [tensor.unflatten(-1, (-1, 8)) for tensor in layer.self_attn.project(normed)]
    frequencies = torch.from_numpy(inverse_frequencies(model.model.liger.rope, 8)).double()
    angles = (torch.arange(20)[:, None] * frequencies).expand(2, -1, -1)
    maps = {name: getattr(layer.self_attn, name) for name in ("query_map", "key_map", "window_factors")}
    student, *_ = NAIVE_ATTENTIONS["lolcats"](*heads, angles, 5, **maps)
    teacher, *_ = NAIVE_ATTENTIONS["softmax"](*heads, angles, window or 20)
    expected = (student - teacher).square().mean()

    loss = AttentionTransfer(model).train()(batch).loss
    assert relative_l2(loss, expected) < 1e-5  # the loss is float32


def test_later_layers_see_the_pretrained_models_activations(lolcats: Path) -> None:
    """The second layer's error does not depend on the first layer's feature maps."""
    errors = []
    for scale in (1.0, 100.0):
        model = load_model(lolcats)
        with torch.no_grad():
            model.model.layers[0].self_attn.query_map.mul_(scale)
        transferred = AttentionTransfer(model).train()
        errors.append([float(error.detach()) for error in transferred.errors(tokens())])
    assert errors[0][0] != errors[1][0]
    assert errors[0][1] == pytest.approx(errors[1][1], rel=1e-6)


def test_packed_documents_are_taught_by_themselves(lolcats: Path) -> None:
    """The errors of two documents in a row are the means of those that each has alone."""
    transferred, batch = AttentionTransfer(load_model(lolcats, torch.float64)).train(), tokens(40)
    positions = torch.cat((torch.arange(12), torch.arange(28))).repeat(2, 1)
    packed = torch.stack(transferred.errors(batch, positions))
    parts = [torch.stack(transferred.errors(part.contiguous())) for part in batch.split([12, 28], 1)]
    assert relative_l2(packed, (12 * parts[0] + 28 * parts[1]) / 40) < 1e-6


def test_in_evaluation_mode_it_equals_the_model_itself(lolcats: Path) -> None:
    expected = load_model(lolcats)(tokens()).logits
    assert torch.equal(AttentionTransfer(load_model(lolcats)).eval()(tokens()).logits, expected)


def test_only_learned_tensors_change_and_attention_comes_closer(lolcats: Path, text: Path, tmp_path: Path) -> None:
    result = transfer(lolcats, text, tmp_path / "transferred", SETTINGS, heldout=text)
    assert (result.steps, result.trained_parameters) == (15, 2 * (2 * 4 * 8 * 8 + 4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt", "transferred"]
    before, after = open_liger(lolcats), open_liger(tmp_path / "transferred")
    assert before.config == after.config
    names = learned_tensors(before.config)
    for name in before.weights.tensors:
        assert torch.equal(before.weights.read(name), after.weights.read(name)) == (name not in names), name
    blocks = token_blocks(open_model(lolcats).encoder, text, 48)
    with torch.no_grad():
        start, end = (AttentionTransfer(load_model(at.directory)).train()(blocks).loss for at in (before, after))
    assert end < 0.8 * start


@pytest.mark.slow
def test_lora_follows_on_the_transferred_checkpoint(lolcats: Path, text: Path, tmp_path: Path) -> None:
    transfer(lolcats, text, tmp_path / "transferred", dataclasses.replace(SETTINGS, max_steps=3))
    finetune(tmp_path / "transferred", text, tmp_path / "adapter", dataclasses.replace(SETTINGS, max_steps=3))
    Adapter.open(tmp_path / "adapter").check(open_liger(tmp_path / "transferred").weights)


def test_a_checkpoint_of_the_papers_implementation_is_written_in_this_projects_form(text: Path, tmp_path: Path) -> None:
    paper = write_paper_checkpoint(tmp_path / "paper", "lolcats")
    transfer(paper, text, tmp_path / "transferred", dataclasses.replace(SETTINGS, max_steps=2, sequence_length=80))
    opened = open_liger(tmp_path / "transferred")
    assert opened.config == open_liger(paper).config
    stored = set().union(*(load_file(file) for file in opened.weights.files))
    assert stored == set(opened.weights.tensors)


@pytest.mark.slow
def test_interrupted_transfer_resumes_with_the_same_settings_only(
    lolcats: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def interrupt(*arguments: object, **options: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*arguments, **options)

    measure = training.measure_quality
    monkeypatch.setattr(training, "measure_quality", interrupt)
    with pytest.raises(KeyboardInterrupt):
        transfer(lolcats, text, tmp_path / "out", SETTINGS)
    monkeypatch.undo()
    with pytest.raises(OutputError, match="--resume"):
        transfer(lolcats, text, tmp_path / "out", SETTINGS)
    with pytest.raises(InputError, match=r"began with learning_rate 0\.03"):
        transfer(lolcats, text, tmp_path / "out", dataclasses.replace(SETTINGS, learning_rate=1e-3), resume=True)
    assert transfer(lolcats, text, tmp_path / "out", SETTINGS, resume=True).steps == 15
    open_liger(tmp_path / "out")


def test_sequences_that_never_leave_the_window_are_refused(lolcats: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sequence_length is 8 and the window holds 8 keys"):
        transfer(lolcats, text, tmp_path / "out", dataclasses.replace(SETTINGS, sequence_length=8))


def test_other_mixers_have_nothing_to_transfer_to(liger_checkpoint: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mixer gla, which has no feature maps.*--mixer lolcats"):
        transfer(liger_checkpoint, text, tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()
