"""A runner in its own process. It keeps its model loaded, and reads, decodes and measures itself on request.

``RunnerProcess`` starts one. Only one process computes at a time, so systems can alternate within one run. run.py and
prepare.py start this file as a script:

    python benchmarks/peers/process.py "Liger int4" DIRECTORY --length 4096
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from runners import RUNNERS, Llama, Runner, tokens_for

# This file imports no library that a runner does not need: the process's memory is measured.

WARM_UP = 2  # tokens decoded before those that are timed
CHECK_TOKENS = 16


def memory() -> dict[str, int]:
    """Return this process's resident bytes, now and at their peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return {"resident": int(fields["VmRSS"]) * 1024, "peak": int(fields["VmHWM"]) * 1024}


def decode(runner: Runner, tokens: int) -> dict[str, Any]:
    """Decode tokens after the mark, return to the mark, and report the milliseconds of each token."""
    ids = tokens_for(0, WARM_UP + tokens)
    times = []
    for token in ids:
        started = time.perf_counter()
        runner.step(token)
        times.append((time.perf_counter() - started) * 1e3)
    runner.rewind()
    return {"milliseconds": times[WARM_UP:]}


def answer(runner: Runner, request: dict[str, Any]) -> dict[str, Any]:
    match request["do"]:
        case "fill":  # from an empty sequence, this is the time to the first token
            if request["clear"]:
                runner.clear()
            started = time.perf_counter()
            how = runner.fill(request["length"])
            return {"how": how, "seconds": time.perf_counter() - started}
        case "decode":
            return decode(runner, request["tokens"])
        case "check":
            runner.clear()
            return {"logits": runner.read(tokens_for(0, CHECK_TOKENS)).tolist()}
        case "memory":
            return {**memory(), "weight_bytes": runner.weight_bytes}
        case other:
            raise SystemExit(f"There is no request {other!r}.")


class RunnerProcess:
    """A process with a loaded runner, waiting for requests.

    Attributes:
        name: a key of ``RUNNERS``.
        loaded: memory after loading and one token.
        length: tokens in the sequence.
        how: how the sequence was filled.
    """

    def __init__(self, name: str, directory: Path, threads: int, length: int, read: int = Llama.block) -> None:
        command = [sys.executable, __file__, name, directory, "--threads", threads, "--length", length, "--read", read]
        self.name = name
        self._process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.loaded = self._receive()
        self.length, self.how = 0, ""

    def fill(self, length: int, *, clear: bool) -> float:
        """Extend the sequence to ``length`` tokens, from an empty one if asked. Return the seconds."""
        filled = self.ask(do="fill", length=length, clear=clear)
        self.length, self.how = length, filled["how"]
        return float(filled["seconds"])

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._receive()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with exit code {self._process.wait()}.")
        received: dict[str, Any] = json.loads(line)
        return received


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RUNNERS)
    parser.add_argument("directory", type=Path, help="directory that prepare.py wrote")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--length", type=int, required=True, help="longest context, in tokens")
    parser.add_argument("--read", type=int, default=Llama.block, help="tokens that llama.cpp reads before it repeats")
    args = parser.parse_args()

    Llama.block = args.read
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps what libraries print out of the replies
    make, package = RUNNERS[args.name]
    runner = make(args.directory, package, args.threads, args.length)
    runner.read([0])
    runner.clear()
    print(json.dumps(answer(runner, {"do": "memory"})), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(runner, json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
