"""Chat templates: the same tokens as transformers' ``apply_chat_template``."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from liger_export.errors import EnvironmentMismatchError, InputError, PackageError
from liger_export.runtime import read_tokenizer
from liger_export.runtime.chat_template import ChatTemplate
from liger_export.runtime.prompt import PromptEncoder
from tests.runtime.chats import CONVERSATIONS, SPECIAL, TOOL_CONVERSATIONS, TOOLS, WITH_TOOLS, say, write_tokenizer
from tests.tiny import edit_json

Made = Callable[[str], tuple[Path, PreTrainedTokenizerFast]]
HELLO = [say("user", "Hello")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A function that returns a directory with a model's tokenizer and template, and transformers' tokenizer of it."""
    directories = {name: tmp_path_factory.mktemp("tokenizer") for name in SPECIAL}
    tokenizers = {name: write_tokenizer(directory, name) for name, directory in directories.items()}
    return lambda name: (directories[name], tokenizers[name])


def token_ids(directory: Path, messages: list[Any], tools: list[Any] | None = None) -> list[int]:
    text = ChatTemplate(directory).render(messages, tools=tools)
    encoder = PromptEncoder(read_tokenizer(directory))
    return encoder.encode(text, add_special_tokens=False, parse_special_tokens=True)


def expected_ids(tokenizer: PreTrainedTokenizerFast, messages: list[Any], tools: list[Any] | None = None) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_dict=False)
    return ids


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", SPECIAL)
def test_a_conversation_has_the_tokens_of_transformers(made: Made, name: str, conversation: str) -> None:
    directory, tokenizer = made(name)
    messages = CONVERSATIONS[conversation]
    ids = token_ids(directory, messages)
    assert ids == expected_ids(tokenizer, messages)
    assert any(token_id > 256 for token_id in ids)  # special tokens are parsed


@pytest.mark.parametrize("conversation", TOOL_CONVERSATIONS)
@pytest.mark.parametrize("name", WITH_TOOLS)
def test_tools_have_the_tokens_of_transformers(made: Made, name: str, conversation: str) -> None:
    directory, tokenizer = made(name)
    messages = TOOL_CONVERSATIONS[conversation]
    ids = token_ids(directory, messages, TOOLS)
    assert ids == expected_ids(tokenizer, messages, TOOLS)
    assert "東京" in tokenizer.decode(ids)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(SPECIAL)),
    contents=st.lists(
        st.one_of(st.text(st.characters(codec="utf-8"), max_size=12), st.sampled_from(["<s>", "<|im_end|> ", "{{x}}"])),
        min_size=1,
        max_size=5,
    ),
)
def test_any_contents_have_the_tokens_of_transformers(made: Made, name: str, contents: list[str]) -> None:
    directory, tokenizer = made(name)
    messages = [say("assistant" if index % 2 else "user", content) for index, content in enumerate(contents)]
    assert token_ids(directory, messages) == expected_ids(tokenizer, messages)


TRICKS = {
    "loop controls": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{% set x = 1 %}{{ m }}{% endgeneration %}{{ x }}{% endfor %}",
    "json": "{{ messages | tojson }}{{ messages | tojson(indent=2, sort_keys=true, ensure_ascii=true) }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "dict": "{{ dict(a=1) }}{{ dict.fromkeys(['a'], 2) }}",
    "blocks": "{% if true %}\n  a\n  {% endif %}\n{{ tools }}{{ documents }}{{ add_generation_prompt }}",
    "tokens": "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ image_token }}",
    "reasoning": "{% for m in messages %}{{ m }}{% endfor %}",
    "date": "{{ strftime_now('%Y-%m') }}",
}


@pytest.mark.parametrize("template", TRICKS.values(), ids=TRICKS)
def test_a_template_sees_what_it_sees_in_transformers(made: Made, template: str) -> None:
    directory, tokenizer = made("chatml")
    messages = [say("user", "<a&b>", name=None, n=1.5), say("assistant", "é", thinking="x", flags=[True, None, 2])]
    expected = tokenizer.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=True, tokenize=False
    )
    source = directory.with_name("trick")
    source.mkdir(exist_ok=True)
    (source / "tokenizer_config.json").write_text((directory / "tokenizer_config.json").read_text())
    (source / "chat_template.jinja").write_text(template)
    assert ChatTemplate(source).render(messages) == expected


