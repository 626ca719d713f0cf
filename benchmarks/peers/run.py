"""Speed and memory of Liger packages, llama.cpp, ONNX Runtime GenAI and transformers, alternating in one run.

Each system is a process that keeps its model loaded, and only one computes at a time. The machine's read bandwidth is
measured between the rounds. Prints Markdown tables of the median and, in parentheses, the 10th to 90th percentile.

    python benchmarks/peers/prepare.py DIRECTORY
    python benchmarks/peers/run.py DIRECTORY --json results.json
"""

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import numpy as np
from bandwidth import Probe
from process import RunnerProcess
from runners import RUNNERS

from liger_export.bench.report import processor_name
from liger_export.bench.timing import Spread

OURS = "Liger int4"
PEERS = ["llama.cpp Q4_0", "llama.cpp Q4_0, Q8_0 cache", "GenAI int4", "GenAI int4, int8 cache"]
GRAPHS = ["GenAI int4, graph", "GenAI int4, int8 cache, graph"]
EVERY_ROUND = [OURS, "llama.cpp Q4_0", "GenAI int4"]  # read a prompt in every round; the others only once
LONGEST = {"transformers bf16": 4096}  # tokens; it reads longer contexts too slowly
GRAPH_SHORTEST = 4096
DECODE_GOALS = {128: 1.25, 4096: 2.5, 16384: 4.5, 32768: 7.5}  # speed relative to the fastest peer
PREFILL_GOALS = {512: 1.1, 4096: 1.6}
BANDWIDTH_GOAL = 0.80
CONSTANT_GOAL = 1.02  # our slowest context / our fastest
PACKAGES = ["liger-export", "onnxruntime", "onnxruntime-genai", "llama-cpp-python", "transformers", "torch"]


@dataclass(frozen=True)
class Stage:
    """Systems that are loaded together, and their measurements.

    Attributes:
        names: the systems.
        contexts: context lengths to decode at.
        prompts: rounds of reading a prompt, by prompt length. The last prompt stays as the first context.
    """

    names: list[str]
    contexts: list[int]
    prompts: dict[int, int] = field(default_factory=dict)


STAGES = [
    Stage([OURS, *PEERS, GRAPHS[0]], [4096, 128], {512: 5, 4096: 3}),
    Stage([OURS, *PEERS[:2], *GRAPHS], [16384, 32768]),
    Stage(["Liger int8", "llama.cpp Q8_0", "transformers bf16"], [128, 4096, 16384], {512: 3}),
]
QUICK_STAGES = [Stage([OURS, *PEERS], [4096, 128], {512: 3, 4096: 1})]


