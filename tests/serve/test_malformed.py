"""Malformed requests: a 4xx each, and the server goes on."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serve.servers import MODEL, Running, chat_body

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=()), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
CHAT = chat_body(
    max_tokens=1,
    temperature=1,
    top_p=0.9,
    n=1,
    stop=["x"],
    seed=1,
    logprobs=True,
    top_logprobs=1,
    logit_bias={"5": 1},
    stream=False,
    frequency_penalty=0.5,
)
COMPLETION: dict[str, Any] = {"model": MODEL, "prompt": "def", "max_tokens": 1, "logprobs": 1, "stop": "x", "n": 1}
SETTINGS = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def client(server: Running) -> httpx.Client:
    return httpx.Client(base_url=server.address, headers={"content-type": "application/json"}, timeout=60)


def assert_refused(response: httpx.Response) -> None:
    assert 400 <= response.status_code < 500
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}


@SETTINGS
@given(body=st.binary(max_size=64) | st.sampled_from([b"[" * 50_000, b"NaN", b"1" * 5000, b'{"model":Infinity}']))
def test_bytes_that_are_not_a_request_are_refused(client: httpx.Client, body: bytes) -> None:
    assert_refused(client.post("/v1/chat/completions", content=body))


@SETTINGS
@given(data=st.data(), is_chat=st.booleans())
def test_a_field_with_any_value_is_answered_or_refused(
    client: httpx.Client, data: st.DataObject, is_chat: bool
) -> None:
    whole = CHAT if is_chat else COMPLETION
    name = data.draw(st.sampled_from(sorted(whole)))
    body = {**whole, name: data.draw(JUNK)}
    response = client.post("/v1/chat/completions" if is_chat else "/v1/completions", content=json.dumps(body).encode())
    if response.status_code != 200:
        assert_refused(response)


@SETTINGS
@given(name=st.text(min_size=1, max_size=12), value=JUNK, is_chat=st.booleans())
def test_an_unknown_field_is_refused_by_its_name(client: httpx.Client, name: str, value: Any, is_chat: bool) -> None:
    body = {"zz" + name: value, **(CHAT if is_chat else COMPLETION)}
    response = client.post("/v1/chat/completions" if is_chat else "/v1/completions", content=json.dumps(body).encode())
    if value is None:
        assert response.status_code == 200
    else:
        assert_refused(response)
        assert response.json()["error"]["param"] == "zz" + name


@SETTINGS
@given(message=JUNK | st.fixed_dictionaries({"role": st.sampled_from(["user", "tool"]), "content": JUNK}))
def test_a_message_of_any_form_is_answered_or_refused(client: httpx.Client, message: Any) -> None:
    response = client.post("/v1/chat/completions", content=json.dumps({**CHAT, "messages": [message]}).encode())
    if response.status_code != 200:
        assert_refused(response)


def test_the_server_still_answers(client: httpx.Client) -> None:
    assert client.get("/health").json()["status"] == "ok"
    assert client.post("/v1/chat/completions", json=CHAT).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"functions": []}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{}]}, "tools"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"other": 1}}, "stream_options.other"),
        ({"top_logprobs": 2, "logprobs": False}, "top_logprobs"),
        ({"max_completion_tokens": 2}, "max_tokens"),
        ({"seed": -1}, "seed"),
        ({"n": 0}, "n"),
        ({"temperature": True}, "temperature"),
        ({"stop": [""]}, "stop"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages[0].name"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(client: httpx.Client, fields: dict[str, Any], param: str) -> None:
    response = client.post("/v1/chat/completions", content=json.dumps({**CHAT, **fields}).encode())
    assert_refused(response)
    assert response.json()["error"]["param"] == param