def template(directory: Path, source: str, **config: Any) -> ChatTemplate:
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": source, **config}))
    return ChatTemplate(directory)


@pytest.mark.parametrize(
    "config",
    [
        {"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]},
        {"files": {"chat_template.jinja": "d", "additional_chat_templates/tool_use.jinja": "t"}},
    ],
    ids=["listed", "files"],
)
def test_tools_select_the_template_for_them(made: Made, tmp_path: Path, config: dict[str, Any]) -> None:
    write_tokenizer(tmp_path, "chatml")
    (tmp_path / "chat_template.jinja").unlink()
    edit_json(tmp_path / "tokenizer_config.json", chat_template=config.get("chat_template", "replaced by the files"))
    for name, text in config.get("files", {}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for tools in (None, [], TOOLS):
        expected = tokenizer.apply_chat_template(HELLO, tools=tools, add_generation_prompt=True, tokenize=False)
        assert ChatTemplate(tmp_path).render(HELLO, tools=tools) == expected == ("d" if tools is None else "t")


def test_special_tokens_come_from_the_file_that_transformers_reads(tmp_path: Path) -> None:
    token = {"__type": "AddedToken", "content": "<new>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<old>"}}))
    named = "{{ bos_token }}{{ eos_token }}"
    assert template(tmp_path, named, bos_token=token, eos_token="<e>").render(HELLO) == "<new><old>"
    newer = template(tmp_path, named, bos_token=token, eos_token="<e>", added_tokens_decoder={})
    assert newer.render(HELLO) == "<new><e>"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses the messages: roles must alternate"),
        ("{{ messages[0].content + 1 }}", "fails on these messages .TypeError"),
        ("{{ messages[7].content.x }}", "refuses the messages"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ namespace(__init__=1) }}", "no attribute"),
        ("{{ messages.append(1) }}", "append"),
    ],
)
def test_what_a_template_refuses_is_an_error_with_a_fix(tmp_path: Path, source: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        template(tmp_path, source).render(HELLO)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "no messages"),
        ("Hello", "Pass a list"),
        (["Hello"], "A message is 'Hello'"),
        ([{"content": "Hello"}], "no role"),
        ([say("user", "a", image=Path("x"))], "PosixPath"),
    ],
)
def test_malformed_messages_are_refused(tmp_path: Path, messages: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        template(tmp_path, "{{ messages }}").render(messages)


def test_malformed_tools_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="A tool is <built-in function len>"):
        template(tmp_path, "{{ tools }}").render(HELLO, tools=[len])  # type: ignore[list-item]


def test_a_package_without_a_valid_template_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no chat template.*chat_template\.jinja"):
        ChatTemplate(tmp_path).render(HELLO)
    with pytest.raises(PackageError, match="not valid"):
        template(tmp_path, "{% if %}").render(HELLO)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(PackageError, match=r"tokenizer_config\.json cannot be read"):
        ChatTemplate(tmp_path).render(HELLO)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": 5}')
    with pytest.raises(PackageError, match="is not text"):
        ChatTemplate(tmp_path).render(HELLO)


def test_jinja_must_be_installed_and_not_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = template(tmp_path, "x")
    monkeypatch.setattr("liger_export.runtime.chat_template.version", lambda _: "3.1.5")
    with pytest.raises(EnvironmentMismatchError, match=r"jinja2 3\.1\.6 or newer; 3\.1\.5 .*\[chat\]"):
        chat.render(HELLO)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "liger_export.runtime.template_sandbox")
    with pytest.raises(EnvironmentMismatchError, match=r"chat template needs jinja2.*\[chat\]"):
        chat.render(HELLO)


def test_a_template_needs_no_transformers(tmp_path: Path) -> None:
    template(tmp_path, "{{ messages[0].content }}")
    script = (
        "import sys\nfrom pathlib import Path\nfrom liger_export.runtime.chat_template import ChatTemplate\n"
        "print(ChatTemplate(Path(sys.argv[1])).render([{'role': 'user', 'content': 'Hello'}]))\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "Hello\n"
