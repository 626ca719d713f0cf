"""Linearize a base checkpoint in many ways, finetune and measure each: the tables of docs/results/quality.md.

    python benchmarks/quality/sweep.py run BASE DATA HELDOUT RESULTS mixers ranks ...    # add lines to RESULTS
    python benchmarks/quality/sweep.py table RESULTS...                                  # print them as a table

BASE is a transformers checkpoint. DATA and HELDOUT are text or JSONL files, or directories of them. RESULTS is a JSONL
file with one line per finished experiment, so an interrupted run continues where it stopped.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from liger_export.data import token_blocks
from liger_export.evaluate import open_model
from liger_export.finetune import FinetuneSettings, finetune, transfer
from liger_export.finetune.settings import PROJECTIONS
from liger_export.linearize import LinearizeSettings, linearize
from liger_export.metrics import Quality, measure_quality
from liger_export.modeling import register

LENGTHS = (512, 1024, 4096, 16384)
NEVER_SAVE = 10**9  # steps between checkpoints: the runs are short


@dataclass(frozen=True)
class Experiment:
    """One way to linearize and finetune.

    Attributes:
        name: name in the table.
        linearize: settings of ``linearize``.
        steps: optimizer steps of LoRA, relative to ``--steps``.
        finetune: LoRA settings that differ from the run's.
        transfer_steps: steps of attention transfer before LoRA, relative to ``--steps``.
    """

    name: str
    linearize: LinearizeSettings = field(default_factory=LinearizeSettings)
    steps: float = 1.0
    finetune: dict[str, int | float | tuple[str, ...]] = field(default_factory=dict)
    transfer_steps: float = 0.0


EVERYWHERE: dict[str, int | float | tuple[str, ...]] = {
    "rank": 64,
    "target_modules": PROJECTIONS,
    "learning_rate": 0.5,
}

# The settings that each helped a small model most: a wider window, less recurrence, faster forgetting.
BEST_SINGLE = LinearizeSettings(window_size=256, recurrent_weight=0.25, gate_normalizer=4.0)

GROUPS = {
    "mixers": [
        Experiment("gla"),
        Experiment("hgrn2", LinearizeSettings(mixer="hgrn2")),
        Experiment("gsa", LinearizeSettings(mixer="gsa")),
        Experiment("lolcats, LoRA only", LinearizeSettings(mixer="lolcats")),
        Experiment("lolcats, transfer + LoRA", LinearizeSettings(mixer="lolcats"), 0.5, transfer_steps=0.5),
    ],
    "ranks": [
        Experiment("gla, rank 1", finetune={"rank": 1}),
        Experiment("gla, rank 64", finetune={"rank": 64}),
        Experiment("gla, rank 64 everywhere", finetune=EVERYWHERE),
    ],
    "budgets": [
        Experiment("gla, a quarter of the tokens", steps=0.25),
        Experiment("gla, twice the tokens", steps=2.0),
    ],
    "windows": [
        Experiment("gla, window 1", LinearizeSettings(window_size=1)),
        Experiment("gla, window 256", LinearizeSettings(window_size=256)),
        Experiment("window 64 almost alone", LinearizeSettings(recurrent_weight=1e-3)),
    ],
    "settings": [
        Experiment("gla, gate normalizer 4", LinearizeSettings(gate_normalizer=4.0)),
        Experiment("gla, gate normalizer 64", LinearizeSettings(gate_normalizer=64.0)),
        Experiment("gla, recurrent weight 0.25", LinearizeSettings(recurrent_weight=0.25)),
        Experiment("gla, recurrent weight 0.75", LinearizeSettings(recurrent_weight=0.75)),
    ],
    "combined": [
        Experiment("gla, window 256, recurrent weight 0.25", replace(BEST_SINGLE, gate_normalizer=16.0)),
        Experiment("gla, window 256, recurrent weight 0.25, gate normalizer 4", BEST_SINGLE),
        Experiment("gla, window 256, recurrent weight 0.25, gate normalizer 4, twice the tokens", BEST_SINGLE, 2.0),
    ],
    "rates": [
        Experiment("gla, a third of the learning rate", finetune={"learning_rate": 1 / 3}),
        Experiment("gla, three times the learning rate", finetune={"learning_rate": 3.0}),
    ],
    "hybrids": [
        Experiment("gla, softmax every 4", LinearizeSettings(keep_softmax_every=4)),
        Experiment("gla, softmax every 8", LinearizeSettings(keep_softmax_every=8)),
        Experiment("hgrn2, softmax every 4", LinearizeSettings(mixer="hgrn2", keep_softmax_every=4)),
    ],
    "best": [
        Experiment(
            "gla, softmax every 4, rank 64 everywhere", LinearizeSettings(keep_softmax_every=4), 2.0, EVERYWHERE
        ),
        Experiment("gla, rank 64 everywhere, twice the tokens", steps=2.0, finetune=EVERYWHERE),
        Experiment("hgrn2, rank 64 everywhere", LinearizeSettings(mixer="hgrn2"), 2.0, EVERYWHERE),
        Experiment("gla, window 256, rank 64 everywhere", LinearizeSettings(window_size=256), 2.0, EVERYWHERE),
    ],
}


def run(
    experiment: Experiment, base: Path, data: Path, heldout: Path, settings: FinetuneSettings, texts: dict[int, Tensor]
) -> dict[str, object]:
    """Run one experiment in a temporary directory. Its learning rate is relative to that of the settings."""
    assert settings.max_steps is not None
    own = dict(experiment.finetune)
    rate = settings.learning_rate * float(own.pop("learning_rate", 1.0))  # type: ignore[arg-type]
    steps = round(settings.max_steps * experiment.steps)
    lora = replace(settings, learning_rate=rate, max_steps=steps, **own)  # type: ignore[arg-type]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, adapter = Path(scratch, "liger"), Path(scratch, "adapter")
        config = linearize(str(base), checkpoint, experiment.linearize)
        before = None
        if experiment.transfer_steps:
            maps = replace(lora, learning_rate=1e-2, max_steps=round(settings.max_steps * experiment.transfer_steps))
            transferred = Path(scratch, "transferred")
            before = transfer(checkpoint, data, transferred, maps, heldout=heldout).before
            checkpoint = transferred
        result = finetune(checkpoint, data, adapter, lora, heldout=heldout)
        seconds = time.perf_counter() - began
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, trust_remote_code=False)
        lengths = measure_lengths(PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(), texts)
    print(f"{experiment.name}: {result.after.accuracy:.2%}, {seconds:.0f} s", flush=True)
    return {
        "name": experiment.name,
        "model_type": config.model_type,
        "before": asdict(before or result.before),
        "after": asdict(result.after),
        "lengths": lengths,
        "tokens": (steps + round(settings.max_steps * experiment.transfer_steps)) * lora.batch_size * 1024,
        "rank": lora.rank,
        "targets": lora.target_modules,
        "learning_rate": rate,
        "trained_parameters": result.trained_parameters,
        "seconds": round(seconds, 1),
    }


def measure_lengths(model: torch.nn.Module, texts: dict[int, Tensor]) -> dict[str, object]:
    """Measure held-out metrics in float32, with the text cut into blocks of each length."""
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return {
        str(length): asdict(measure_quality(model, blocks, batch_size=max(1, 16384 // length)))
        for length, blocks in texts.items()
    }


def heldout_texts(base: Path, heldout: Path, longest: int, tokens: int) -> dict[int, Tensor]:
    """Cut the same held-out tokens into blocks of each length up to ``longest``."""
    blocks = token_blocks(open_model(base).encoder, heldout, longest)[: max(1, tokens // longest)]
    return {length: blocks.reshape(-1, length) for length in LENGTHS if length <= longest}


def table(lines: list[dict[str, object]]) -> str:
    """Format results as a Markdown table. The first line must be the base's.

    The columns before and after are measured on the whole held-out text in the precision of training, the columns by
    length on --heldout-tokens of it in float32.
    """
    base = Quality(**lines[0]["after"])  # type: ignore[arg-type]
    rows = ["| | before LoRA | after | of the base | perplexity | tokens | " + " | ".join(map(str, LENGTHS)) + " |"]
    rows.append("| --- " * (6 + len(LENGTHS)) + "|")
    for line in lines:
        before = Quality(**line["before"]).accuracy if line["before"] else None  # type: ignore[arg-type]
        after = Quality(**line["after"])  # type: ignore[arg-type]
        read = [line["lengths"].get(str(length)) for length in LENGTHS]  # type: ignore[attr-defined]
        cells = [
            str(line["name"]),
            "" if before is None else f"{before:.2%}",
            f"{after.accuracy:.2%}",
            f"{after.accuracy / base.accuracy:.1%}",
            f"{after.perplexity:.2f}",
            f"{line['tokens'] / 1e6:.1f}M" if line["tokens"] else "",  # type: ignore[operator]
            *(f"{quality['accuracy']:.2%}" if quality else "" for quality in read),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def read_results(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def sweep(args: argparse.Namespace) -> None:
    register()
    logging.disable_progress_bar()
    settings = FinetuneSettings(
        rank=args.rank,
        batch_size=args.batch_size,
        learning_rate=args.lr,
        max_steps=args.steps,
        save_steps=NEVER_SAVE,
    )
    texts = heldout_texts(args.base, args.heldout, args.longest, args.heldout_tokens)
    done = {line["name"] for line in read_results(args.results)}
    began = time.perf_counter()
    with args.results.open("a") as results:
        if "base" not in done and not args.skip_base:
            model = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32, trust_remote_code=False)
            blocks = token_blocks(open_model(args.base).encoder, args.heldout, settings.sequence_length)
            lengths, whole = measure_lengths(model, texts), measure_lengths(model, {1024: blocks})["1024"]
            line = {"name": "base", "before": None, "after": whole, "lengths": lengths, "tokens": 0}
            print(json.dumps(line), file=results, flush=True)
        for experiment in (each for group in args.groups for each in GROUPS[group]):
            if experiment.name in done:
                continue
            if time.perf_counter() - began > args.minutes * 60:
                print(f"no time left for {experiment.name}")
                break
            line = run(experiment, args.base, args.data, args.heldout, settings, texts)
            print(json.dumps(line), file=results, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run", help="run experiments")
    runner.add_argument("base", type=Path, help="transformers checkpoint")
    runner.add_argument("data", type=Path, help="text to train on")
    runner.add_argument("heldout", type=Path, help="text to measure on")
    runner.add_argument("results", type=Path, help="JSONL file for the results")
    runner.add_argument("groups", nargs="+", choices=GROUPS, help="groups of experiments")
    runner.add_argument("--steps", type=int, default=300, help="optimizer steps of LoRA (default: %(default)s)")
    runner.add_argument("--batch-size", type=int, default=32, help="blocks of 1,024 tokens (default: %(default)s)")
    runner.add_argument("--rank", type=int, default=8, help="LoRA rank (default: %(default)s)")
    runner.add_argument("--lr", type=float, default=2e-3, help="learning rate of LoRA (default: %(default)s)")
    runner.add_argument(
        "--longest", type=int, default=16384, choices=LENGTHS, help="longest sequence (default: %(default)s)"
    )
    runner.add_argument("--skip-base", action="store_true", help="the base's results are in another file")
    runner.add_argument(
        "--heldout-tokens", type=int, default=98304, help="held-out tokens to read (default: %(default)s)"
    )
    runner.add_argument("--minutes", type=float, default=1e9, help="start no experiment later than this")
    runner.set_defaults(action=sweep)
    printer = commands.add_parser("table", help="print results as a table")
    printer.add_argument("results", type=Path, nargs="+", help="the first file must start with the base's line")
    printer.set_defaults(
        action=lambda args: print(table([line for path in args.results for line in read_results(path)]))
    )
    args = parser.parse_args()
    args.action(args)


if __name__ == "__main__":
    main()
