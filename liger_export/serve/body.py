"""The body of a request: read in bounded time and size, and parsed."""

import asyncio
import json

from starlette.requests import Request

from liger_export.serve.errors import ApiError

__all__ = ["parse_json", "read_body"]

BODY_SECONDS = 60.0


async def read_body(request: Request, most: int) -> bytes:
    """Read a body of at most ``most`` bytes. Raises ApiError if it is larger, or does not arrive in time."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise ApiError(413, f"The body has more than {most:,} bytes.", code="request_too_large")
    except TimeoutError as error:
        raise ApiError(408, "The body did not arrive in time.", code="timeout") from error
    return bytes(body)


def parse_json(body: bytes) -> object:
    """Read the body of a request. Raises ApiError if it is not JSON."""
    try:
        return json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:  # also of bytes that are not UTF-8, and of numbers with many digits
        raise ApiError(400, "The body is not valid JSON.", code="invalid_json") from error


def _refuse(name: str) -> None:
    raise ValueError(name)
