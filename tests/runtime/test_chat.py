"""``Session.chat``: what a new session would answer, without reading the history again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liger_export.errors import InputError
from liger_export.runtime import Sampling, SavedState, Session, load
from liger_export.runtime.executor import Tokens
from tests.runtime.chats import TOOLS, say, write_chat_package

Messages = list[dict[str, Any]]
HELLO = [say("system", "Be brief."), say("user", "Hello")]
END = 0


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Packages of one random model, by the name of their chat template."""
    return {name: write_chat_package(tmp_path_factory.mktemp(name), name) for name in ("chatml", "qwen3")}


@pytest.fixture
def session(packages: dict[str, Path]) -> Session:
    return load(packages["chatml"])


def fresh(session: Session) -> Session:
    return Session(session.manifest, session.tokenizer, session.executor.fresh(), chat_template=session.chat_template)


def answer(session: Session, messages: Messages, **options: Any) -> str:
    return "".join(session.chat(messages, **{"max_new_tokens": 5, **options}))


def count_reads(session: Session, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets the number of tokens of each read of the executor."""
    counts: list[int] = []
    read = session.executor.read

    def recorded(tokens: Tokens) -> None:
        counts.append(len(tokens))
        read(tokens)

    monkeypatch.setattr(session.executor, "read", recorded)
    return counts


def script(session: Session, monkeypatch: pytest.MonkeyPatch, text: str, *, ends: bool = True) -> None:
    """Make every answer ``text``."""
    ids = [*session.tokenizer.encode(text, add_special_tokens=False).ids, *([END] if ends else [])]
    chosen = iter(ids * 9)
    monkeypatch.setattr("liger_export.runtime.sampling.Sampler.choose_next", lambda *_: next(chosen))


ACTIONS: dict[str, Callable[[Session, Messages, str], Any]] = {
    "go on": lambda _, chat, text: chat.extend([say("assistant", text), say("user", "More")]),
    "go on with an answer that was edited": lambda _, chat, text: chat.extend(
        [say("assistant", "Well, " + text[:1]), say("user", "More")]
    ),
    "regenerate": lambda *_: None,
    "edit the last message": lambda _, chat, __: chat[-1].update(content=chat[-1]["content"] + "!"),
    "edit the first message": lambda _, chat, __: chat[0].update(content=chat[0]["content"] + "!"),
    "remove a turn": lambda _, chat, __: chat.__delitem__(slice(-2, None)) if len(chat) > 3 else None,
    "prefill": lambda session, *_: session.prefill([5, 6]),
    "generate": lambda session, *_: list(session.generate("x", max_new_tokens=2)),
    "go on with the answer": lambda session, *_: list(session.generate("", max_new_tokens=2)),
    "stop an answer": lambda session, chat, _: next(pieces := session.chat(chat), "") and pieces.close(),
    "load a state": lambda session, *_: session.load_state(session.state()),
    "load an old state": lambda session, *_: session.load_state(replace(session.state(), digest=None)),
    "reset": lambda session, *_: session.reset(),
}


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(["chatml", "qwen3"]),
    actions=st.lists(st.sampled_from(sorted(ACTIONS)), max_size=5),
    sampling=st.sampled_from([Sampling(), Sampling(repetition_penalty=1.3, temperature=0.8, seed=3)]),
)
def test_an_answer_is_that_of_a_new_session(
    packages: dict[str, Path], name: str, actions: list[str], sampling: Sampling
) -> None:
    session, chat = load(packages[name]), [dict(message) for message in HELLO]
    for action in ["regenerate", *actions]:
        given_answer = answer(session, chat, sampling=sampling)
        assert given_answer == answer(fresh(session), chat, sampling=sampling)
        ACTIONS[action](session, chat, given_answer)
    assert answer(session, chat, sampling=sampling) == answer(fresh(session), chat, sampling=sampling)


def test_a_conversation_that_goes_on_reads_only_what_is_new(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    script(session, monkeypatch, "ok")
    reads = count_reads(session, monkeypatch)
    chat = [*HELLO]
    assert answer(session, chat) == "ok"
    assert session.turn is not None
    assert reads == [session.turn.prompt_tokens, 1, 1]
    for _ in range(3):
        chat += [say("assistant", "ok"), say("user", "More")]
        reads.clear()
        answer(session, chat)
        new = len("\n") + len("user\nMore") + len("\nassistant\n") + 4  # <|im_end|> twice and <|im_start|> twice
        assert (reads, session.turn.read_tokens) == ([new, 1, 1], new)
        assert session.turn.prompt_tokens + 2 == session.position


@pytest.mark.parametrize("stopped", ["at its end", "early", "by the limit"])
def test_a_regenerated_answer_reads_nothing(session: Session, monkeypatch: pytest.MonkeyPatch, stopped: str) -> None:
    script(session, monkeypatch, "ok")
    if stopped == "early":
        pieces = session.chat(HELLO)
        next(pieces)
        pieces.close()
    else:
        answer(session, HELLO, max_new_tokens=0 if stopped == "by the limit" else 5)
    monkeypatch.undo()
    reads = count_reads(session, monkeypatch)
    assert answer(session, HELLO) == answer(fresh(session), HELLO)
    assert sum(reads) == 4  # of the answer's 5 tokens
    assert session.turn is not None
    assert session.turn.read_tokens == 0


def test_an_answer_that_was_stopped_goes_on_from_the_state(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    script(session, monkeypatch, "ok then")
    pieces = session.chat(HELLO)
    assert next(pieces) + next(pieces) == "ok"
    pieces.close()
    assert session.length == session.position + 1  # "k" was chosen, but not read
    reads = count_reads(session, monkeypatch)
    answer(session, [*HELLO, say("assistant", "ok"), say("user", "?")], max_new_tokens=0)
    assert reads == [len("k") + len("\n") + len("user\n?") + len("\nassistant\n") + 4]


def test_an_answer_whose_text_has_other_tokens_is_read_again_from_the_last_prompt(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.tokenizer.add_tokens(["ok"])  # chosen as two tokens, encoded as one
    ids = iter([*session.tokenizer.encode("o").ids[1:], *session.tokenizer.encode("k").ids[1:], END])
    monkeypatch.setattr("liger_export.runtime.sampling.Sampler.choose_next", lambda *_: next(ids))
    assert answer(session, HELLO) == "ok"
    reads = count_reads(session, monkeypatch)
    answer(session, [*HELLO, say("assistant", "ok"), say("user", "?")], max_new_tokens=0)
    assert reads == [1 + len("\n") + len("user\n?") + len("\nassistant\n") + 4]


def test_reasoning_that_the_template_drops_is_not_kept(
    packages: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = load(packages["qwen3"])
    thought = "<think>\nHm.\n</think>\n\nok"
    script(session, monkeypatch, thought)
    assert answer(session, HELLO, max_new_tokens=30) == thought
    monkeypatch.undo()
    reads = count_reads(session, monkeypatch)
    chat = [*HELLO, say("assistant", thought), say("user", "?")]
    assert answer(session, chat) == answer(fresh(session), chat)
    assert reads[0] == len("ok") + len("\n") + len("user\n?") + len("\nassistant\n") + 4


def test_a_saved_conversation_goes_on_elsewhere(
    session: Session, packages: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script(session, monkeypatch, "ok")
    answer(session, HELLO)
    monkeypatch.undo()
    session.state().save(tmp_path / "state.npz")
    other, chat = load(packages["chatml"]), [*HELLO, say("assistant", "ok"), say("user", "?")]
    other.load_state(SavedState.read(tmp_path / "state.npz"))
    reads = count_reads(other, monkeypatch)
    assert answer(other, chat) == answer(fresh(session), chat)
    assert sum(reads) < 30
    other.load_state(replace(SavedState.read(tmp_path / "state.npz"), digest=None))  # of an older version
    other.turn = None
    reads.clear()
    assert answer(other, chat) == answer(fresh(session), chat)
    assert other.turn is not None
    assert reads[0] == other.turn.prompt_tokens > 60


def test_a_prompt_without_its_logits_is_read_again(session: Session) -> None:
    answer(session, HELLO, max_new_tokens=0)
    assert session.turn is not None
    other = fresh(session)
    other.load_state(replace(session.turn.end, pending=(7,), logits=None))  # saved after the first token was chosen
    assert answer(other, HELLO) == answer(fresh(session), HELLO) != ""


def test_an_answer_that_is_not_read_leaves_the_session_as_it_was(session: Session) -> None:
    session.prefill([1, 2, 3])
    before = session.fork().step(4)
    session.chat(HELLO).close()
    assert session.position == 3
    assert (session.step(4) == before).all()


def test_tools_and_stop_strings_reach_the_model(packages: dict[str, Path]) -> None:
    session = load(packages["qwen3"])
    plain = answer(session, HELLO, max_new_tokens=9)
    with_tools = answer(session, HELLO, tools=TOOLS, max_new_tokens=9)
    assert session.turn is not None
    assert session.turn.prompt_tokens > 400
    assert with_tools != plain
    assert answer(session, HELLO, stop=[plain[2:4]], max_new_tokens=9) == plain.split(plain[2:4])[0]


def test_what_cannot_be_rendered_changes_nothing(session: Session, package: Path) -> None:
    session.prefill([1, 2])
    for messages in ([], [{"content": "x"}], "Hello"):
        with pytest.raises(InputError):
            session.chat(messages)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="max_new_tokens"):
        session.chat(HELLO, max_new_tokens=-1)
    assert session.position == 2
    for without in (load(package), Session(session.manifest, session.tokenizer, session.executor)):
        with pytest.raises(InputError, match="no chat template"):
            without.chat(HELLO)
