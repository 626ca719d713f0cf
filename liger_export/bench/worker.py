"""One contender at one context, alone in a process: ``measure`` starts it with a JSON job and reads a JSON answer."""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from liger_export.bench.contenders import Contender, PackageContender, TransformerContender
from liger_export.bench.report import Sample
from liger_export.errors import LigerExportError

__all__ = ["PACKAGE", "TRANSFORMER", "Job", "measure_contender", "run_job"]

PACKAGE, TRANSFORMER = "package", "transformer"
WARM_TOKENS = 512  # the package's largest call; shorter contexts warm up at their own length
WARM_STEPS = 4


@dataclass(frozen=True, slots=True)
class Job:
    """What one process measures.

    Attributes:
        contender: ``PACKAGE`` or ``TRANSFORMER``.
        directory: of the package or checkpoint.
        context: tokens to read first.
        tokens: to decode after them.
        threads: of the contender.
        dtype: of a transformer.
        seed: of the random tokens, the same for every contender.
    """

    contender: str
    directory: str
    context: int
    tokens: int
    threads: int
    dtype: str
    seed: int


def run_job(job: Job) -> Sample:
    """Open the contender and measure it; nothing else runs in this process."""
    directory = Path(job.directory)
    contender: Contender = (
        PackageContender(directory, job.threads)
        if job.contender == PACKAGE
        else TransformerContender(directory, job.threads, job.dtype)
    )
    return measure_contender(contender, job.context, job.tokens, job.seed)


def measure_contender(contender: Contender, context: int, tokens: int, seed: int = 0) -> Sample:
    """Warm up, read ``context`` random tokens, decode ``tokens`` more, each timed with the choice of the next."""
    prompt = np.random.default_rng(seed).integers(0, contender.vocab_size, context).tolist()
    token = contender.prefill(prompt[:WARM_TOKENS])
    for _ in range(WARM_STEPS):
        token = contender.step(token)
    _reset_peak()
    started = time.perf_counter()
    token = contender.prefill(prompt)
    prefill_seconds = time.perf_counter() - started
    memory_bytes = contender.memory_bytes()
    steps = []
    for _ in range(tokens):
        started = time.perf_counter()
        token = contender.step(token)
        steps.append(time.perf_counter() - started)
    measured = prefill_seconds if contender.reads(context) else None
    return Sample(measured, tuple(steps), memory_bytes, _peak_rss())


def _reset_peak() -> None:
    """Forget what loading took; where the kernel does not let us, the peak includes it."""
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
