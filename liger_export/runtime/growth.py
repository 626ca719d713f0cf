"""Measure in a separate process whether memory grows while a session reads tokens.

python -m liger_export.runtime.growth PACKAGE --tokens 100000
"""

import argparse
import gc
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from liger_export.ort import ort
from liger_export.runtime.buffers import CPU
from liger_export.runtime.opening import load
from liger_export.runtime.session import Session

__all__ = ["FIRST_TOKEN", "MAX_TEXTS", "Growth", "anonymous_bytes", "measure_growth"]

FIRST_TOKEN = 64
WARM_UP = 1024
SAMPLES = 64
MAX_TEXTS = 3


@dataclass(frozen=True, slots=True)
class Growth:
    """Growth of a process's anonymous memory (allocated memory, without mapped files) while it reads tokens one by one.

    Attributes:
        from_token: Number of tokens read at the first sample.
        to_token: Number of tokens read at the last sample.
        bytes_grown: The last sample minus the first.
        bytes_per_token: Slope of the least-squares line through all samples.
        texts: Number of texts read one after the other. The other values describe the last one.
        onnxruntime: Version of ONNX Runtime.
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
    """Read ``to_token`` tokens with a package and sample memory 64 times, starting at token 64.

    On a busy machine a page may be touched for the first time very late. Memory that grows with the number of tokens
    grows in every text. If memory grew, another text of the same length is read, up to three in all; the last one
    counts.
    """
    session = load(package, device=device, lowering=lowering, threads=threads)
    for token in range(WARM_UP):  # touches every page once
        session.step(token % session.manifest.model_config.vocab_size)
        anonymous_bytes()
    _samples(session, FIRST_TOKEN)  # and everything else that a text allocates once
    samples, texts = _samples(session, to_token), 1
    while samples[1, -1] > samples[1, 0] and texts < MAX_TEXTS:
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
    """Read one text. Returns the number of tokens read and bytes held at each sample, [2, samples]."""
    vocab_size = session.manifest.model_config.vocab_size
    samples = np.ones((2, SAMPLES), dtype=np.int64)
    samples[0] = np.linspace(FIRST_TOKEN, to_token, SAMPLES)
    session.reset()
    taken = 0
    for count in range(1, to_token + 1):
        session.step(count * 7919 % vocab_size)  # spread over the vocabulary
        if count == samples[0, taken]:
            gc.collect()  # unreachable cycles are not growth, and would be freed at any time
            samples[1, taken] = anonymous_bytes()
            taken += 1
    return samples


def anonymous_bytes() -> int:
    """Return the bytes of this process's anonymous memory."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def main() -> None:
    """Measure and print the result as JSON."""
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
