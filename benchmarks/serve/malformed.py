"""Malformed requests to a server: each must get a status from 400 to 499 with an error in OpenAI's form.

    python benchmarks/serve/malformed.py PACKAGE --requests 10000

Bodies are cut, changed at random bytes, or whole requests with one field of a wrong kind. A body that happens to stay
valid is sent to nobody. Prints how often each status came, and the memory of the server before and after.
"""

import argparse
import asyncio
import json
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from servers import MODEL, liger_server

PATHS = ("/v1/chat/completions", "/v1/completions")
CLIENTS = 16
CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 1,
    "temperature": 1,
    "top_p": 0.9,
    "n": 1,
    "stop": ["x"],
    "seed": 1,
    "stream": False,
    "logit_bias": {"5": 1},
}
COMPLETION = {**{name: value for name, value in CHAT.items() if name != "messages"}, "prompt": "Hello"}
NESTED = {"a": [{"b": {}}]}
WRONG: dict[str, tuple[Any, ...]] = {
    "model": (1, [], "another", NESTED),
    "messages": ([], "text", [1], [{}], [{"role": "user"}], [{"role": "x", "content": "y"}], [{"content": NESTED}]),
    "prompt": ([], NESTED, [-1], [[]], [1.5], [10**12], ["a", 1]),
    "max_tokens": (-1, 10**9, 1.5, "1", NESTED),
    "temperature": (-1, "1", True, NESTED, 1e308),
    "top_p": (-1, 2, "1", NESTED),
    "n": (0, -1, 10**6, "1", 1.5),
    "stop": ([""], [1], NESTED, ["a"] * 1000),
    "seed": (-1, "1", 1.5, NESTED),
    "stream": ("true", 1, NESTED),
    "logit_bias": ({"x": 1}, {"5": "1"}, {"5": 1e9}, [], {"99999999": 1}),
    "tools": ([{}], NESTED),
    "unknown": (1, NESTED, "x"),
}


def malformed(count: int) -> Iterator[tuple[str, bytes]]:
    """Yield paths and bodies."""
    chance = random.Random(0)
    while count:
        path = chance.choice(PATHS)
        whole = CHAT if path == PATHS[0] else COMPLETION
        body = json.dumps(whole).encode()
        kind = chance.randrange(4)
        if kind == 0:
            body = body[: chance.randrange(len(body))]
        elif kind == 1:
            body = chance.randbytes(chance.randrange(64))
        elif kind == 2:
            place = chance.randrange(len(body))
            body = body[:place] + chance.choice([b"\xff", b"{", b"]", b"\x00", b'"']) + body[place + 1 :]
        else:
            name = chance.choice([name for name in WRONG if name in whole or name in ("tools", "unknown")])
            body = json.dumps({**whole, name: chance.choice(WRONG[name])}).encode()
        if kind == 3 or not _is_object(body):
            count -= 1
            yield path, body


def _is_object(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body), dict)
    except ValueError:
        return False


async def send(address: str, requests: Iterator[tuple[str, bytes]], counts: Counter[int]) -> None:
    """Send requests until there are no more. Raises AssertionError for an answer that is not a refusal."""
    async with httpx.AsyncClient(base_url=address, timeout=120) as client:
        for path, body in requests:
            response = await client.post(path, content=body, headers={"content-type": "application/json"})
            is_refused = 400 <= response.status_code < 500 and "message" in response.json()["error"]
            assert is_refused, (response.status_code, path, body)
            counts[response.status_code] += 1


async def run(args: argparse.Namespace) -> None:
    counts: Counter[int] = Counter()
    with tempfile.TemporaryDirectory() as folder, liger_server(args.package, Path(folder) / "log") as server:
        requests, before = malformed(args.requests), server.megabytes
        await asyncio.gather(*(send(server.address, requests, counts) for _ in range(CLIENTS)))
        async with httpx.AsyncClient(base_url=server.address, timeout=120) as client:
            answer = await client.post(PATHS[1], json=COMPLETION)
            assert answer.status_code == 200, answer.text
        print(f"{counts.total():,} requests: {dict(counts)}; memory {before:.1f} to {server.megabytes:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--requests", type=int, default=10_000, help="requests (default: %(default)s)")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
