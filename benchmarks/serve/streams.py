"""Tokens a second of several sequences together and of one, alternating in one process.

    python benchmarks/serve/streams.py PACKAGE [--streams 1 8 64 256 --device cuda --check 32]

Prints the median and, in parentheses, the 10th to 90th percentile. Steps only: sampling and decoding are not counted.
The rate in GB/s counts what a step moves: the weights once, and the state of each sequence twice. With ``--check``,
the logits of the sequences together are first compared with those of each sequence by itself.
"""

import argparse
from pathlib import Path

import numpy as np

from liger_export.bench.timing import Spread, timed
from liger_export.parity.compare import relative_l2
from liger_export.runtime import Session, load
from liger_export.runtime.slots import Slots

PROMPT = 16
CHECKED = 16  # sequences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4, 8], help="sequences (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of steps (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="steps a round (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of ONNX Runtime (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--check", type=int, metavar="STEPS", default=0, help="greedy steps to compare")
    args = parser.parse_args()
    session = load(args.package, device=args.device, threads=args.threads)
    texts = np.random.default_rng(0).integers(0, session.manifest.model_config.vocab_size, (max(args.streams), PROMPT))
    if args.check:
        check(session, texts[:CHECKED], args.check)
    full = {count: filled(Slots.of(session.executor, count), texts[:count]) for count in args.streams}
    rates: dict[int, list[float]] = {count: [] for count in full}
    for _ in range(args.rounds):
        for count, slots in full.items():
            rates[count] += [count / timed(lambda slots=slots: step(slots))[1] for _ in range(args.steps)]
    weights = max(path.stat().st_size for path in args.package.glob("*.data"))
    for count, values in rates.items():
        spread = Spread.of(values)
        moved = (weights + 2 * count * session.state_bytes) * spread.median / count
        print(f"{session.lowering}, {count} together: {spread.text()} tokens/s, {moved / 1e9:,.0f} GB/s")


def check(session: Session, texts: np.ndarray, steps: int) -> None:
    """Raise AssertionError if the logits of steps together differ from those alone by more than roundings explain.

    Roundings are measured: the logits of single steps against those of one call for the whole text.
    """
    alone, whole, chosen = [], [], []
    for text in texts:
        session.reset()
        logits = [session.prefill(text.tolist())]
        for _ in range(steps):
            logits.append(session.step(int(logits[-1].argmax())))
        alone.append(logits)
        chosen.append([int(row.argmax()) for row in logits])
        session.reset()
        whole.append(session.all_logits([*text.tolist(), *chosen[-1][:-1]])[len(text) - 1 :])
    slots, together = Slots.of(session.executor, len(texts)), []
    for text in texts:
        row = slots.open()
        together.append([slots.read(row, text).last_logits().copy()])
        slots.join(row)
    for index in range(steps):
        for logits, prediction in zip(together, slots.step([tokens[index] for tokens in chosen]), strict=True):
            logits.append(prediction.last_logits().copy())
    distance, rounding = relative_l2(np.array(together), np.array(alone)), relative_l2(np.array(whole), np.array(alone))
    print(f"steps of {len(texts)} sequences together: {distance:.1e} from those alone, one call: {rounding:.1e}")
    assert distance <= 2 * rounding


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
