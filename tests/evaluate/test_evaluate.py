import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from liger_export.cli import app
from liger_export.convert import convert
from liger_export.errors import (
    AdapterError,
    CheckpointError,
    DataError,
    InputError,
    LigerExportError,
    PackageError,
    UnsupportedModelError,
)
from liger_export.evaluate import evaluate, models, open_model, text_blocks
from tests.tiny import BACKBONES, edit_json, load_model, record_file, write_base

LENGTH = 100
Metrics = tuple[float, float]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("evaluate") / "base")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluate") / "text.txt"
    path.write_text("".join(f"def f{number}(a):\n    return a + {number}\n" for number in range(20)))
    return path


def in_numpy(logits: npt.NDArray[np.float64], blocks: npt.NDArray[np.int64]) -> Metrics:
    """Loss and accuracy of blocks [N, T] from logits [N, T, vocab_size], by definition."""
    losses, top1_correct = [], []
    for rows, tokens in zip(logits, blocks, strict=True):
        for scores, expected in zip(rows[:-1], tokens[1:], strict=True):
            losses.append(np.log(np.exp(scores - scores[expected]).sum()))
            top1_correct.append(scores.argmax() == expected)
    return float(np.mean(losses)), float(np.mean(top1_correct))


def full_logits(model: torch.nn.Module, blocks: torch.Tensor) -> npt.NDArray[np.float64]:
    with torch.no_grad():
        logits: npt.NDArray[np.float64] = model(input_ids=blocks).logits.double().numpy()
    return logits


