"""Streams, which a test fills as a scheduler does."""

import asyncio
from threading import Thread

import pytest

from liger_export.errors import InputError, NotFiniteError
from liger_export.runtime.pieces import Piece, Token
from liger_export.runtime.streams import Stream

PIECES = [Piece("a", (Token(1),)), Piece("bc", (Token(2), Token(3))), Piece("", (), "stop")]


def filled(pieces: list[Piece]) -> Stream:
    stream = Stream(prompt_tokens=4)
    for piece in pieces:
        stream.put(piece)
    return stream


def test_a_piece_is_text_with_tokens() -> None:
    piece = PIECES[1]
    assert (piece, piece.token_ids, piece.finish_reason) == ("bc", (2, 3), None)
    assert "".join(PIECES) == "abc"


def test_it_yields_its_pieces_and_ends_after_the_last_one() -> None:
    stream = filled(PIECES)
    assert (stream.generated_tokens, stream.finish_reason) == (3, "stop")
    assert list(stream) == ["a", "bc", ""]
    assert list(stream) == []


def test_a_reader_waits_in_its_thread_for_a_piece() -> None:
    stream, read = Stream(4), list[str]()
    reader = Thread(target=lambda: read.extend(stream))
    reader.start()
    for piece in PIECES:
        stream.put(piece)
    reader.join(timeout=10)
    assert read == ["a", "bc", ""]


def test_a_reader_waits_in_an_event_loop_for_a_piece() -> None:
    async def read() -> list[str]:
        stream = Stream(4)
        writer = Thread(target=lambda: [stream.put(piece) for piece in PIECES])
        asyncio.get_running_loop().call_later(0.01, writer.start)
        return [piece async for piece in stream]

    assert asyncio.run(read()) == ["a", "bc", ""]


def test_a_second_task_is_refused_and_a_cancelled_one_makes_room() -> None:
    async def read() -> str:
        stream = Stream(4)
        first = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        with pytest.raises(InputError, match="already has a reader"):
            await anext(stream)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        stream.put(PIECES[0])
        return await anext(stream)

    assert asyncio.run(read()) == "a"


def test_an_error_comes_after_the_pieces() -> None:
    stream = filled(PIECES[:1])
    stream.fail(NotFiniteError("The logits are not finite.", "Convert again."))
    assert next(stream) == "a"
    with pytest.raises(NotFiniteError):
        next(stream)
    assert list(stream) == []


def test_leaving_its_block_cancels_it() -> None:
    with Stream(4) as stream:
        assert not stream.is_cancelled
    assert stream.is_cancelled
