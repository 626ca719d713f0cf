"""Tokens a second of several sequences together and of one, alternating in one process.

    python benchmarks/serve/streams.py PACKAGE

Prints the median and, in parentheses, the 10th to 90th percentile. Steps only: sampling and decoding are not counted.
"""

import argparse
from pathlib import Path

import numpy as np

from liger_export.bench.timing import Spread, timed
from liger_export.runtime import load
from liger_export.runtime.slots import Slots

PROMPT = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4, 8], help="sequences (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of steps (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="steps a round (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of ONNX Runtime (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    args = parser.parse_args()
    session = load(args.package, device=args.device, threads=args.threads)
    texts = np.random.default_rng(0).integers(0, session.manifest.model_config.vocab_size, (max(args.streams), PROMPT))
    full = {count: filled(Slots.of(session.executor, count), texts[:count]) for count in args.streams}
    rates: dict[int, list[float]] = {count: [] for count in full}
    for _ in range(args.rounds):
        for count, slots in full.items():
            rates[count] += [count / timed(lambda slots=slots: step(slots))[1] for _ in range(args.steps)]
    for count, values in rates.items():
        print(f"{session.lowering}, {count} together: {Spread.of(values).text()} tokens/s")


def filled(slots: Slots, texts: np.ndarray) -> Slots:
    """Read a text into each slot, and run one step, which binds or captures the call."""
    for text in texts:
        row = slots.open()
        slots.read(row, text)
        slots.join(row)
    for _ in range(3):  # both sets of buffers
        step(slots)
    return slots


def step(slots: Slots) -> None:
    for prediction in slots.step([1] * len(slots.running)):
        prediction.argmax()


if __name__ == "__main__":
    main()