def test_every_kind_of_model_gets_the_metrics_of_its_full_logits(
    base: Path, liger_checkpoint: Path, adapter: Path, package: Path, text: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(models, "PIECE", 33)  # so that blocks are read in pieces
    blocks = torch.tensor(open_model(package).encoder.tokenizer.encode(text.read_text()).ids)
    blocks = blocks[: len(blocks) // LENGTH * LENGTH].view(-1, LENGTH)
    adapted = PeftModel.from_pretrained(load_model(liger_checkpoint), str(adapter))
    expected = {
        "base": in_numpy(full_logits(AutoModelForCausalLM.from_pretrained(base), blocks), blocks.numpy()),
        "liger": in_numpy(full_logits(load_model(liger_checkpoint), blocks), blocks.numpy()),
        "liger + adapter": in_numpy(full_logits(adapted, blocks), blocks.numpy()),
    }
    expected["package"] = expected["liger"]
    assert len({loss for loss, _ in expected.values()}) == 3
    for path, adapters in ((base, ()), (liger_checkpoint, ()), (liger_checkpoint, (adapter,)), (package, ())):
        measured = evaluate(path, text, adapters=adapters, sequence_length=LENGTH, batch_size=3)
        assert measured.blocks.equal(blocks)
        loss, accuracy = expected[measured.model.name]
        assert measured.quality.loss == pytest.approx(loss, rel=1e-5), measured.model.name
        assert measured.quality.accuracy == pytest.approx(accuracy), measured.model.name
        assert measured.quality.tokens == blocks[:, 1:].numel()
    convert(liger_checkpoint, tmp_path / "adapted", adapters=(adapter,))
    merged = evaluate(tmp_path / "adapted", text, sequence_length=LENGTH)
    assert merged.quality.loss == pytest.approx(expected["liger + adapter"][0], rel=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_base_read_in_pieces_scores_as_in_one_call(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = {
        "mistral": {"sliding_window": 20},
        "qwen3": {"sliding_window": 20, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 2},
    }
    model = open_model(write_base(tmp_path / "base", backbone=backbone, **windows.get(backbone, {})))
    blocks = torch.randint(1, 260, (3, 120), generator=torch.Generator().manual_seed(0))
    whole = model.score(blocks, batch_size=2)
    monkeypatch.setattr(models, "PIECE", 33)
    pieces = model.score(blocks, batch_size=2)
    torch.testing.assert_close(pieces.losses, whole.losses, rtol=1e-5, atol=1e-4)
    monkeypatch.setattr(models, "PIECE_LOGITS", 7 * 2 * 260)  # a large vocabulary shortens the pieces
    torch.testing.assert_close(model.score(blocks, batch_size=2).losses, whole.losses, rtol=1e-5, atol=1e-4)


def test_max_tokens_and_dtype(liger_checkpoint: Path, text: Path) -> None:
    whole = evaluate(liger_checkpoint, text, sequence_length=64)
    part = evaluate(liger_checkpoint, text, sequence_length=64, max_tokens=200, dtype="bfloat16", device="cpu")
    assert part.blocks.equal(whole.blocks[:3])
    assert part.quality.loss != whole.quality.loss


def test_inputs_that_cannot_be_evaluated_are_refused(
    base: Path, liger_checkpoint: Path, adapter: Path, package: Path, text: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "short.txt").write_text("short")
    refusals: list[tuple[type[LigerExportError], str, Path, dict[str, object]]] = [
        (InputError, "neither a package", tmp_path / "empty", {}),
        (InputError, "neither a package", tmp_path / "nowhere", {}),
        (InputError, "--adapter", adapter, {}),
        (InputError, "takes no adapter", package, {"adapters": (adapter,)}),
        (AdapterError, "adapter_config.json is missing", liger_checkpoint, {"adapters": (tmp_path,)}),
        (
            AdapterError,
            "was not trained on the weights in",
            write_base(tmp_path / "b", seed=5),
            {"adapters": (adapter,)},
        ),
        (InputError, "no dtype 'int3'", base, {"dtype": "int3"}),
        (InputError, "no device 'nonsense'", base, {"device": "nonsense"}),
        (InputError, "batch_size is 0", base, {"batch_size": 0}),
        (InputError, "sequence_length is 1", base, {"sequence_length": 1}),
        (InputError, "max_tokens is 50", base, {"max_tokens": 50}),
    ]
    for error, words, path, options in refusals:
        with pytest.raises(error, match=words):
            evaluate(path, text, **{"sequence_length": LENGTH, **options})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="6 tokens"):
        evaluate(package, tmp_path / "short.txt")


def test_damaged_models_are_refused(base: Path, package_copy: Path, text: Path, tmp_path: Path) -> None:
    unknown = Path(shutil.copytree(base, tmp_path / "unknown"))
    edit_json(unknown / "config.json", model_type="vit")
    with pytest.raises(UnsupportedModelError, match="vit"):
        open_model(unknown)

    deeper = Path(shutil.copytree(base, tmp_path / "deeper"))
    edit_json(deeper / "config.json", num_hidden_layers=3, layer_types=None)
    with pytest.raises(CheckpointError, match=r"lacks model\.layers\.2"):
        evaluate(deeper, text, sequence_length=LENGTH)

    smaller = Path(shutil.copytree(base, tmp_path / "smaller"))
    edit_json(smaller / "config.json", vocab_size=90)
    with pytest.raises(InputError, match="the model knows 90"):
        text_blocks(open_model(smaller), text, LENGTH)

    (smaller / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="tokenizer of"):
        open_model(smaller)

    (package_copy / "tokenizer.json").write_text("{}")
    with pytest.raises(PackageError, match=r"tokenizer\.json"):
        open_model(package_copy)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)], env={"COLUMNS": "160"})
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_the_command_compares_models_and_writes_json(
    base: Path, liger_checkpoint: Path, adapter: Path, package: Path, text: Path, tmp_path: Path
) -> None:
    options = ("--text", text, "--sequence-length", LENGTH, "--json", tmp_path / "out.json", "--by-position")
    printed = run(base, package, liger_checkpoint, "--adapter", adapter, *options)
    assert "liger + adapter" in printed
    assert "64 to 98" in printed
    report = json.loads((tmp_path / "out.json").read_text())
    names = [(entry["model"], entry["kind"]) for entry in report["models"]]
    assert names == [("base", "base"), ("package", "package"), ("liger + adapter", "liger")]
    first = report["models"][0]
    assert first["share_of_first"] == 1.0
    for entry in report["models"]:
        assert entry["share_of_first"] == pytest.approx(entry["accuracy"] / first["accuracy"])
        assert [(part["first"], part["last"]) for part in entry["positions"]] == [(0, 63), (64, 98)]
        for figure in ("loss", "accuracy"):
            total = sum(part[figure] * part["tokens"] for part in entry["positions"])
            assert total == pytest.approx(entry[figure] * entry["tokens"])


def test_models_with_different_tokens_are_not_compared(base: Path, package_copy: Path, text: Path) -> None:
    values = json.loads((package_copy / "tokenizer.json").read_text())
    values["post_processor"] = None  # no BOS token
    (package_copy / "tokenizer.json").write_text(json.dumps(values))
    record_file(package_copy, "tokenizer.json")
    printed = run(base, package_copy, "--text", text, "--sequence-length", LENGTH)
    rows = [line.split() for line in printed.splitlines()]
    assert [row[-1] for row in rows if row[:1] in (["base"], ["package"])] == ["100.0%", "-"]


def test_unwritable_json_is_refused_before_any_work(base: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(LigerExportError, match=r"is not a directory\. Create it"):
        run(base, "--text", text, "--json", tmp_path / "nowhere" / "out.json")
    with pytest.raises(LigerExportError, match="is a directory"):
        run(base, "--text", text, "--json", tmp_path)
