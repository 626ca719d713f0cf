"""Cost of storing weights in fewer bits: a model's packages in several precisions, measured on held-out text.

    liger-export linearize examples/pycode-7m/base -o liger
    python benchmarks/quality/precisions.py liger TEXT examples/pycode-7m/heldout RESULTS.jsonl \
        --adapter examples/pycode-7m/adapter

The script converts the checkpoint to each precision of ``--only`` and prints a Markdown table: size, perplexity and its
increase over float32, mean KL divergence from float32's predictions, next-token accuracy, and the times of a decoding
step and of the conversion. TEXT is the calibration text of gptq and must differ from the held-out text. Packages are
deleted after the measurement. RESULTS.jsonl gets one line per package, and an interrupted run continues from there.
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from liger_export.bench.timing import timed
from liger_export.convert import convert
from liger_export.data import TextEncoder, token_blocks
from liger_export.parity import LogitParity
from liger_export.precision import BLOCK_SIZES, CALIBRATION_TOKENS, Calibration, Precision
from liger_export.runtime import Session, load

SEQUENCE_LENGTH = 1024
WARM_UP = 20

INT4 = [
    Precision(weights="int4", block_size=size, method=method, symmetric=symmetric)
    for symmetric in (False, True)
    for size in BLOCK_SIZES
    for method in ("rtn", "k-quant", "gptq")
    if method != "k-quant" or not symmetric
]
INT8 = [
    Precision(weights="int8", block_size=size, symmetric=symmetric) for size, symmetric in ((32, False), (128, True))
]
HEAD_INT8 = [
    Precision(weights="int4", lm_head="int8", block_size=size, method=method)
    for size in BLOCK_SIZES
    for method in ("rtn", "gptq")
]
GROUPS = {"fp16": [Precision(weights="fp16")], "int8": INT8, "int4": INT4, "head-int8": HEAD_INT8}


@dataclass(frozen=True, slots=True)
class Result:
    """One package, compared with the float32 package on the same tokens."""

    name: str
    megabytes: float
    perplexity: float
    reference_perplexity: float
    kl: float
    accuracy: float
    predictions: int
    decode_ms: float
    convert_seconds: float


def measure(name: str, package: Path, reference: Path, blocks: list[list[int]], steps: int, seconds: float) -> Result:
    """Read every block with both packages. All tokens of a block but the first are predicted."""
    parity, top1_correct = LogitParity(), 0
    session, exact = load(package), load(reference)
    for block in blocks:
        session.reset()
        exact.reset()
        tokens, targets = block[:-1], np.array(block[1:])
        logits = session.all_logits(tokens)
        parity.add_block(logits, exact.all_logits(tokens), targets)
        top1_correct += int((logits.argmax(-1) == targets).sum())
    return Result(
        name=name,
        megabytes=sum(path.stat().st_size for path in package.iterdir()) / 1e6,
        perplexity=parity.measured_perplexity,
        reference_perplexity=parity.reference_perplexity,
        kl=parity.mean_kl,
        accuracy=top1_correct / parity.scored,
        predictions=parity.scored,
        decode_ms=decode_ms(session, blocks[0], steps),
        convert_seconds=seconds,
    )


def decode_ms(session: Session, tokens: list[int], steps: int) -> float:
    """Return the median time of one step, in milliseconds."""
    session.reset()
    times = []
    for step in range(WARM_UP + steps):
        times.append(timed(partial(session.step, tokens[step % len(tokens)]))[1])
    return statistics.median(times[WARM_UP:]) * 1e3


def table(results: list[Result]) -> str:
    rows = [
        "| weights | MB | perplexity | over fp32 | KL | accuracy | ms per token | convert |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        over = result.perplexity / result.reference_perplexity - 1
        rows.append(
            f"| {result.name} | {result.megabytes:.1f} | {result.perplexity:.3f} | {over:+.2%} | {result.kl:.4f} "
            f"| {result.accuracy:.2%} | {result.decode_ms:.2f} | {result.convert_seconds:.0f} s |"
        )
    return "\n".join(rows)


def read_results(path: Path) -> list[Result]:
    return [Result(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="Liger checkpoint")
    parser.add_argument("text", type=Path, help="calibration text of gptq")
    parser.add_argument("heldout", type=Path, help="text to measure on")
    parser.add_argument("results", type=Path, help="JSONL file for the results")
    parser.add_argument("--adapter", type=Path, action="append", default=[], help="LoRA adapter to merge; repeatable")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="default: all")
    parser.add_argument("--calibration-tokens", type=int, default=CALIBRATION_TOKENS, help="default: %(default)s")
    parser.add_argument("--max-tokens", type=int, help="tokens of the held-out text to read; default: all")
    parser.add_argument("--steps", type=int, default=400, help="decoding steps to time (default: %(default)s)")
    args = parser.parse_args()

    done = {result.name for result in read_results(args.results)}
    with tempfile.TemporaryDirectory() as folder, args.results.open("a") as results:
        reference, package = Path(folder) / "fp32", Path(folder) / "package"
        convert(args.checkpoint, reference, adapters=tuple(args.adapter))
        session = load(reference)
        encoder = TextEncoder.of(reference, session.tokenizer, session.manifest.model_config)
        blocks = token_blocks(encoder, args.heldout, SEQUENCE_LENGTH, args.max_tokens).tolist()
        for precision in [Precision(), *(each for group in args.only for each in GROUPS[group])]:
            if str(precision) in done:
                continue
            calibration = Calibration(args.text, args.calibration_tokens) if precision.method == "gptq" else None
            write = partial(convert, args.checkpoint, package, adapters=tuple(args.adapter), overwrite=True)
            _, seconds = timed(partial(write, precision=precision, calibration=calibration))
            result = measure(str(precision), package, reference, blocks, args.steps, seconds)
            print(json.dumps(asdict(result)), file=results, flush=True)
    print(table(read_results(args.results)))


if __name__ == "__main__":
    main()
