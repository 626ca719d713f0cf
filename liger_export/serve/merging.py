"""The pieces of several streams, in the order in which they come."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from liger_export.runtime.pieces import Piece
from liger_export.runtime.streams import Stream

__all__ = ["merged"]


async def merged(streams: Sequence[Stream]) -> AsyncGenerator[tuple[int, Piece], None]:
    """Yield each piece with the index of its stream. Raises the first error of a stream."""
    if len(streams) == 1:
        async for piece in streams[0]:
            yield 0, piece
        return
    waiting = {asyncio.ensure_future(anext(stream)): index for index, stream in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                index = waiting.pop(future)
                if isinstance(future.exception(), StopAsyncIteration):
                    continue
                yield index, future.result()
                waiting[asyncio.ensure_future(anext(streams[index]))] = index
    finally:
        for future in waiting:
            future.cancel()
