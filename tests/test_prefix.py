"""Packages that ship the state after a system prompt."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from liger_export.convert import convert
from liger_export.errors import DataError, InputError, PackageError, UnsupportedModelError
from liger_export.package import MANIFEST_FILE, PREFIX_FILE, read_manifest
from liger_export.package.manifest import describe_files
from liger_export.precision import Precision
from liger_export.runtime import Sampling, Session, load
from liger_export.runtime.shipped_prefix import write_prefix
from liger_export.validate.laws import Subjects, check_prefix
from liger_export.validate.run import _tolerances
from tests.runtime.chats import write_tokenizer
from tests.tiny import write_liger

SYSTEM = "Answer in one line, in plain words."
MESSAGES = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Hello?"}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_liger(tmp_path_factory.mktemp("prefix") / "liger", vocab_size=288)
    write_tokenizer(directory, "chatml")
    (directory.parent / "system.txt").write_text(SYSTEM + "\n")
    return directory


@pytest.fixture(scope="module")
def package(checkpoint: Path) -> Path:
    convert(checkpoint, checkpoint.parent / "package", prefix=checkpoint.parent / "system.txt")
    return checkpoint.parent / "package"


def checks_of(session: Session) -> list[bool]:
    tokens = np.random.default_rng(0).integers(1, 250, 100)
    subjects = Subjects(session, None, _tolerances(session.manifest))  # type: ignore[arg-type]
    return [check.passed for check in check_prefix(subjects, tokens)]


def test_the_shipped_state_is_the_one_after_what_all_conversations_with_the_prompt_start_with(package: Path) -> None:
    session = load(package, lowering="stock")
    assert session.prefix is not None
    text = session.tokenizer.decode(session.prefix.tokens, skip_special_tokens=False)
    assert text == f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
    session.prefill(session.prefix.tokens)
    expected, shipped = session.state(), session.prefix.state
    assert (shipped.position, shipped.digest) == (expected.position, expected.digest)
    assert all(np.array_equal(shipped.tensors[name], tensor) for name, tensor in expected.tensors.items())
    assert np.array_equal(shipped.logits, expected.logits)  # type: ignore[arg-type]


def test_a_conversation_starts_from_the_shipped_state_and_has_the_same_answer(package: Path) -> None:
    session = load(package)
    answer = "".join(session.chat(MESSAGES, max_new_tokens=12, sampling=Sampling()))
    assert session.prefix is not None
    assert session.turn is not None
    assert session.turn.prompt_tokens - session.turn.read_tokens == len(session.prefix.tokens)
    session.reset()
    prompt = session.chat_template.render(MESSAGES)  # type: ignore[union-attr]
    alone = session.generate(
        prompt, add_special_tokens=False, parse_special_tokens=True, max_new_tokens=12, sampling=Sampling()
    )
    assert "".join(alone) == answer
    session.reset()
    list(session.chat(MESSAGES[1:], max_new_tokens=1, sampling=Sampling()))  # another start
    assert session.turn.prompt_tokens == session.turn.read_tokens


def test_the_manifest_names_the_text_and_lists_the_file_with_its_hash(package: Path) -> None:
    manifest = read_manifest(package)
    assert manifest.prefix is not None
    assert manifest.prefix["name"] == "system.txt"
    assert manifest.files[PREFIX_FILE] == describe_files(package)[PREFIX_FILE]
    assert checks_of(load(package)) == [True]


def test_validation_notices_the_state_of_another_text(package: Path, tmp_path: Path) -> None:
    session, copy = load(package), tmp_path / "package"
    copy.mkdir()
    for file in package.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert session.prefix is not None
    tokens = list(session.prefix.tokens)
    session.prefill([*tokens[:-2], tokens[-1], tokens[-2]])
    write_prefix(copy / PREFIX_FILE, tokens, session.state())
    with pytest.raises(PackageError, match="SHA-256 differs"):
        load(copy)
    files = {**read_manifest(copy).files, PREFIX_FILE: describe_files(copy)[PREFIX_FILE]}
    (copy / MANIFEST_FILE).write_text(replace(read_manifest(copy), files=files).to_json())
    assert checks_of(load(copy)) == [False]


@pytest.mark.parametrize("wrong", ["length", "model", "tensor"])
def test_a_state_that_does_not_fit_the_package_is_refused(package: Path, tmp_path: Path, wrong: str) -> None:
    session, copy = load(package), tmp_path / "package"
    copy.mkdir()
    for file in package.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert session.prefix is not None
    state, tokens = session.prefix.state, list(session.prefix.tokens)
    if wrong == "length":
        tokens = tokens[:-1]
    elif wrong == "model":
        state = replace(state, model="0" * 64)
    else:
        state = replace(state, tensors={name: tensor[..., :-1] for name, tensor in state.tensors.items()})
    write_prefix(copy / PREFIX_FILE, tokens, state)
    files = {**read_manifest(copy).files, PREFIX_FILE: describe_files(copy)[PREFIX_FILE]}
    (copy / MANIFEST_FILE).write_text(replace(read_manifest(copy), files=files).to_json())
    with pytest.raises(PackageError, match=r"prefix\.safetensors cannot be used"):
        load(copy)


def test_without_a_template_the_state_is_the_one_after_the_text(liger_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "start.txt").write_text("Once upon a time\n")
    convert(liger_checkpoint, tmp_path / "package", prefix=tmp_path / "start.txt")
    session = load(tmp_path / "package")
    whole = "".join(session.generate("Once upon a time, there", max_new_tokens=8, sampling=Sampling()))
    assert session.prefix is not None
    session.load_state(session.prefix.state)
    assert "".join(session.generate(", there", max_new_tokens=8, sampling=Sampling())) == whole


def test_what_cannot_be_shipped_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    output, text = tmp_path / "package", tmp_path / "text"
    with pytest.raises(DataError, match="cannot be read"):
        convert(checkpoint, output, prefix=text)
    text.write_text("\n")
    with pytest.raises(DataError, match="has no text"):
        convert(checkpoint, output, prefix=text)
    text.write_text(SYSTEM)
    with pytest.raises(UnsupportedModelError, match="bfloat16"):
        convert(checkpoint, output, prefix=text, precision=Precision(weights="bf16"))
    template = checkpoint / "chat_template.jinja"
    original = template.read_text()
    template.write_text("{{ messages[-1]['content'] }}")
    try:
        with pytest.raises(InputError, match="does not put the system prompt"):
            convert(checkpoint, output, prefix=text)
    finally:
        template.write_text(original)
    assert not output.exists()
