"""The server with the openai client and curl. Answers are those of a session alone."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openai
import pytest

from liger_export.runtime import Sampling, Session, load
from tests.serve.servers import MODEL, Running, chat_body, running

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def session(chat_package: Path) -> Session:
    return load(chat_package)


def said_alone(session: Session, messages: Sequence[Any], count: int, **sampling: Any) -> str:
    session.reset()
    return "".join(session.chat(messages, max_new_tokens=count, sampling=Sampling(**sampling)))


def test_a_chat_is_answered_as_by_a_session(client: openai.OpenAI, session: Session) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, max_completion_tokens=30)
    [choice] = answer.choices
    assert choice.message.content == said_alone(session, HELLO, 30)
    assert (choice.finish_reason, choice.message.role, answer.model) == ("length", "assistant", MODEL)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 30
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 30


def test_a_streamed_chat_is_the_same_text(client: openai.OpenAI, session: Session) -> None:
    events = list(
        client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=30, stream=True, stream_options={"include_usage": True}
        )
    )
    choices = [event.choices[0] for event in events if event.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == said_alone(session, HELLO, 30)
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["length"]
    assert choices[0].delta.role == "assistant"
    assert events[-1].choices == []
    assert events[-1].usage is not None
    assert events[-1].usage.completion_tokens == 30


def test_many_chats_at_once_do_not_mix(server: Running, session: Session) -> None:
    texts = [f"Number {number}" for number in range(8)]

    async def said(client: openai.AsyncOpenAI, text: str) -> str:
        messages: list[Any] = [{"role": "user", "content": text}]
        events = await client.chat.completions.create(model=MODEL, messages=messages, max_tokens=20, stream=True)
        return "".join([event.choices[0].delta.content or "" async for event in events])

    async def all_said() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="none") as client:
            return await asyncio.gather(*(said(client, text) for text in texts))

    expected = [said_alone(session, [{"role": "user", "content": text}], 20) for text in texts]
    assert asyncio.run(all_said()) == expected


def test_the_same_question_is_not_read_again_and_the_next_turn_reads_only_what_is_new(
    client: openai.OpenAI, session: Session
) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is new?"}]
    usages, texts = [], []
    for _ in range(2):
        answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=12)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        usages.append((answer.usage.prompt_tokens_details.cached_tokens, answer.usage.prompt_tokens))
        texts.append(answer.choices[0].message.content)
    assert usages == [(0, usages[0][1]), (usages[0][1], usages[0][1])]
    assert texts[0] == texts[1]
    messages += [{"role": "assistant", "content": "Nothing."}, {"role": "user", "content": "And now?"}]
    answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=12)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == usages[0][1]  # the answer was edited
    assert answer.choices[0].message.content == said_alone(session, messages, 12)


def test_a_completion_continues_texts_and_tokens(client: openai.OpenAI, session: Session) -> None:
    session.reset()  # only the start of a text gets BOS
    tokens = session.encode("def")
    for prompt, texts in (("def", ["def"]), (["def", "abc"], ["def", "abc"]), (tokens, ["def"]), ([tokens], ["def"])):
        answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=10)  # type: ignore[arg-type]
        expected = []
        for text in texts:
            session.reset()
            expected.append("".join(session.generate(text, max_new_tokens=10)))
        assert [choice.text for choice in answer.choices] == expected
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 10 * len(texts)


def test_a_seed_determines_the_answer_and_several_answers_differ(client: openai.OpenAI, session: Session) -> None:
    def said() -> list[str | None]:
        answer = client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=20, n=3, seed=5, temperature=1.0
        )
        return [choice.message.content for choice in answer.choices]

    first = said()
    assert first == said()
    assert len(set(first)) == 3
    assert first[0] == said_alone(session, HELLO, 20, temperature=1.0, seed=5)


def test_a_stop_string_ends_the_answer_before_it(client: openai.OpenAI, session: Session) -> None:
    whole = said_alone(session, HELLO, 30)
    stop = next(whole[at : at + 2] for at in range(4, 20) if "\ufffd" not in whole[at : at + 2])
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=30, stop=[stop])
    assert answer.choices[0].message.content == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_log_probabilities_are_those_of_the_logits(client: openai.OpenAI, session: Session) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=4, logprobs=True, top_logprobs=2, logit_bias={"65": 100}
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 4
    assert {each.token for each in logprobs.content} == {session.tokenizer.decode([65])}  # the bias decides
    for each in logprobs.content:
        assert [top.logprob for top in each.top_logprobs] == sorted(
            (t.logprob for t in each.top_logprobs), reverse=True
        )
        assert each.logprob <= each.top_logprobs[0].logprob  # before the bias
    old = client.completions.create(model=MODEL, prompt="def", max_tokens=3, logprobs=2)
    assert old.choices[0].logprobs is not None
    assert old.choices[0].logprobs.tokens is not None
    assert len(old.choices[0].logprobs.tokens) == 3


def test_the_models_are_listed(client: openai.OpenAI, server: Running) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "liger-export"
    with pytest.raises(openai.NotFoundError, match="There is no model 'other'"):
        client.models.retrieve("other")


def test_an_error_names_the_field(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=HELLO, tools=[{"type": "function"}])  # type: ignore[list-item]
    assert (caught.value.param, caught.value.code) == ("tools", "unsupported_field")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4o", messages=HELLO)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_gets_an_answer_and_a_stream(server: Running, session: Session) -> None:
    def curl(**fields: Any) -> str:
        command = ["curl", "-sSN", f"{server.address}/v1/chat/completions", "-H", "Content-Type: application/json"]
        body = json.dumps(chat_body(max_tokens=8, **fields))
        return subprocess.run([*command, "-d", body], capture_output=True, text=True, check=True).stdout

    expected = said_alone(session, HELLO, 8)
    assert json.loads(curl())["choices"][0]["message"]["content"] == expected
    *events, done = curl(stream=True).strip().split("\n\n")
    deltas = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content", "") for delta in deltas) == expected
    assert done == "data: [DONE]"


def test_a_key_is_required_where_there_are_keys(chat_package: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("first\n\nsecond \n")
    with running(chat_package, api_key_file=tmp_path / "keys") as server:
        for key, is_right in (("first", True), ("second", True), ("third", False), ("", False), ("firs", False)):
            client = openai.OpenAI(base_url=f"{server.address}/v1", api_key=key or "-", max_retries=0)
            if is_right:
                assert len(list(client.models.list())) == 1
            else:
                with pytest.raises(openai.AuthenticationError):
                    client.models.list()
