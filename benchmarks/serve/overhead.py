"""The time of a token from the server beside that from a session, for one stream, in turns.

    python benchmarks/serve/overhead.py PACKAGE

Both sides answer the same prompt greedily. A round is one answer of each. Prints minimum and median milliseconds a
token after the first, and the ratio of the sides in each round.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import httpx
from servers import Server, liger_server, stream_chat

from liger_export.runtime import Sampling, Session, load

MESSAGES = [{"role": "user", "content": "Write about the sea."}]


def of_session(session: Session, tokens: int) -> list[float]:
    """Return the times at which pieces come."""
    session.reset()
    pieces = session.chat(MESSAGES, max_new_tokens=tokens, sampling=Sampling(), ignore_eos=True)
    return [time.perf_counter() for _ in pieces]


async def of_server(server: Server, tokens: int) -> list[float]:
    """Return the times at which pieces come."""
    body = {"messages": MESSAGES, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    async with httpx.AsyncClient(timeout=600) as client:
        return [time.perf_counter() async for _ in stream_chat(client, server, body)]


def milliseconds(times: list[float], tokens: int) -> float:
    """Return the milliseconds a token."""
    return (times[-1] - times[0]) / (tokens - 1) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="answers of each side (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of both sides (default: %(default)s)")
    args = parser.parse_args()
    session, sides = load(args.package, threads=args.threads), ([], [])
    with (
        tempfile.TemporaryDirectory() as folder,
        liger_server(args.package, Path(folder) / "log", "--threads", args.threads) as server,
    ):
        for _ in range(args.rounds + 1):
            sides[0].append(milliseconds(of_session(session, args.tokens), args.tokens))
            sides[1].append(milliseconds(asyncio.run(of_server(server, args.tokens)), args.tokens))
    alone, served = (side[1:] for side in sides)  # the first round warms up
    for name, side in (("session", alone), ("server", served)):
        print(f"{name}: {min(side):.2f} ms a token at least, {statistics.median(side):.2f} in the median")
    ratios = [after / before for before, after in zip(alone, served, strict=True)]
    print(
        f"server / session: {min(served) / min(alone):.3f} of the minima, {statistics.median(ratios):.3f} in the median"
    )


if __name__ == "__main__":
    main()
