"""Measurement of one system at one context, in its own process.

``measure`` starts the process with a job in JSON and reads the answer in JSON.
"""

import json
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from liger_export.bench.report import Sample
from liger_export.bench.systems import PackageSystem, System, TransformerSystem
from liger_export.bench.timing import timed
from liger_export.errors import LigerExportError

__all__ = ["PACKAGE", "TRANSFORMER", "Job", "measure_system", "run_job"]

PACKAGE, TRANSFORMER = "package", "transformer"
WARM_UP_TOKENS = 512  # the package's largest call; a shorter context warms up at its own length
WARM_UP_STEPS = 4


@dataclass(frozen=True, slots=True)
class Job:
    """One process's measurement.

    Attributes:
        system: ``PACKAGE`` or ``TRANSFORMER``.
        directory: the package or checkpoint directory.
        context: tokens to read before decoding.
        tokens: tokens to decode.
        threads: threads of the system.
        dtype: dtype of a transformer.
        seed: seed of the random tokens, the same for every system.
    """

    system: str
    directory: str
    context: int
    tokens: int
    threads: int
    dtype: str
    seed: int


def run_job(job: Job) -> Sample:
    """Open the system and measure it; nothing else runs in this process."""
    directory = Path(job.directory)
    system: System = (
        PackageSystem(directory, job.threads)
        if job.system == PACKAGE
        else TransformerSystem(directory, job.threads, job.dtype)
    )
    return measure_system(system, job.context, job.tokens, job.seed)


def measure_system(system: System, context: int, tokens: int, seed: int = 0) -> Sample:
    """Warm up, read ``context`` random tokens, then decode ``tokens`` more. Times include choosing the next token."""
    prompt = np.random.default_rng(seed).integers(0, system.vocab_size, context).tolist()
    token = system.prefill(prompt[:WARM_UP_TOKENS])
    for _ in range(WARM_UP_STEPS):
        token = system.step(token)
    _reset_peak()
    token, prefill_seconds = timed(lambda: system.prefill(prompt))
    memory_bytes = system.memory_bytes()
    steps = []
    for _ in range(tokens):
        token, seconds = timed(partial(system.step, token))
        steps.append(seconds)
    measured = prefill_seconds if system.reads(context) else None
    return Sample(measured, tuple(steps), memory_bytes, _peak_rss())


def _reset_peak() -> None:
    """Exclude loading from the peak, if the kernel permits it; otherwise the peak includes loading."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_rss() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in status if line.startswith("VmHWM:"))
    return int(kilobytes) * 1024


def main() -> None:
    """Read a job from the command line; print the sample, or the error, as the last line of standard output."""
    try:
        answer = asdict(run_job(Job(**json.loads(sys.argv[1]))))
    except LigerExportError as error:
        answer = {"error": type(error).__name__, "cause": error.cause, "fix": error.fix}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
