"""Many conversations with a server that is restarted meanwhile. Every answer must equal that of a session on its own.

    python benchmarks/serve/soak.py PACKAGE --minutes 10

The package needs a chat template; a small model makes more conversations. Clients join at random places of
conversations, and hang up in the middle of some answers. The server is ended by SIGTERM and by SIGKILL in turns, and
goes on with its state directory. Prints the memory of each server process after its warm-up and at its end. A wrong
answer ends the run.
"""

import argparse
import asyncio
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from servers import Server, liger_server, stream_chat

from liger_export.runtime import Sampling, Session, load

TOKENS = 24
TEXTS, TURNS = 20, 3
WORDS = ["amber", "basil", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty", "kayak", "lemon"]
HANG_UP = 0.3  # share of answers that the client does not read to their end
ENDINGS = (signal.SIGTERM, signal.SIGKILL)
WARM_UP = 0.3  # share of the life of a server
BUSY = 429

Messages = list[dict[str, str]]


@dataclass
class Soak:
    """A run: the conversations with their expected answers, the current server, and counts of what happened."""

    expected: list[tuple[Messages, str]]
    server: Server | None = None
    counts: Counter[str] = field(default_factory=Counter)

    async def client(self, seed: int, http: httpx.AsyncClient, end: float) -> None:
        """Ask for answers until the end."""
        chance = random.Random(seed)
        while time.monotonic() < end:
            messages, text = chance.choice(self.expected)
            reads = 1 + chance.randrange(TOKENS) if chance.random() < HANG_UP else None
            if self.server is None:
                await asyncio.sleep(0.1)
                continue
            try:
                answer = await _read(http, self.server, {"messages": messages, "max_tokens": TOKENS}, reads)
            except httpx.HTTPStatusError as error:
                self.counts[f"status {error.response.status_code}"] += 1
                await asyncio.sleep(0.2)
            except httpx.TransportError:
                self.counts["lost with a server"] += 1
            else:
                if not (text == answer if reads is None else text.startswith(answer)):
                    raise AssertionError(f"{messages}: {answer!r} instead of {text!r}")
                self.counts["whole" if reads is None else "hung up"] += 1

    async def servers(self, package: Path, options: Mapping[str, object], lives: int, seconds: float) -> None:
        """Run one server after the other, and print their memory."""
        folder, flags = Path(str(options["--state-dir"])), [part for option in options.items() for part in option]
        for life in range(lives):
            with liger_server(package, folder.parent / f"{life}.log", *flags) as self.server:
                await asyncio.sleep(seconds * WARM_UP)
                warm, before = self.server.megabytes, self.counts.total()
                await asyncio.sleep(seconds * (1 - WARM_UP))
                now, answers = self.server.megabytes, self.counts.total() - before
                ending = ENDINGS[life % 2]
                print(
                    f"server {life}: {warm:.2f} MB after the warm-up, {now:.2f} MB {answers} answers later", flush=True
                )
                print(f"    {dict(self.counts)}, ended by {ending.name}", flush=True)
                server, self.server = self.server, None
                await asyncio.to_thread(server.end, ending)


async def _read(http: httpx.AsyncClient, server: Server, body: Mapping[str, Any], most: int | None) -> str:
    """Return an answer, or its first pieces."""
    pieces: list[str] = []
    stream = stream_chat(http, server, {**body, "temperature": 0})
    async for piece in stream:
        pieces.append(piece)
        if len(pieces) == most:
            break
    await stream.aclose()
    return "".join(pieces)


def conversations(session: Session) -> list[tuple[Messages, str]]:
    """Return prompts of several turns, some with a common system message, and the expected answer to each."""
    chance, expected = random.Random(0), []
    for number in range(TEXTS):
        messages = [{"role": "system", "content": "Answer in one line. " * 8}] if number % 3 == 0 else []
        for _ in range(TURNS):
            words = " ".join(chance.choice(WORDS) for _ in range(chance.randrange(2, 30)))
            messages = [*messages, {"role": "user", "content": f"{words}?"}]
            session.reset()
            answer = "".join(session.chat(messages, max_new_tokens=TOKENS, sampling=Sampling()))
            expected.append((messages, answer))
            messages = [*messages, {"role": "assistant", "content": answer}]
    return expected


async def run(args: argparse.Namespace) -> None:
    soak = Soak(conversations(load(args.package)))
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "--slots": args.slots,
            "--queue": args.clients,
            "--memory": 1,
            "--state-dir": Path(folder) / "states",
            "--state-size": 2,
            "--grace": 60,  # all answers end
        }
        end = time.monotonic() + args.minutes * 60
        limits = httpx.Limits(max_connections=2 * args.clients)
        async with httpx.AsyncClient(timeout=120, limits=limits) as http, asyncio.TaskGroup() as group:
            group.create_task(soak.servers(args.package, options, args.lives, args.minutes * 60 / args.lives))
            for seed in range(args.clients):
                group.create_task(soak.client(seed, http, end))
    print(f"every answer as expected: {dict(soak.counts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--minutes", type=float, default=10, help="length of the run (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=100, help="conversations at once (default: %(default)s)")
    parser.add_argument("--slots", type=int, default=16, help="answers at once (default: %(default)s)")
    parser.add_argument("--lives", type=int, default=3, help="server processes (default: %(default)s)")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