class Results:
    """Results of a run.

    Attributes:
        decode: milliseconds of each round's tokens, by context, then by system.
        prompts: seconds of each round, by prompt length, then by system.
        filled: how the cache was filled, by context, then by system.
        loaded: memory after loading, by system.
        longest: memory at the longest context that was reached, by system.
        bandwidth: bytes per second that the machine read before each round, by context.
    """

    def __init__(self) -> None:
        self.decode: dict[int, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
        self.prompts: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.filled: dict[int, dict[str, str]] = defaultdict(dict)
        self.loaded: dict[str, dict[str, int]] = {}
        self.longest: dict[str, dict[str, int]] = {}
        self.bandwidth: dict[int, list[float]] = defaultdict(list)

    @property
    def every_bandwidth(self) -> list[float]:
        return list(chain(*self.bandwidth.values()))

    def share_of_rounds(self, context: int, name: str) -> float:
        """Bytes of weights that a system reads in a second, of what the machine read just before: median of rounds."""
        read = [self.loaded[name]["weight_bytes"] / np.median(times) * 1e3 for times in self.decode[context][name]]
        return float(np.median(np.divide(read, self.bandwidth[context])))

    def milliseconds(self, context: int, name: str) -> float:
        return float(np.median(np.concatenate(self.decode[context][name])))


def note(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def run_stage(stage: Stage, args: argparse.Namespace, probe: Probe, results: Results) -> None:
    names = [name for name in stage.names if name in args.systems]
    processes: dict[str, RunnerProcess] = {}
    contexts = [context for context in stage.contexts if context in args.contexts]
    longest = max([*contexts, *([] if args.no_prompts else stage.prompts)], default=0)
    if not longest:
        return
    for name in names:
        length = min(longest, LONGEST.get(name, longest))
        processes[name] = RunnerProcess(name, args.directory, args.threads, length, args.read)
        results.loaded.setdefault(name, processes[name].loaded)
    note(f"loaded {', '.join(names)}")
    for length, rounds in () if args.no_prompts else stage.prompts.items():
        read_prompts(length, rounds, processes, results)
    for context in contexts:
        decode_rounds(context, processes, args, probe, results)
    for name, process in processes.items():
        results.longest[name] = process.ask(do="memory")
        process.close()


def read_prompts(length: int, rounds: int, processes: dict[str, RunnerProcess], results: Results) -> None:
    """Measure the time to read a prompt from an empty sequence, in rounds."""
    names = [name for name in processes if name not in GRAPHS]
    for index in range(rounds):
        for name in rotated(names, index):
            if index == 0 or name in EVERY_ROUND or length <= 512:
                results.prompts[length][name].append(processes[name].fill(length, clear=True))
    note(f"read prompts of {length:,}")


def decode_rounds(
    context: int, processes: dict[str, RunnerProcess], args: argparse.Namespace, probe: Probe, results: Results
) -> None:
    """Fill every system to the context, then let them decode in turns."""
    names = [name for name in processes if context <= LONGEST.get(name, context)]
    names = [name for name in names if name not in GRAPHS or context >= GRAPH_SHORTEST]
    for name in names:
        if processes[name].length != context:
            processes[name].fill(context, clear=context < processes[name].length)
        results.filled[context][name] = processes[name].how
    note(f"filled {context:,}")
    for index in range(args.rounds):
        results.bandwidth[context].append(probe.bytes_per_second())
        for name in rotated(names, index):
            times = processes[name].ask(do="decode", tokens=args.tokens)["milliseconds"]
            results.decode[context][name].append(times)
    note(f"decoded at {context:,}")


def rotated(names: list[str], index: int) -> list[str]:
    start = index % len(names)
    return names[start:] + names[:start]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def decode_table(results: Results) -> str:
    contexts = sorted(results.decode)
    rows = []
    for name in RUNNERS:
        measured = {context: results.decode[context].get(name) for context in contexts}
        if any(measured.values()):
            rows.append(
                [name, *(Spread.of(list(chain(*rounds))).text() if rounds else "" for rounds in measured.values())]
            )
    return table(["decode, ms per token", *(f"{context:,}" for context in contexts)], rows)


def prompt_table(results: Results) -> str:
    lengths = sorted(results.prompts)
    rows = []
    for name in RUNNERS:
        measured = {length: results.prompts[length].get(name) for length in lengths}
        if any(measured.values()):
            cells = [Spread.of([n / s for s in seconds]).text(0) if seconds else "" for n, seconds in measured.items()]
            rows.append([name, *cells])
    return table(["prefill, tokens per second", *(f"{length:,}" for length in lengths)], rows)


def memory_table(results: Results, best: float) -> str:
    rows = []
    for name, loaded in results.loaded.items():
        reached = max((context for context in results.decode if results.decode[context].get(name)), default=0)
        shortest = min((context for context in results.decode if results.decode[context].get(name)), default=0)
        row = [name, f"{loaded['weight_bytes'] / 1e6:,.0f}"]
        rate = loaded["weight_bytes"] / results.milliseconds(shortest, name) * 1e3 if shortest else 0.0
        row += [f"{rate / 1e9:.1f}", f"{rate / best:.0%}"]
        row.append(f"{results.share_of_rounds(shortest, name):.0%}" if shortest else "")
        row += [f"{results.loaded[name]['peak'] / 1e6:,.0f}", f"{results.longest[name]['peak'] / 1e6:,.0f}"]
        rows.append([*row, f"{reached:,}"])
    head = ["", "weights, MB", "read, GB/s", "of the best bandwidth", "of the same round's"]
    return table([*head, "peak RSS loaded, MB", "at longest, MB", "longest"], rows)


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """Divide round by round, so that a disturbance of a round affects both sides."""
    return [peer / own for peer, own in zip(theirs, ours, strict=True)]


def goal(name: str, measured: str, value: float, bound: float, at_most: bool = False) -> list[str]:
    met = value <= bound if at_most else value >= bound
    return [name, measured, f"{'<=' if at_most else '>='} {bound:g}", "met" if met else "missed"]


def goals_table(results: Results, best: float) -> str:
    """Compare with the goals that this run covers. Relative speeds are medians over the rounds' ratios."""
    rows = []
    for context, bound in DECODE_GOALS.items():
        measured = results.decode.get(context, {})
        substitutes = [name for name in GRAPHS if name.removesuffix(", graph") not in measured]
        peers = [name for name in measured if name in PEERS + substitutes]
        if peers and results.decode[context].get(OURS):
            fastest = min(peers, key=lambda name: results.milliseconds(context, name))
            rounds = [[float(np.median(r)) for r in results.decode[context][name]] for name in (OURS, fastest)]
            times = ratios(*rounds)
            what = f"decode at {context:,}: speed relative to {fastest}"
            rows.append(goal(what, Spread.of(times).text(2), float(np.median(times)), bound))
    for length, bound in PREFILL_GOALS.items():
        prompts = results.prompts.get(length, {})
        peers = [name for name in prompts if name in PEERS and len(prompts[name]) == len(prompts.get(OURS, []))]
        if peers:
            fastest = min(peers, key=lambda name: float(np.median(prompts[name])))
            times = ratios(prompts[OURS], prompts[fastest])
            what = f"prefill of {length:,}: speed relative to {fastest}"
            rows.append(goal(what, Spread.of(times).text(2), float(np.median(times)), bound))
    own = {
        context: results.milliseconds(context, OURS) for context in results.decode if OURS in results.decode[context]
    }
    if own:
        slowest = max(own.values()) / min(own.values())
        what = f"{OURS}: slowest context / fastest, {min(own):,} to {max(own):,}"
        rows.append(goal(what, f"{slowest:.3f}", slowest, CONSTANT_GOAL, at_most=True))
        share = results.loaded[OURS]["weight_bytes"] / own[min(own)] * 1e3 / best
        what = f"{OURS}: weights read at {min(own):,}, share of the best bandwidth"
        rows.append(goal(what, f"{share:.2f}", share, BANDWIDTH_GOAL))
        share = results.share_of_rounds(min(own), OURS)
        what = f"{OURS}: weights read at {min(own):,}, share of the bandwidth of the same round"
        rows.append(goal(what, f"{share:.2f}", share, BANDWIDTH_GOAL))
    return table(["goal", "measured", "bound", ""], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="directory that prepare.py wrote")
    parser.add_argument("--quick", action="store_true", help="only int4, at contexts 128 and 4,096")
    parser.add_argument("--no-prompts", action="store_true", help="measure decoding only")
    parser.add_argument(
        "--systems", nargs="+", choices=RUNNERS, default=list(RUNNERS), metavar="NAME", help="default: all"
    )
    parser.add_argument("--contexts", nargs="+", type=int, default=list(DECODE_GOALS), help="default: all")
    parser.add_argument("--read", type=int, default=4096, help="tokens that llama.cpp reads before it repeats them")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of decoding at each context")
    parser.add_argument("--tokens", type=int, default=16, help="tokens that a system decodes per round")
    parser.add_argument("--threads", type=int, default=2, help="threads of each system and of the bandwidth probe")
    parser.add_argument("--json", type=Path, help="file for all results")
    args = parser.parse_args()

    load, start = os.getloadavg()[0], time.time()
    probe, results = Probe(args.threads), Results()
    for stage in QUICK_STAGES if args.quick else STAGES:
        if set(stage.names) & set(args.systems):
            run_stage(stage, args, probe, results)
            if args.json:  # after each stage, so that an interrupted run keeps its results
                args.json.write_text(json.dumps({**vars(results), "load": load}, indent=1) + "\n")
    best = max(results.every_bandwidth)
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    print(f"{processor_name()}, {os.cpu_count()} cores, {args.threads} threads. {versions}.")
    print(f"{args.rounds} rounds of {args.tokens} tokens; {time.time() - start:.0f} s, load before the run {load:.1f}.")
    bandwidth = Spread.of(results.every_bandwidth).scaled(1e-9)
    print(f"Read bandwidth: best {best / 1e9:.1f} GB/s; {bandwidth.text()} over the run.\n")
    print(decode_table(results))
    if results.prompts:
        print(prompt_table(results))
    print(memory_table(results, best))
    print(goals_table(results, best))


if __name__ == "__main__":
    main()
