"""The first token of a long conversation after the server has been restarted, and the same with llama.cpp's server.

    python benchmarks/serve/restored.py PACKAGE
    python benchmarks/serve/restored.py PACKAGE --gguf MODEL.gguf --llama-server llama.cpp/build/bin/llama-server

The two sides alternate. Each round reads the conversation, restarts the server, asks for the same answer again,
restarts it once more, and asks the next question. llama.cpp's slot is saved to a file after an answer, and restored
from it after a restart, which counts as time to the first token; saving does not. A step is the median time between two
pieces of an answer. Prints minimum and median.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from itertools import pairwise
from pathlib import Path

import httpx
from servers import Server, liger_server, llama_server, stream_chat

ITEMS = 560
TOKENS = 24
CONTEXT = 8192
SLOT = "/slots/0?action="
READ, AGAIN, NEXT, STEP = "read at first", "restored, same prompt", "restored, next turn", "step"

Start = Callable[[], AbstractContextManager[Server]]


async def answer(server: Server, messages: list[dict[str, str]], *, restores: bool) -> tuple[str, float, list[float]]:
    """Return an answer, the seconds to its first piece, and those between the others."""
    body = {"messages": messages, "max_tokens": TOKENS, "temperature": 0}
    async with httpx.AsyncClient(timeout=600) as client:
        await client.get(f"{server.address}/v1/models")  # opens the connection
        started, times, pieces = time.perf_counter(), [], []
        if restores:
            (await client.post(f"{server.address}{SLOT}restore", json={"filename": "slot"})).raise_for_status()
        async for piece in stream_chat(client, server, body):
            times.append(time.perf_counter())
            pieces.append(piece)
    steps = [after - before for before, after in pairwise(times)]
    return "".join(pieces), times[0] - started, steps


def measure_round(start: Start, times: dict[str, list[float]], *, has_slots: bool) -> None:
    """Measure one side once. ``has_slots``: it saves its state on request."""
    prices = " ".join(f"Item {item} costs {item * 7 % 100} euros." for item in range(ITEMS))
    messages = [{"role": "user", "content": f"{prices} Which item is the cheapest?"}]
    texts: list[str] = []
    for kind in (READ, AGAIN, NEXT):
        with start() as server:
            text, first, steps = asyncio.run(answer(server, messages, restores=has_slots and kind != READ))
            if has_slots:
                httpx.post(f"{server.address}{SLOT}save", json={"filename": "slot"}, timeout=60).raise_for_status()
        texts.append(text)
        times[kind].append(first)
        times[STEP].append(statistics.median(steps))
        if kind == AGAIN:
            messages += [{"role": "assistant", "content": texts[0]}, {"role": "user", "content": "Are you sure?"}]
    if texts[0] != texts[1]:
        print(f"    the restored answer is another one: {texts[1]!r} instead of {texts[0]!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--gguf", type=Path, help="model of llama.cpp's server")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's server")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of both sides (default: %(default)s)")
    args = parser.parse_args()
    results: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            options = ("--threads", args.threads, "--state-dir", Path(folder) / "states")
            sides: dict[str, Start] = {"liger-export": partial(liger_server, args.package, log, *options)}
            if args.gguf is not None:
                flags = ("-c", CONTEXT, "-np", 1, "-t", args.threads, "--slot-save-path", folder)
                sides["llama.cpp"] = partial(llama_server, args.llama_server, args.gguf, log, *flags)
            for side, start in sides.items():
                measure_round(start, results[side], has_slots=side != "liger-export")
        print(f"round {number + 1} of {args.rounds}", flush=True)
    for side, times in results.items():
        for kind, values in times.items():
            middle, least = statistics.median(values) * 1e3, min(values) * 1e3
            print(f"{side}, {kind}: {least:.0f} ms at least, {middle:.0f} ms in the median")


if __name__ == "__main__":
    main()
