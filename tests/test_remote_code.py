"""Code in a checkpoint, which transformers runs if it is told to, or if its question is answered with yes."""

import ast
import builtins
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from liger_export.convert import convert
from liger_export.errors import CheckpointError
from liger_export.evaluate import evaluate
from liger_export.finetune import FinetuneSettings, finetune
from liger_export.linearize import linearize
from liger_export.validate.reference import TorchReference
from tests.tiny import edit_json, write_base

ROOT = Path(__file__).parents[1]
SETTINGS = FinetuneSettings(sequence_length=32, max_steps=1)
NO_CODE = {"PeftModel", "super()"}  # receivers of from_pretrained that run no code of a checkpoint, or only pass it on

CODE = """
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

(Path({directory!r}) / "ran").touch()

class Config(LlamaConfig): pass

class Model(LlamaForCausalLM): pass

class Tokenizer(PreTrainedTokenizerFast): pass
"""


def with_code(checkpoint: Path, directory: Path) -> Path:
    """Copy a checkpoint and add code for its config, its model and its tokenizer. The code writes a file ``ran``."""
    shutil.copytree(checkpoint, directory)
    (directory / "own.py").write_text(CODE.format(directory=str(directory)))
    edit_json(directory / "config.json", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    auto_map = {"AutoTokenizer": [None, "own.Tokenizer"]}
    edit_json(directory / "tokenizer_config.json", tokenizer_class="Tokenizer", auto_map=auto_map)
    return directory


def without_map(directory: Path) -> None:
    """Follow the advice of the error."""
    file = directory / "tokenizer_config.json"
    values = json.loads(file.read_text())
    del values["auto_map"]
    file.write_text(json.dumps(values))


@pytest.fixture(autouse=True)
def yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer every question with yes."""
    monkeypatch.setattr(builtins, "input", lambda _: "y")


@pytest.fixture
def checkpoint(liger_checkpoint: Path, tmp_path: Path) -> Path:
    return with_code(liger_checkpoint, tmp_path / "coded")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return with_code(write_base(tmp_path / "plain"), tmp_path / "coded-base")


def scored(path: Path, text: Path) -> float:
    return evaluate(path, text, sequence_length=32, max_tokens=64).quality.loss


def check_refused_until_removed(action: Callable[[], object], directory: Path) -> None:
    with pytest.raises(CheckpointError, match=r"never run\. Remove auto_map from tokenizer_config\.json") as caught:
        action()
    assert "trust_remote_code" not in str(caught.value)
    without_map(directory)
    action()
    assert not (directory / "ran").exists()


def test_evaluate_refuses_a_tokenizer_in_code(
    checkpoint: Path, base: Path, liger_checkpoint: Path, tmp_path: Path, code_text: Path
) -> None:
    for coded, plain in ((checkpoint, liger_checkpoint), (base, tmp_path / "plain")):
        check_refused_until_removed(lambda coded=coded: scored(coded, code_text), coded)  # type: ignore[misc]
        assert scored(coded, code_text) == scored(plain, code_text)


def test_finetune_refuses_a_tokenizer_in_code(checkpoint: Path, tmp_path: Path, code_text: Path) -> None:
    check_refused_until_removed(lambda: finetune(checkpoint, code_text, tmp_path / "adapter", SETTINGS), checkpoint)


def test_a_tokenizer_that_exists_only_as_code_is_refused(checkpoint: Path, code_text: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="Save the model's fast tokenizer there"):
        scored(checkpoint, code_text)
    assert not (checkpoint / "ran").exists()


def test_other_commands_read_the_files_and_run_no_code(checkpoint: Path, base: Path, tmp_path: Path) -> None:
    linearize(str(base), tmp_path / "liger")
    convert(checkpoint, tmp_path / "package")
    TorchReference(checkpoint, ())
    assert not list(tmp_path.rglob("ran"))


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Every Python file that users run or copy, and every Python block of the documentation."""
    for folder in ("liger_export", "kernels", "plugins", "benchmarks", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())
    for page in (
        ROOT / "README.md",
        *sorted(ROOT.glob("docs/**/*.md")),
        *sorted(ROOT.glob("examples/**/*.md")),
        *ROOT.glob("benchmarks/**/*.md"),
    ):
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            yield str(page.relative_to(ROOT)), ast.parse(block)


def trusting(tree: ast.Module) -> list[int]:
    """Lines that load something from a checkpoint without ``trust_remote_code=False``."""
    lines = []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr != "from_pretrained" or ast.unparse(node.func.value) in NO_CODE:
            continue
        passed = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if passed.get("trust_remote_code") != "False":
            lines.append(node.lineno)
    return lines


def test_calls_that_trust_a_checkpoint_are_found() -> None:
    tree = ast.parse("A.from_pretrained(p)\nA.from_pretrained(p, trust_remote_code=x)\nPeftModel.from_pretrained(p)\n")
    assert trusting(tree) == [1, 2]


def test_no_call_trusts_a_checkpoint() -> None:
    found = [(name, tree) for name, tree in sources() if "from_pretrained" in ast.unparse(tree)]
    known = {"docs/guides/app.md", "docs/reference/adapters.md", "liger_export/checkpoint/causal_lm.py"}
    assert known <= {name for name, _ in found}
    assert {name: lines for name, tree in found if (lines := trusting(tree))} == {}
