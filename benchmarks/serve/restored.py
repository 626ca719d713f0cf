"""The first token of a long conversation after the server has been restarted, and the same with llama.cpp's server.

    python benchmarks/serve/restored.py PACKAGE
    python benchmarks/serve/restored.py PACKAGE --gguf MODEL.gguf --llama-python python3

The two sides alternate. Each round reads the conversation, restarts the server, asks for the same answer again,
restarts it once more, and asks the next question. ``--llama-python`` is a Python with ``llama-cpp-python[server]``,
whose cache of states is put on the disk. A step is the median time between two pieces of an answer. Prints minimum and
median.
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
CACHE_BYTES = 1 << 32
READ, AGAIN, NEXT, STEP = "read at first", "restored, same prompt", "restored, next turn", "step"

Start = Callable[[], AbstractContextManager[Server]]


async def answer(server: Server, messages: list[dict[str, str]]) -> tuple[str, float, list[float]]:
    """Return an answer, the seconds to its first piece, and those between the others."""
    body = {"messages": messages, "max_tokens": TOKENS, "temperature": 0}
    async with httpx.AsyncClient(timeout=600) as client:
        await client.get(f"{server.address}/v1/models")  # opens the connection
        started, times, pieces = time.perf_counter(), [], []
        async for piece in stream_chat(client, server, body):
            times.append(time.perf_counter())
            pieces.append(piece)
    steps = [after - before for before, after in pairwise(times)]
    return "".join(pieces), times[0] - started, steps


def measure_round(start: Start, times: dict[str, list[float]]) -> None:
    """Measure one side once."""
    prices = " ".join(f"Item {item} costs {item * 7 % 100} euros." for item in range(ITEMS))
    messages = [{"role": "user", "content": f"{prices} Which item is the cheapest?"}]
    texts = []
    for kind in (READ, AGAIN):
        with start() as server:
            text, first, steps = asyncio.run(answer(server, messages))
        texts.append(text)
        times[kind].append(first)
        times[STEP].append(statistics.median(steps))
    if texts[0] != texts[1]:
        print(f"    the restored answer is another one: {texts[1]!r} instead of {texts[0]!r}")
    messages += [{"role": "assistant", "content": texts[0]}, {"role": "user", "content": "Are you sure?"}]
    with start() as server:
        times[NEXT].append(asyncio.run(answer(server, messages))[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--gguf", type=Path, help="model of llama.cpp's server")
    parser.add_argument("--llama-python", help="Python that runs llama_cpp.server")
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
                flags = {"--model": args.gguf.resolve(), "--n_ctx": CONTEXT, "--n_threads": args.threads}
                flags |= {"--cache": True, "--cache_type": "disk", "--cache_size": CACHE_BYTES}
                command = [args.llama_python, "-m", "llama_cpp.server", *(str(p) for f in flags.items() for p in f)]
                sides["llama.cpp"] = partial(llama_server, command, log, Path(folder))
            for side, start in sides.items():
                measure_round(start, results[side])
        print(f"round {number + 1} of {args.rounds}", flush=True)
    for side, times in results.items():
        for kind, values in times.items():
            middle, least = statistics.median(values) * 1e3, min(values) * 1e3
            print(f"{side}, {kind}: {least:.0f} ms at least, {middle:.0f} ms in the median")


if __name__ == "__main__":
    main()
