"""Which replica has read the longest start of a request's text."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liger_export.serve.routing import PIECE, Holders, starts_of

TEXTS = st.lists(st.sampled_from("ab"), max_size=4)


def starts(messages: list[Any] | None = None, **fields: Any) -> tuple[bytes, ...]:
    named = {} if messages is None else {"messages": messages}
    return starts_of(json.dumps({"model": "tiny", **named, **fields}).encode())


def say(text: str, role: str = "user") -> dict[str, str]:
    return {"role": role, "content": text}


def shared(first: tuple[bytes, ...], second: tuple[bytes, ...]) -> int:
    return sum(one == other for one, other in zip(first, second, strict=False))


@given(TEXTS, TEXTS)
def test_conversations_share_as_many_starts_as_first_messages(one: list[str], other: list[str]) -> None:
    same = 0
    while same < min(len(one), len(other)) and one[same] == other[same]:
        same += 1
    assert shared(starts([say(text) for text in one]), starts([say(text) for text in other])) == same


@pytest.mark.parametrize("field", ["messages", "prompt"])
def test_long_texts_share_the_pieces_before_the_place_where_they_part(field: str) -> None:
    def starts_with(end: str) -> tuple[bytes, ...]:
        text = "x" * (3 * PIECE) + end
        return starts([say(text)]) if field == "messages" else starts(prompt=text)

    assert shared(starts_with("one"), starts_with("other")) == 3
    tokens = [[*range(2 * PIECE), end] for end in (1, 2)]
    assert shared(starts(prompt=tokens[0]), starts(prompt=tokens[1])) == 2


def test_other_models_and_roles_share_nothing() -> None:
    assert shared(starts([say("a")]), starts([say("a")], model="large")) == 0
    assert shared(starts([say("a")]), starts([say("a", "system")])) == 0


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b'{"messages": 1}', b"[" * 100_000, b'{"prompt": NaN}'])
def test_what_is_no_request_has_no_starts(body: bytes) -> None:
    assert starts_of(body) == ()


def test_the_longest_start_wins_and_replicas_that_are_gone_do_not_count() -> None:
    holders = Holders()
    holders.note((b"1", b"2", b"3"), "long")
    holders.note((b"1", b"2"), "short")
    assert holders.longest((b"1", b"2", b"3", b"4"), {"long", "short"}) == ["long"]
    assert holders.longest((b"1", b"2", b"5"), {"long", "short"}) == ["short", "long"]
    assert holders.longest((b"1", b"2", b"3"), {"short"}) == ["short"]
    assert holders.longest((b"9",), {"long"}) == []
    assert holders.longest((), {"long"}) == []


def test_what_was_unused_for_longest_is_forgotten() -> None:
    holders = Holders(most=2)
    for start in (b"1", b"2", b"1", b"3"):
        holders.note((start,), "only")
    assert [holders.longest((start,), {"only"}) for start in (b"1", b"2", b"3")] == [["only"], [], ["only"]]
