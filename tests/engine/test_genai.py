"""Folders for ONNX Runtime GenAI, opened by GenAI."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from liger_export.convert import convert
from liger_export.engine.genai import write_genai
from liger_export.errors import OutputError, UnsupportedModelError
from liger_export.linearize import LinearizeSettings, linearize
from liger_export.precision import Precision
from liger_export.runtime import load
from tests.runtime.chats import CONVERSATIONS, write_chat_package
from tests.tiny import edit_json, write_liger

EXAMPLE = Path(__file__).parents[2] / "examples" / "pycode-7m"


@pytest.fixture
def og() -> Any:
    return pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")


def answer(og: Any, folder: Path, prompt: list[int], tokens: int) -> list[int]:
    """GenAI's greedy continuation."""
    model = og.Model(str(folder))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + tokens)
    generator = og.Generator(model, parameters)
    generator.append_tokens(prompt)
    found = []
    while not generator.is_done():
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    return found


def greedy(package: Path, prompt: list[int], tokens: int) -> list[int]:
    """The runtime's greedy continuation with the same graph."""
    session = load(package, lowering="stock")
    ends = session.manifest.model_config.eos_token_ids
    found = [int(np.argmax(session.prefill(prompt)))]
    while len(found) < tokens and found[-1] not in ends:
        found.append(int(np.argmax(session.step(found[-1]))))
    return found


@pytest.mark.slow
def test_512_tokens_of_the_shipped_model_equal_the_runtimes(og: Any, tmp_path: Path) -> None:
    linearize(EXAMPLE / "base", tmp_path / "liger")
    convert(
        tmp_path / "liger", tmp_path / "package", adapters=(EXAMPLE / "adapter",), precision=Precision(weights="int4")
    )
    write_genai(tmp_path / "package", tmp_path / "genai")
    prompt = load(tmp_path / "package").encode("def read_lines(path")
    tokenizer = og.Tokenizer(og.Model(str(tmp_path / "genai")))
    assert [0, *map(int, tokenizer.encode("def read_lines(path"))] == prompt, "GenAI adds no token before a text"
    expected = greedy(tmp_path / "package", prompt, 512)
    assert len(expected) == 512
    assert answer(og, tmp_path / "genai", prompt, 512) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("mixer", "weights"), [("gla", "fp16"), ("hgrn2", "fp32")])
def test_tokens_equal_the_runtimes_beyond_the_window(og: Any, mixer: str, weights: str, tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger", settings=LinearizeSettings(mixer=mixer, window_size=8))
    convert(checkpoint, tmp_path / "package", precision=Precision(weights=weights))
    write_genai(tmp_path / "package", tmp_path / "genai")
    prompt = [int(token) for token in np.random.default_rng(0).integers(1, 260, 21)]
    assert answer(og, tmp_path / "genai", prompt, 40) == greedy(tmp_path / "package", prompt, 40)


def test_conversations_are_rendered_as_the_runtime_does(og: Any, tmp_path: Path) -> None:
    package = write_chat_package(tmp_path, "chatml")
    write_genai(package, tmp_path / "genai")
    tokenizer = og.Tokenizer(og.Model(str(tmp_path / "genai")))
    session = load(package)
    for messages in (CONVERSATIONS["one message"], CONVERSATIONS["system"]):
        text = tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=True)
        assert list(map(int, tokenizer.encode(text))) == session.encode_chat(messages)


@pytest.mark.slow
def test_the_config_has_the_packages_sampling_and_ends(tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger")
    values = {"eos_token_id": [7, 9], "do_sample": True, "temperature": 0.5, "top_k": 5}
    (checkpoint / "generation_config.json").write_text("{}")
    edit_json(checkpoint / "generation_config.json", **values)
    convert(checkpoint, tmp_path / "package")
    write_genai(tmp_path / "package", tmp_path / "genai")
    config = json.loads((tmp_path / "genai" / "genai_config.json").read_text())
    assert config["model"]["eos_token_id"] == [7, 9]
    assert (config["search"]["do_sample"], config["search"]["temperature"], config["search"]["top_k"]) == (True, 0.5, 5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (LinearizeSettings(mixer="gsa"), "the mixer gsa"),
        (LinearizeSettings(mixer="gla", keep_softmax_every=2), "layers that keep softmax attention"),
    ],
)
def test_states_that_genai_does_not_know_are_refused(settings: LinearizeSettings, what: str, tmp_path: Path) -> None:
    convert(write_liger(tmp_path / "liger", settings=settings), tmp_path / "package")
    with pytest.raises(UnsupportedModelError, match=what):
        write_genai(tmp_path / "package", tmp_path / "genai")
    assert not (tmp_path / "genai").exists()


def test_an_existing_folder_is_replaced_only_on_request(package: Path, tmp_path: Path) -> None:
    write_genai(package, tmp_path / "genai")
    with pytest.raises(OutputError, match="already exists"):
        write_genai(package, tmp_path / "genai")
    write_genai(package, tmp_path / "genai", overwrite=True)
