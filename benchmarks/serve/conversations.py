"""Many conversations at once, on this project's server and on llama.cpp's with the GGUF that the package was made of.

    python benchmarks/serve/conversations.py PACKAGE --gguf MODEL.gguf --llama-server llama.cpp/build/bin/llama-server

Each side first reads one long prompt per conversation. Then, in rounds in which the sides take turns, all conversations
are continued at once, from what has been read. Prints the median and, in parentheses, the 10th to 90th percentile of
all tokens a second, from the first token of the last conversation to the end of the first one; and the memory that each
server has allocated, without mapped files.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from servers import MODEL, Server, liger_server, llama_server

from liger_export.bench.timing import Spread

MARGIN = 256  # tokens of a slot beyond the prompt
VOCAB_SIZE = 49152


@dataclass
class Side:
    """A server and what has been measured of it."""

    server: Server
    rates: list[float] = field(default_factory=list)
    megabytes: float = 0.0


async def continue_one(client: httpx.AsyncClient, server: Server, prompt: list[int], tokens: int) -> list[float]:
    """Return the times at which the pieces of a continuation arrive."""
    body = {
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    times = []
    async with client.stream("POST", f"{server.address}/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {") and json.loads(line.removeprefix("data: ")).get("choices"):
                times.append(time.perf_counter())
    return times


async def continue_all(server: Server, prompts: list[list[int]], tokens: int) -> float:
    """Return the pieces a second of all conversations together, while all of them are being continued."""
    async with httpx.AsyncClient(timeout=3600) as client:
        times = await asyncio.gather(*(continue_one(client, server, prompt, tokens) for prompt in prompts))
    first, last = max(each[0] for each in times), min(each[-1] for each in times)
    return sum(first < at <= last for each in times for at in each) / (last - first)


@contextmanager
def started(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Side]]:
    """Start the servers."""
    with ExitStack() as stack:
        options = ("--slots", args.streams, "--threads", args.threads, "--max-prompt-tokens", args.context + MARGIN)
        ours = stack.enter_context(liger_server(args.package, folder / "ours", *options))
        sides = {"liger-export": Side(ours)}
        if args.gguf is not None:
            room = max(args.room, args.context + MARGIN)
            flags = ("-c", args.streams * room, "-np", args.streams, "-t", args.threads)
            theirs = stack.enter_context(llama_server(args.llama_server, args.gguf, folder / "theirs", *flags))
            sides["llama.cpp"] = Side(theirs)
        yield sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--gguf", type=Path, help="model of llama.cpp's server")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's server")
    parser.add_argument("--streams", type=int, default=8, help="conversations (default: %(default)s)")
    parser.add_argument("--context", type=int, default=4096, help="tokens of each prompt (default: %(default)s)")
    parser.add_argument("--room", type=int, default=0, help="tokens that llama.cpp's slots have room for, if more")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of both sides (default: %(default)s)")
    args = parser.parse_args()
    prompts = np.random.default_rng(0).integers(1000, VOCAB_SIZE, (args.streams, args.context)).tolist()
    with tempfile.TemporaryDirectory() as folder, started(args, Path(folder)) as sides:
        for name, side in sides.items():
            began = time.perf_counter()
            asyncio.run(continue_all(side.server, prompts, 4))
            print(f"{name}: {args.streams} prompts read in {time.perf_counter() - began:.0f} s", flush=True)
        for _ in range(args.rounds):
            for side in sides.values():
                side.rates.append(asyncio.run(continue_all(side.server, prompts, args.tokens)))
                side.megabytes = max(side.megabytes, side.server.megabytes)
        for name, side in sides.items():
            print(f"{name}: {Spread.of(side.rates).text()} tokens/s together, {side.megabytes:,.0f} MB allocated")


if __name__ == "__main__":
    main()
