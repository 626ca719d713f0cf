"""Tokens a second of several sequences together in Hugging Face transformers' continuous batching, on a GPU.

    python benchmarks/serve/transformers_streams.py --streams 1 8 64 256

Random weights of Llama-3-8B's shape in bfloat16. Each sequence has a prompt of 16 tokens and chooses 128 more. The time
includes the prompts, which are as short as those of streams.py.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from transformers import GenerationConfig

from liger_export.bench.timing import Spread

sys.path.insert(0, str(Path(__file__).parents[1]))
from transformers_decode import random_model

PROMPT, TOKENS = 16, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="8b", help="1b or 8b (default: %(default)s)")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model = random_model(args.shape, "cuda")
    settings = GenerationConfig(max_new_tokens=TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0)
    random = np.random.default_rng(0)
    for count in args.streams:
        prompts = random.integers(1, 100_000, (count, PROMPT)).tolist()
        rates = []
        for _ in range(1 + args.rounds):  # the first one captures graphs
            started = time.perf_counter()
            answers = model.generate_batch(inputs=prompts, generation_config=settings, persistent_manager=True)
            seconds = time.perf_counter() - started
            rates.append(sum(len(answer.generated_tokens) for answer in answers.values()) / seconds)
        print(f"transformers, {count} together: {Spread.of(rates[1:]).text()} tokens/s", flush=True)


if __name__ == "__main__":
    main()
