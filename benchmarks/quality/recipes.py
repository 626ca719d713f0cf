"""Compare ways to recover a linearized model at an equal number of tokens, as in docs/results/quality.md.

    python benchmarks/quality/recipes.py run BASE DATA RESULTS HELDOUT... --seeds 0 1    # add lines to RESULTS
    python benchmarks/quality/recipes.py table RESULTS                                   # print them as a table

BASE is a transformers checkpoint, linearized here with ``--mixer`` and ``--window``. DATA and HELDOUT are texts as for
``finetune``. RESULTS is a JSONL file with one line per finished run, so an interrupted comparison continues where it
stopped. Every run reads ``--steps`` batches of ``--batch-size`` blocks of 1,024 tokens, in an order that the seed
decides, with AdamW and a cosine schedule as in ``finetune``. On a GPU it trains under bfloat16 autocast.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, set_seed

from liger_export.data import token_blocks
from liger_export.evaluate import open_model
from liger_export.finetune.settings import ATTENTION_INPUTS, PROJECTIONS
from liger_export.kernels.register import register_cuda_kernels
from liger_export.linearize import LinearizeSettings, linearize
from liger_export.metrics import Quality, measure_quality
from liger_export.modeling import LigerCache, register
from liger_export.ops import ATTENTIONS

LENGTH = 1024
WARMUP = 0.03  # share of the steps
Line = dict[str, Any]  # one line of the results


@dataclass(frozen=True)
class Recipe:
    """One way to train an adapter.

    Attributes:
        name: name in the table.
        rank: LoRA rank; alpha is twice the rank.
        targets: projections that get an adapter.
        rate: learning rate, relative to ``--lr``.
        rate_ratio: learning rate of B divided by that of A (LoRA+, arXiv 2402.12354).
        transfer: share of the steps that first fit each layer's attention to the base's softmax attention (MSE).
        distill: weight of KL(base || model) in the loss; cross-entropy has the rest.
        recurrent_weight, gate_normalizer: settings of ``linearize``; the defaults are the paper's.
        first_window: window at the first step; it shrinks to ``--window`` over the first half, by halves.
        first_weight: recurrent weight at the first step; it reaches ``recurrent_weight`` after the first half.
    """

    name: str
    rank: int = 8
    targets: tuple[str, ...] = ATTENTION_INPUTS
    rate: float = 1.0
    rate_ratio: float = 1.0
    transfer: float = 0.0
    distill: float = 0.0
    recurrent_weight: float = 0.5
    gate_normalizer: float = 16.0
    first_window: int | None = None
    first_weight: float | None = None


WIDE = Recipe("rank 16 on every projection", rank=16, targets=PROJECTIONS)
MIXED = replace(
    WIDE, name="the same, recurrent weight 0.25, gate normalizer 4", recurrent_weight=0.25, gate_normalizer=4.0
)
RECIPES = [
    Recipe("paper: rank 8 on q, k, v"),
    Recipe("attention transfer for half the tokens, then LoRA", transfer=0.5),
    Recipe("LoRA+: rate of B 4 times that of A", rate=0.5, rate_ratio=4.0),
    Recipe("rank 8 on every projection", targets=PROJECTIONS),
    Recipe("KL to the base, half of the loss", distill=0.5),
    WIDE,
    MIXED,
    replace(MIXED, name="mixed, transfer for a third of the tokens", transfer=1 / 3),
    replace(MIXED, name="mixed, KL, half of the loss", distill=0.5),
    replace(MIXED, name="mixed, KL alone", distill=1.0),
    replace(MIXED, name="mixed, window from 1,024", first_window=1024),
    replace(MIXED, name="mixed, recurrent weight from 0", first_weight=0.0),
    replace(MIXED, name="mixed, LoRA+", rate=0.5, rate_ratio=4.0),
    replace(MIXED, name="mixed, rank 64", rank=64, rate=0.5),
]


def adapted(liger: Path, recipe: Recipe) -> nn.Module:
    model = AutoModelForCausalLM.from_pretrained(liger, dtype=torch.float32, trust_remote_code=False)
    lora = LoraConfig(
        r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=list(recipe.targets), task_type="CAUSAL_LM"
    )
    peft: nn.Module = get_peft_model(model, lora)
    return peft


def optimizer_of(model: nn.Module, recipe: Recipe, rate: float, steps: int) -> tuple[Any, Any]:
    """AdamW with a learning rate for A and one for B, and the cosine schedule with warm-up."""
    rates = {"lora_A": rate * recipe.rate, "lora_B": rate * recipe.rate * recipe.rate_ratio}
    groups = [
        {"params": [p for name, p in model.named_parameters() if part in name and p.requires_grad], "lr": own}
        for part, own in rates.items()
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    warmup = math.ceil(WARMUP * steps)

    def share(step: int) -> float:
        if step < warmup:
            return step / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def attention_error(model: nn.Module, inputs: Tensor) -> Tensor:
    """Mean over the layers of the MSE between the mixer and softmax attention on the base's own activations.

    The base's weights are the model's without the adapter. Each layer reads the output of the base's layer before it.
    """
    decoder = model.get_base_model().model  # type: ignore[operator]
    positions = torch.arange(inputs.shape[1], device=inputs.device).repeat(len(inputs), 1)
    cos, sin = decoder.rotary_emb(positions, torch.float32)
    at = (cos, sin, positions)
    hidden, errors = decoder.embed_tokens(inputs), []
    for layer in decoder.layers:
        attention = layer.self_attn
        normed = layer.input_layernorm(hidden)
        with torch.no_grad(), model.disable_adapter():  # type: ignore[operator]
            query, key, value = attention.project(normed)
            whole = key.new_zeros(len(key), key.shape[2] // attention.head_dim, key.shape[1], attention.head_dim)
            taught = ATTENTIONS["softmax"](query, key, value, *at, whole, whole)[0]
            hidden = hidden + attention.o_proj(taught)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        projected = attention.project(normed)
        empty = LigerCache.zeros(decoder.liger, len(inputs), projected[0].dtype, inputs.device).layers[0]
        mixed = attention.attention(*projected, *at, *empty, *attention.options)[0]
        errors.append(F.mse_loss(mixed.float(), taught.float()) / taught.float().square().mean())
    return torch.stack(errors).mean()


def language_error(model: nn.Module, teacher: nn.Module, inputs: Tensor, distill: float) -> Tensor:
    """Cross-entropy with the next token, or its weighted mean with KL(base || model)."""
    if not distill:
        loss: Tensor = model(input_ids=inputs, labels=inputs).loss
        return loss
    logs = model(input_ids=inputs).logits[:, :-1].log_softmax(-1, dtype=torch.float32)
    with torch.no_grad():
        taught = teacher(input_ids=inputs).logits[:, :-1].log_softmax(-1, dtype=torch.float32)
    divergence = F.kl_div(logs, taught, log_target=True, reduction="none").sum(-1).mean()
    entropy = F.nll_loss(logs.flatten(0, 1), inputs[:, 1:].flatten())
    return distill * divergence + (1 - distill) * entropy


def set_schedules(model: nn.Module, recipe: Recipe, window: int, done: float) -> None:
    """Set the window and the recurrent weight after a share of the steps."""
    left = max(0.0, 1 - 2 * done)  # of the schedules
    decoder = model.get_base_model().model  # type: ignore[operator]
    if recipe.first_window:
        halvings = math.ceil(left * math.log2(recipe.first_window / window))
        decoder.liger = replace(decoder.liger, window_size=window * 2**halvings)
    if recipe.first_weight is not None:
        weight = recipe.recurrent_weight + left * (recipe.first_weight - recipe.recurrent_weight)
        for layer in decoder.layers:
            layer.self_attn.options[-1] = weight


def batches(blocks: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(blocks), generator=generator)
        for part in order.split(size):
            if len(part) == size:
                yield blocks[part]


def train(
    model: nn.Module,
    data: Iterator[Tensor],
    error: Callable[[Tensor], Tensor],
    recipe: Recipe,
    rate: float,
    steps: int,
) -> None:
    """Take optimizer steps with a schedule of their own."""
    optimizer, schedule = optimizer_of(model, recipe, rate, steps)
    device = next(model.parameters()).device
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = error(next(data).to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def run(recipe: Recipe, seed: int, args: argparse.Namespace, blocks: Tensor, heldout: dict[str, Tensor]) -> Line:
    """Linearize the base, train an adapter, and measure it."""
    set_seed(seed)
    teacher = base_model(args)
    settings = LinearizeSettings(
        mixer=args.mixer,
        window_size=args.window,
        gate_normalizer=recipe.gate_normalizer,
        recurrent_weight=recipe.recurrent_weight,
    )
    with tempfile.TemporaryDirectory() as scratch:
        linearize(str(args.base), Path(scratch, "liger"), settings)
        model = adapted(Path(scratch, "liger"), recipe).to(args.device).train()
    data = batches(blocks, args.batch_size, seed)
    transferred = round(args.steps * recipe.transfer)
    lora_steps = args.steps - transferred
    done = iter(range(lora_steps))

    def error(inputs: Tensor) -> Tensor:
        set_schedules(model, recipe, args.window, next(done) / lora_steps)
        return language_error(model, teacher, inputs, recipe.distill)

    began = time.perf_counter()
    train(model, data, lambda inputs: attention_error(model, inputs), recipe, args.lr, transferred)
    train(model, data, error, recipe, args.lr, lora_steps)
    seconds = time.perf_counter() - began
    after = measured(model, heldout, args.device)
    print(f"{recipe.name}, seed {seed}: {after}, {seconds:.0f} s", flush=True)
    return {
        "name": recipe.name,
        "seed": seed,
        "after": {name: asdict(quality) for name, quality in after.items()},
        "tokens": args.steps * args.batch_size * LENGTH,
        "seconds": round(seconds, 1),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def base_model(args: argparse.Namespace) -> nn.Module:
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    model: nn.Module = AutoModelForCausalLM.from_pretrained(args.base, dtype=dtype, trust_remote_code=False)
    return model.to(args.device).eval()


def measured(model: nn.Module, heldout: dict[str, Tensor], device: str) -> dict[str, Quality]:
    """Return the quality on each text, under autocast on a GPU."""
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        return {name: measure_quality(model, blocks) for name, blocks in heldout.items()}


def table(lines: list[Line]) -> str:
    """Format results as a Markdown table. The first line must be the base's."""
    base = {name: Quality(**quality) for name, quality in lines[0]["after"].items()}
    columns = ["", "trained parameters", "tokens", "seconds"]
    for name, quality in base.items():
        columns += [f"{name}: after, by seed", f"of the base's {quality.accuracy:.2%}, mean", "perplexity, mean"]
    rows = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for name in dict.fromkeys(line["name"] for line in lines[1:]):
        own = [line for line in lines if line["name"] == name]
        cells = [
            name,
            f"{own[0]['trained_parameters']:,}",
            f"{own[0]['tokens'] / 1e6:.2f}M",
            ", ".join(f"{line['seconds']:.0f}" for line in own),
        ]
        for text, quality in base.items():
            found = [Quality(**line["after"][text]) for line in own]
            cells += [
                ", ".join(f"{each.accuracy:.2%}" for each in found),
                f"{statistics.mean(each.accuracy for each in found) / quality.accuracy:.1%}",
                f"{statistics.mean(each.perplexity for each in found):.2f}",
            ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def read_results(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def compare(args: argparse.Namespace) -> None:
    register()
    if args.device == "cuda":
        register_cuda_kernels()
    encoder = open_model(args.base).encoder
    blocks = token_blocks(encoder, args.data, LENGTH)
    heldout = {text.stem: token_blocks(encoder, text, LENGTH)[: args.heldout_blocks] for text in args.heldout}
    done = {(line["name"], line["seed"]) for line in read_results(args.results)}
    with args.results.open("a") as results:
        if ("base", None) not in done:
            after = measured(base_model(args), heldout, args.device)
            line = {"name": "base", "seed": None, "after": {name: asdict(each) for name, each in after.items()}}
            print(json.dumps(line), file=results, flush=True)
        for seed in args.seeds:
            for recipe in RECIPES:
                if recipe.name.startswith(tuple(args.only)) and (recipe.name, seed) not in done:
                    print(json.dumps(run(recipe, seed, args, blocks, heldout)), file=results, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run", help="train and measure")
    runner.add_argument("base", type=Path, help="transformers checkpoint")
    runner.add_argument("data", type=Path, help="text to train on")
    runner.add_argument("results", type=Path, help="JSONL file for the results")
    runner.add_argument("heldout", type=Path, nargs="+", help="texts to measure on")
    runner.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="default: 0 1")
    runner.add_argument(
        "--only", nargs="+", default=[""], help="starts of the names of the recipes to run; default: all"
    )
    runner.add_argument("--mixer", default="gla", help="default: %(default)s")
    runner.add_argument("--window", type=int, default=64, help="default: %(default)s")
    runner.add_argument("--steps", type=int, default=30, help="optimizer steps (default: %(default)s)")
    runner.add_argument("--batch-size", type=int, default=4, help="blocks of 1,024 tokens (default: %(default)s)")
    runner.add_argument("--heldout-blocks", type=int, help="blocks of each text to measure on; default: all")
    runner.add_argument("--lr", type=float, default=6e-3, help="peak learning rate (default: %(default)s)")
    runner.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    runner.set_defaults(action=compare)
    printer = commands.add_parser("table", help="print results as a table")
    printer.add_argument("results", type=Path)
    printer.set_defaults(action=lambda args: print(table(read_results(args.results))))
    args = parser.parse_args()
    args.action(args)


if __name__ == "__main__":
    main()
