"""The command ``chat``, in a terminal and with messages from a pipe."""

import io
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from liger_export.commands.chat import converse
from liger_export.commands.conversation import AnswerSettings, Conversation
from liger_export.errors import InputError, OutputError
from liger_export.runtime import Sampling, SavedState, load
from liger_export.runtime.executor import Prediction
from liger_export.runtime.sampling import Sampler
from tests.commands.test_cli import Result, assert_refused, liger_export
from tests.runtime.chats import say, write_chat_package
from tests.test_imports import loaded_after


@pytest.fixture(scope="module")
def chat_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_package(tmp_path_factory.mktemp("chat"), "chatml")


@pytest.fixture
def conversation(chat_package: Path) -> Conversation:
    return Conversation(load(chat_package), AnswerSettings(max_new_tokens=6, sampling=Sampling()))


def chat_from_a_pipe(package: Path, text: str, *options: object) -> Result:
    with patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8")):
        return liger_export("chat", package, "-n", 6, *options)


def expected_answers(package: Path, *messages: str, system: str | None = None, **options: Any) -> list[str]:
    """Answers of a session that reads the whole history each time."""
    chat, answers = [] if system is None else [say("system", system)], []
    for message in messages:
        chat.append(say("user", message))
        answers.append("".join(load(package).chat(chat, max_new_tokens=6, **options)))
        chat.append(say("assistant", answers[-1]))
    return answers


def test_a_pipe_gets_the_answers_and_nothing_else(chat_package: Path) -> None:
    result = chat_from_a_pipe(chat_package, "Hello\n\nMore\n")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "".join(f"{each}\n" for each in expected_answers(chat_package, "Hello", "More"))


def test_options_reach_the_model(chat_package: Path) -> None:
    options = ("--system", "Be brief.", "--temperature", 0.9, "--top-k", 40, "--seed", 3, "--repetition-penalty", 1.2)
    result = chat_from_a_pipe(chat_package, "Hello", *options)
    sampling = Sampling(temperature=0.9, top_k=40, seed=3, repetition_penalty=1.2)
    expected = expected_answers(chat_package, "Hello", system="Be brief.", sampling=sampling)
    assert result.stdout == f"{expected[0]}\n" != chat_from_a_pipe(chat_package, "Hello").stdout
    stopped = chat_from_a_pipe(chat_package, "Hello", *options, "--stop", expected[0][2])
    assert stopped.stdout == f"{expected[0].split(expected[0][2])[0]}\n"


def test_a_backslash_continues_a_message(chat_package: Path) -> None:
    expected = expected_answers(chat_package, "a\nb\nc", "/d")
    assert chat_from_a_pipe(chat_package, "a\\\nb\\\nc\n /d\\\n").stdout == "".join(f"{each}\n" for each in expected)


def test_commands_in_a_pipe_print_to_standard_error(chat_package: Path) -> None:
    result = chat_from_a_pipe(chat_package, "/stats\nHello\n/stats\n/reset\nHello\n/help\n/exit\nMore\n")
    assert result.stdout == 2 * f"{expected_answers(chat_package, 'Hello')[0]}\n"
    described = " ".join(result.stderr.split())
    assert "conversation 0 messages, 0 tokens" in described
    assert "conversation 2 messages" in described
    assert "answer 6 tokens at" in described
    assert " read, 0 kept in the state" in described
    assert "/load FILE" in described


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/stat", "There is no command '/stat'"),
        ("/exit now", "no command '/exit now'"),
        ("/save", "/save needs a file"),
        ("/load /nowhere", "is not a saved state"),
        ("/save /nowhere/file", "/nowhere is not a directory"),
    ],
)
def test_a_wrong_command_in_a_pipe_ends_with_exit_code_2(chat_package: Path, line: str, words: str) -> None:
    assert_refused(chat_from_a_pipe(chat_package, f"{line}\nHello\n"), words)


def test_text_that_is_not_utf_8_is_refused(chat_package: Path) -> None:
    with patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xffb\n"), encoding="utf-8")):
        assert_refused(liger_export("chat", chat_package), "not valid Unicode")


def test_a_package_without_a_chat_template_is_refused_before_the_first_message(package: Path) -> None:
    assert_refused(chat_from_a_pipe(package, ""), "no chat template", "chat_template.jinja")


def test_a_saved_conversation_goes_on_in_another_process(chat_package: Path, tmp_path: Path) -> None:
    file = tmp_path / "saved.npz"
    first, second, third = expected_answers(chat_package, "One", "Two", "Three", system="S")
    saved = chat_from_a_pipe(chat_package, f"One\n/save {file}\nTwo\n/save {file}\n", "--system", "S")
    assert saved.stdout == f"{first}\n{second}\n"
    assert f"{file}: 5 messages" in saved.stderr
    loaded = chat_from_a_pipe(chat_package, f"/load {file}\nThree\n/stats\n")
    assert loaded.stdout == f"{third}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["saved.npz"]


def test_only_its_own_file_is_replaced(conversation: Conversation, tmp_path: Path) -> None:
    (tmp_path / "other.npz").write_text("mine")
    with pytest.raises(OutputError, match="already exists"):
        conversation.save(tmp_path / "other.npz")
    assert (tmp_path / "other.npz").read_text() == "mine"
    conversation.save(tmp_path / "own.npz")
    list(conversation.answer("Hello"))
    conversation.save(tmp_path / "own.npz")
    assert SavedState.read(tmp_path / "own.npz").position == conversation.session.position > 0
    conversation.reset()
    with pytest.raises(OutputError, match="already exists"):
        conversation.save(tmp_path / "own.npz")
    conversation.load(tmp_path / "own.npz")
    conversation.save(tmp_path / "own.npz")


