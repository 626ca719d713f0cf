"""Speed of a package's stock and fused graphs on the CPU, alternating in one process.

    python benchmarks/lowerings.py PACKAGE

PACKAGE needs a fused graph (``convert --lowering fused``). Prints the median and, in parentheses, the 10th to 90th
percentile.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np

from liger_export.bench.timing import Spread, timed
from liger_export.runtime import load

PROMPT, STEPS = 512, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of prefill and steps (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of ONNX Runtime (default: %(default)s)")
    args = parser.parse_args()
    sessions = [load(args.package, device="cpu", lowering=name, threads=args.threads) for name in ("stock", "fused")]
    vocab_size = sessions[0].manifest.model_config.vocab_size
    prompt = np.random.default_rng(0).integers(0, vocab_size, PROMPT).tolist()
    milliseconds: dict[str, list[float]] = {session.lowering: [] for session in sessions}
    rates: dict[str, list[float]] = {session.lowering: [] for session in sessions}
    for _ in range(args.rounds):
        for session in sessions:
            session.reset()
            rates[session.lowering].append(PROMPT / timed(partial(session.prefill, prompt))[1])
            for token in prompt[:STEPS]:
                milliseconds[session.lowering].append(timed(partial(session.step, token))[1] * 1e3)
    for name in milliseconds:
        step, prefill = Spread.of(milliseconds[name]), Spread.of(rates[name])
        print(f"{name}: {step.text(2)} ms per step, prefill {prefill.text()} tokens/s")


if __name__ == "__main__":
    main()
