"""A package of SmolLM2-135M beside llama.cpp with the GGUF it was made of, alternating in one run.

    python benchmarks/peers/smollm2.py PACKAGE GGUF [--contexts 128 2048 8064] [--rounds 5] [--json FILE]

Each side is a process that keeps its model loaded, and only one computes at a time. Both read the same random tokens.
Prints the median and, in parentheses, the 10th to 90th percentile; ratios are taken within a round. Then the package
alone reads on to --long tokens, where the GGUF's context of 8,192 has ended.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import runners
from process import memory
from rich.console import Console
from rich.table import Table

from liger_export.bench.report import processor_name
from liger_export.bench.timing import Spread

VOCAB_SIZE = 49152
WARM_UP = 2
READ_AGAIN = 2048  # tokens; longer contexts are read in the first round only
SIDES: dict[str, Callable[..., Any]] = {"package": runners.Liger, "llama.cpp": runners.Llama}


def serve(side: str, path: Path, threads: int, length: int, pipe: Connection) -> None:
    """Run in a process: load a side, then answer requests (context, tokens, again) with seconds and memory."""
    runners.VOCAB_SIZE = VOCAB_SIZE
    runners.Llama.block = length  # reads every context
    runner = SIDES[side](path.parent, path.name, threads, length)
    pipe.send(memory())
    ids, position = runners.tokens_for(0, WARM_UP + 512), 0
    while (request := pipe.recv()) is not None:
        context, tokens, again = request
        if again or context < position:
            runner.clear()
            position = 0
        started, read = time.perf_counter(), context - position
        if read:
            runner.fill(context)
        seconds, position = time.perf_counter() - started, context
        steps = []
        for token in ids[: WARM_UP + tokens]:
            started = time.perf_counter()
            runner.step(token)
            steps.append(time.perf_counter() - started)
        runner.rewind()
        pipe.send({"read": read, "seconds": seconds, "steps": steps[WARM_UP:], **memory()})


class Side:
    """One side's process."""

    def __init__(self, name: str, path: Path, threads: int, length: int) -> None:
        spawning = get_context("spawn")
        self._pipe, theirs = spawning.Pipe()
        self._process = spawning.Process(target=serve, args=(name, path, threads, length, theirs), daemon=True)
        self._process.start()
        self.name, self.loaded = name, self._pipe.recv()

    def ask(self, context: int, tokens: int, *, again: bool) -> dict[str, Any]:
        """Read up to a context, from an empty sequence if ``again``, decode tokens after it, and return to it."""
        self._pipe.send((context, tokens, again))
        answer: dict[str, Any] = self._pipe.recv()
        return answer

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join()


def alternate(sides: list[Side], contexts: list[int], rounds: int, tokens: int) -> list[dict[str, Any]]:
    """Measure every side at every context, in rounds that begin with another side each."""
    measured = []
    for context in contexts:
        for index in range(rounds):
            for side in sides[index % 2 :] + sides[: index % 2]:
                answer = side.ask(context, tokens, again=index == 0 or context <= READ_AGAIN)
                measured.append({"side": side.name, "context": context, "round": index, **answer})
    return measured


def show(measured: list[dict[str, Any]], contexts: list[int]) -> None:
    """Print milliseconds a token, tokens read a second, and peak memory."""
    steps_of = [f"{side}, ms/token" for side in SIDES]
    table = Table("context", *steps_of, "ratio", "tokens/s read", "llama.cpp", "ratio", "peak MB")
    for context in contexts:
        ours, theirs = (
            [each for each in measured if each["context"] == context and each["side"] == side] for side in SIDES
        )
        steps = [[float(np.median(each["steps"])) for each in side] for side in (ours, theirs)]
        speed = [[each["read"] / each["seconds"] for each in side if each["read"]] for side in (ours, theirs)]
        table.add_row(
            f"{context:,}",
            *(Spread.of(side).scaled(1e3).text(2) for side in steps),
            Spread.of([b / a for a, b in zip(*steps, strict=True)]).text(2),
            *(f"{np.median(side):,.0f}" for side in speed),
            f"{np.median([a / b for a, b in zip(*speed, strict=True)]):.2f}",
            " and ".join(f"{max(each['peak'] for each in side) / 1e6:,.0f}" for side in (ours, theirs)),
        )
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 2048, 8064])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--long", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    load = os.getloadavg()[0]
    paths = (options.package, options.gguf)
    sides = [
        Side(name, path.resolve(), options.threads, max(options.contexts))
        for name, path in zip(SIDES, paths, strict=True)
    ]
    measured = alternate(sides, options.contexts, options.rounds, options.tokens)
    far = sides[0].ask(options.long, options.tokens, again=False) if options.long else None
    for side in sides:
        side.close()
    print(f"{processor_name()}, {os.cpu_count()} cores, {options.threads} threads, load before the run {load:.1f}")
    show(measured, options.contexts)
    if far:
        steps = Spread.of(far["steps"]).scaled(1e3).text(2)
        print(f"package at {options.long:,}: {steps} ms/token, peak {far['peak'] / 1e6:,.0f} MB")
    if options.json:
        options.json.write_text(json.dumps({"rounds": measured, "long": far}, indent=1) + "\n")


if __name__ == "__main__":
    main()