def test_a_file_of_another_model_or_without_messages_is_refused(
    conversation: Conversation, chat_package: Path, tmp_path: Path
) -> None:
    list(conversation.answer("Hello"))
    state, before = conversation.session.state(), list(conversation.messages)
    other = write_chat_package(tmp_path / "other", "chatml", seed=1)
    Conversation(load(other), conversation.settings).save(tmp_path / "other.npz")
    with pytest.raises(InputError, match="another model"):
        conversation.load(tmp_path / "other.npz")
    for messages, words in [
        (None, "without a conversation"),
        ("[", "damaged messages"),
        ('[{"role": "user"}]', "damaged messages"),
        ('[{"role": "user", "content": 5}]', "not text"),
    ]:
        replace(state, messages=messages).save(tmp_path / "bad.npz")
        with pytest.raises(InputError, match=words):
            conversation.load(tmp_path / "bad.npz")
    assert conversation.messages == before
    assert conversation.session.position == state.position


def type_lines(conversation: Conversation, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Converse as in a terminal in which lines are typed, and Ctrl-D at the end."""
    typed = iter(lines)

    def read(_: str) -> str:
        line = next(typed, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", read)
    converse(conversation, is_terminal=True)


@contextmanager
def interrupted_after(ids: list[int], *, times: int) -> Iterator[None]:
    """Script the tokens of the next answer. The last one comes with Ctrl-C; after it the model chooses again."""
    choose, scripted = Sampler.choose_next, list(ids)

    def chosen(sampler: Sampler, prediction: Prediction, barred: Collection[int] = ()) -> int:
        if not scripted:
            return choose(sampler, prediction, barred)
        token = scripted.pop(0)
        for _ in range(0 if scripted else times):
            signal.raise_signal(signal.SIGINT)
        return token

    with patch.object(Sampler, "choose_next", chosen):
        yield


@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupt_stops_an_answer_and_keeps_what_was_said(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], times: int
) -> None:
    """A second interrupt may come inside a call, so the token of that call is lost."""
    tokenizer = conversation.session.tokenizer
    said = "abc" if times == 1 else "ab"
    with interrupted_after(tokenizer.encode("abc", add_special_tokens=False).ids, times=times):
        type_lines(conversation, monkeypatch, "Hello", "More")
    assert conversation.messages[:2] == [say("user", "Hello"), say("assistant", said)]
    last = load_answer(conversation)
    assert conversation.messages[2:] == [say("user", "More"), say("assistant", last)]
    assert capsys.readouterr().out.startswith(said)


def load_answer(conversation: Conversation) -> str:
    """The last answer, from a session that reads the whole history."""
    session = conversation.session
    other = session.fork()
    other.reset()
    other.turn = None
    return "".join(other.chat(conversation.messages[:-1], max_new_tokens=6, sampling=Sampling()))


def test_an_interrupt_before_the_first_word_leaves_no_turn(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(conversation.answer("Hello"))
    before = list(conversation.messages)
    with interrupted_after([65], times=2):
        type_lines(conversation, monkeypatch, "More")
    assert conversation.messages == before
    type_lines(conversation, monkeypatch, "More")
    assert conversation.messages[-1] == say("assistant", load_answer(conversation))


def test_a_terminal_goes_on_after_an_error(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_lines(
        conversation, monkeypatch, "/stat", "/load /nowhere", "/save /nowhere/x", "a\udcff", "Hello", "/exit", "No"
    )
    assert [message["content"] for message in conversation.messages[::2]] == ["Hello"]
    shown = capsys.readouterr().err
    for words in ("no command '/stat'", "not a saved state", "is not a directory", "not valid Unicode"):
        assert words in shown


@pytest.fixture
def terminal(chat_package: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The command in a pseudoterminal, and the file descriptor of its other end."""
    own, others = pty.openpty()
    command = [sys.executable, "-m", "liger_export", "chat", str(chat_package), "-n", "6"]
    process = subprocess.Popen(command, stdin=others, stdout=others, stderr=others, start_new_session=True)
    os.close(others)
    yield process, own
    process.kill()
    process.wait()
    os.close(own)


def read_until(file: int, text: str) -> str:
    shown = ""
    while text not in shown:
        shown += os.read(file, 1024).decode(errors="replace")
    return shown


def test_a_terminal_shows_a_prompt_before_and_after_an_answer(terminal: tuple[subprocess.Popen[bytes], int]) -> None:
    process, file = terminal
    assert "/help lists the commands" in read_until(file, "> ")
    os.write(file, b"Hello\r")
    read_until(file, "\r\n> ")
    os.write(file, b"\x04")
    assert process.wait(60) == 0


def test_the_chat_command_loads_neither_torch_nor_transformers(chat_package: Path) -> None:
    statement = (
        "import io, sys\nfrom liger_export.cli import main\nsys.stdin = io.StringIO('Hello')\n"
        f"sys.argv = ['liger-export', 'chat', {str(chat_package)!r}, '-n', '3']\n"
        "try: main()\nexcept SystemExit as stopped: assert not stopped.code"
    )
    assert loaded_after(statement) & {"torch", "transformers", "peft", "onnx"} == set()
