"""Speed of a package's stock and fused graphs on the CPU, alternating in one process.

    python benchmarks/lowerings.py PACKAGE ...

PACKAGE needs a fused graph (``convert --lowering fused``). Prints the median and, in parentheses, the 10th to 90th
percentile. Several packages are measured in turns. The stock graph of a bfloat16 package does not run.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np

from liger_export.bench.timing import Spread, timed
from liger_export.package import FUSED, STOCK, read_manifest
from liger_export.runtime import load

PROMPT, STEPS = 512, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, nargs="+", metavar="PACKAGE")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of prefill and steps (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of ONNX Runtime (default: %(default)s)")
    args = parser.parse_args()
    sessions = {
        f"{package.name}, {lowering}": load(package, device="cpu", lowering=lowering, threads=args.threads)
        for package in args.packages
        for lowering in (FUSED, *([STOCK] if read_manifest(package).activations != "bfloat16" else []))
    }
    vocab_size = next(iter(sessions.values())).manifest.model_config.vocab_size
    prompt = np.random.default_rng(0).integers(0, vocab_size, PROMPT).tolist()
    milliseconds: dict[str, list[float]] = {name: [] for name in sessions}
    rates: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(args.rounds):
        for name, session in sessions.items():
            session.reset()
            rates[name].append(PROMPT / timed(partial(session.prefill, prompt))[1])
            for token in prompt[:STEPS]:
                milliseconds[name].append(timed(partial(session.step, token))[1] * 1e3)
    for name in milliseconds:
        step, prefill = Spread.of(milliseconds[name]), Spread.of(rates[name])
        print(f"{name}: {step.text(2)} ms per step, prefill {prefill.text()} tokens/s")


if __name__ == "__main__":
    main()
