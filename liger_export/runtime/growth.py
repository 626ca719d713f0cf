"""Measure, in a process of its own, whether memory grows while a session reads tokens.

python -m liger_export.runtime.growth PACKAGE --tokens 100000
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from liger_export.ort import ort
from liger_export.runtime.buffers import CPU
from liger_export.runtime.opening import load
from liger_export.runtime.session import Session

__all__ = ["FIRST_TOKEN", "Growth", "measure_growth"]

FIRST_TOKEN = 64
WARM_UP = 1024
SAMPLES = 64
MOST_TEXTS = 3


@dataclass(frozen=True, slots=True)
class Growth:
    """Anonymous memory of a process (what it has allocated, not the files it maps) while tokens are read one by one.

    Attributes:
        from_token: tokens read at the first sample.
        to_token: tokens read at the last.
        bytes_grown: the last sample less the first.
        bytes_per_token: slope of the line of least squares through all samples.
        texts: texts read one after the other, the last of which these figures are of.
        onnxruntime: version.
    """

    from_token: int
    to_token: int
    bytes_grown: int
    bytes_per_token: float
    texts: int
    onnxruntime: str


def measure_growth(
    package: Path, to_token: int, threads: int | None = None, lowering: str | None = None, device: str = CPU
) -> Growth:
    """Read ``to_token`` tokens with a package, sampling memory 64 times from token 64 on.

    On a busy machine a page may be touched for the first time very late. What grows with the tokens grows in every
    text; so where memory grew, another text of the same length is read, three at most, and the last one counts.
    """
    session = load(package, device=device, lowering=lowering, threads=threads)
    for token in range(WARM_UP):  # lets everything be touched once
        session.step(token % session.manifest.model_config.vocab_size)
        _anonymous_bytes()
    samples, texts = _samples(session, to_token), 1
    while samples[1, -1] > samples[1, 0] and texts < MOST_TEXTS:
        samples, texts = _samples(session, to_token), texts + 1
    tokens, memory = samples.astype(np.float64)
    centred = tokens - tokens.mean()
    return Growth(
        from_token=int(samples[0, 0]),
        to_token=int(samples[0, -1]),
        bytes_grown=int(samples[1, -1] - samples[1, 0]),
        bytes_per_token=float(centred @ (memory - memory.mean()) / (centred @ centred)),
        texts=texts,
        onnxruntime=ort.__version__,
    )


def _samples(session: Session, to_token: int) -> npt.NDArray[np.int64]:
    """Tokens read and bytes held, [2, samples], over one text from its start."""
    vocab_size = session.manifest.model_config.vocab_size
    samples = np.ones((2, SAMPLES), dtype=np.int64)
    samples[0] = np.linspace(FIRST_TOKEN, to_token, SAMPLES)
    session.reset()
    taken = 0
    for count in range(1, to_token + 1):
        session.step(count * 7919 % vocab_size)  # all over the vocabulary
        if count == samples[0, taken]:
            samples[1, taken] = _anonymous_bytes()
            taken += 1
    return samples


def _anonymous_bytes() -> int:
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def main() -> None:
    """Print a measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--lowering")
    parser.add_argument("--device", default=CPU)
    args = parser.parse_args()
    growth = measure_growth(args.package, args.tokens, args.threads, args.lowering, args.device)
    print(json.dumps(asdict(growth)))


if __name__ == "__main__":
    main()
