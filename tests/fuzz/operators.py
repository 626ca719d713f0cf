"""Fuzz the CPU operators, compiled with AddressSanitizer and UndefinedBehaviorSanitizer.

Random calls, many of them with a defect, run in a stand-in for ONNX Runtime (``ort_host.h``): wrong shapes, dtypes and
attributes, absent inputs, empty and huge tensors, NaN and infinities, memory that runs out. The reference
(``reference.h``, plain loops in float64) says which calls must be refused, and the answer of the others. A case is a
function of its seed and number (``cases.h``).

    python -m tests.fuzz.operators --cases 10000 --seed 0
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.counts import Counts, Outcome
from tests.plugins.instructions import QUICK, SOURCES, instruction_sets

__all__ = ["build", "fuzz"]

HERE = Path(__file__).parent
FLAGS = ["-std=c++17", "-g", *QUICK, "-Wno-psabi", f"-I{SOURCES}", f"-I{HERE}"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
CHECKED_BY_CALLS = ["--param", "asan-instrumentation-with-call-threshold=0"]  # less code than checks in place
OUTCOMES = {"refused": Outcome.REFUSED, "same": Outcome.SAME, "wrong": Outcome.WRONG}  # words of operators.cpp
# Leaks are not looked for: that needs to trace the process, which containers forbid.
OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}


def build(folder: Path) -> Path:
    """Compile the library's CPU operators and the fuzzer into one program, whose path is returned."""
    sets, program = instruction_sets("avx2", "avx512"), folder / "operators"
    names = ("library.cpp", "cpu_top_logits.cpp", "cpu_linear_operator.cpp")
    sources = [HERE / "operators.cpp", *(SOURCES / name for name in names)]
    has = [f"-DLIGER_HAS_{name.upper()}" for name in sets if name != "baseline"]
    units = [(source, has) for source in sources]
    kernels = {name: [*flags, f"-DLIGER_INSTRUCTIONS={name}"] for name, flags in sets.items()}
    units += [(SOURCES / "cpu_attention.cpp", flags) for flags in kernels.values()]
    # The largest unit, so it is compiled for one instruction set only, and for addresses only.
    best = "avx2" if "avx2" in sets else "baseline"
    linear = [*kernels[best], "-g0", "-fno-sanitize=undefined", *CHECKED_BY_CALLS]
    units.append((SOURCES / "cpu_linear.cpp", linear))
    objects = []
    for number, (source, flags) in enumerate(units):
        objects.append(str(folder / f"{number}.o"))
        subprocess.run(["g++", *FLAGS, *SANITIZERS, *flags, "-c", str(source), "-o", objects[-1]], check=True)
    subprocess.run(["g++", *SANITIZERS, *objects, "-o", str(program), "-lpthread"], check=True)
    return program


def fuzz(program: Path, cases: int, seed: int = 0, first: int = 0) -> Counts:
    """Run cases, going on after each that ends the program."""
    counts, last = Counts(), first + cases
    while first < last:
        command = [str(program), str(seed), str(first), str(last)]
        ended = subprocess.run(command, env=os.environ | OPTIONS, capture_output=True, text=True, check=False)
        started, done = "", ""
        for line in ended.stdout.splitlines():
            number, kind, outcome, *rest = line.split(" ", 3)
            if outcome == "started":
                started = f"{number} {kind}"
                continue
            counts.add(kind, OUTCOMES[outcome], f"{''.join(rest)} ({_repeat(seed, number)})")
            done = f"{number} {kind}"
        number, kind = started.split()
        if started != done:
            outcome = Outcome.HANG if ended.returncode == -signal.SIGALRM else Outcome.CRASH
            counts.add(kind, outcome, f"{_cause(ended.stderr)} ({_repeat(seed, number)})")
        first = int(number) + 1
    return counts


def _repeat(seed: int, number: str) -> str:
    return f"python -m tests.fuzz.operators --seed {seed} --first {number} --cases 1"


def _cause(errors: str) -> str:
    found = re.search(r"AddressSanitizer: .*|runtime error: .*|terminate called .*", errors)
    return found.group() if found else "no report"


def main() -> int:
    """Print the table of outcomes and the faults. The exit status is 1 if there is a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.operators", description="Fuzz the CPU operators.")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = fuzz(build(Path(folder)), arguments.cases, arguments.seed, arguments.first)
    print(counts.table())
    print("\n".join(counts.faults[:20]), end="\n" if counts.faults else "")
    return 1 if counts.faults else 0


if __name__ == "__main__":
    sys.exit(main())
