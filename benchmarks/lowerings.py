"""A package's stock and fused graph on the CPU, in turns in one process: python benchmarks/lowerings.py PACKAGE."""

import argparse
import time
from pathlib import Path

import numpy as np

from liger_export.runtime import load

PROMPT, STEPS = 512, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    sessions = [load(args.package, device="cpu", lowering=name, threads=args.threads) for name in ("stock", "fused")]
    vocab_size = sessions[0].manifest.model_config.vocab_size
    prompt = np.random.default_rng(0).integers(0, vocab_size, PROMPT).tolist()
    steps: dict[str, list[float]] = {session.lowering: [] for session in sessions}
    prefills: dict[str, list[float]] = {session.lowering: [] for session in sessions}
    for _ in range(args.rounds):
        for session in sessions:
            session.reset()
            started = time.perf_counter()
            session.prefill(prompt)
            prefills[session.lowering].append(PROMPT / (time.perf_counter() - started))
            for token in prompt[:STEPS]:
                started = time.perf_counter()
                session.step(token)
                steps[session.lowering].append((time.perf_counter() - started) * 1e3)
    for name in steps:
        step, prefill = (np.percentile(values[name], (50, 10, 90)) for values in (steps, prefills))
        print(
            f"{name}: {step[0]:.2f} ms a step ({step[1]:.2f}-{step[2]:.2f}), "
            f"prefill {prefill[0]:.1f} tokens/s ({prefill[1]:.1f}-{prefill[2]:.1f})"
        )


if __name__ == "__main__":
    main()
