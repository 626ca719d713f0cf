"""Compare ways to recover a linearized model at an equal number of tokens, as in docs/results/quality.md.

    python benchmarks/quality/recipes.py run BASE DATA HELDOUT RESULTS --seeds 0 1    # add lines to RESULTS
    python benchmarks/quality/recipes.py table RESULTS                                # print them as a table

BASE is a transformers checkpoint, linearized here with ``--mixer`` and ``--window``. DATA and HELDOUT are texts as for
``finetune``. RESULTS is a JSONL file with one line per finished run, so an interrupted comparison continues where it
stopped. Every run reads ``--steps`` batches of ``--batch-size`` blocks of 1,024 tokens, in an order that the seed
decides, with AdamW and a cosine schedule as in ``finetune``.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, set_seed

from liger_export.data import token_blocks
from liger_export.evaluate import open_model
from liger_export.linearize import LinearizeSettings, linearize
from liger_export.metrics import Quality, measure_quality
from liger_export.modeling import LigerCache, register
from liger_export.ops import ATTENTIONS

LENGTH = 1024
WARMUP = 0.03  # share of the steps
QKV = ("q_proj", "k_proj", "v_proj")
EVERY = (*QKV, "o_proj", "gate_proj", "up_proj", "down_proj")


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
    """

    name: str
    rank: int = 8
    targets: tuple[str, ...] = QKV
    rate: float = 1.0
    rate_ratio: float = 1.0
    transfer: float = 0.0
    distill: float = 0.0


RECIPES = [
    Recipe("paper: rank 8 on q, k, v"),
    Recipe("attention transfer for half the tokens, then LoRA", transfer=0.5),
    Recipe("LoRA+: rate of B 4 times that of A", rate=0.5, rate_ratio=4.0),
    Recipe("rank 8 on every projection", targets=EVERY),
    Recipe("KL to the base, half of the loss", distill=0.5),
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
    positions = torch.arange(inputs.shape[1]).repeat(len(inputs), 1)
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
        empty = empty_state(decoder, len(inputs))
        projected = attention.project(normed)
        mixed = attention.attention(*projected, *at, *empty, *attention.options)[0]
        errors.append(F.mse_loss(mixed, taught) / taught.square().mean())
    return torch.stack(errors).mean()


def empty_state(decoder: Any, batch: int) -> tuple[Tensor, ...]:
    layers: list[tuple[Tensor, ...]] = LigerCache.zeros(decoder.liger, batch, torch.float32).layers
    return layers[0]


def language_error(model: nn.Module, teacher: nn.Module, inputs: Tensor, distill: float) -> Tensor:
    """Cross-entropy with the next token, or its weighted mean with KL(base || model)."""
    if not distill:
        loss: Tensor = model(input_ids=inputs, labels=inputs).loss
        return loss
    logs = model(input_ids=inputs).logits[:, :-1].log_softmax(-1)
    with torch.no_grad():
        taught = teacher(input_ids=inputs).logits[:, :-1].log_softmax(-1)
    divergence = F.kl_div(logs, taught, log_target=True, reduction="none").sum(-1).mean()
    entropy = F.nll_loss(logs.flatten(0, 1), inputs[:, 1:].flatten())
    return distill * divergence + (1 - distill) * entropy


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
    for _ in range(steps):
        optimizer.zero_grad()
        error(next(data)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def run(recipe: Recipe, seed: int, args: argparse.Namespace, blocks: tuple[Tensor, Tensor]) -> dict[str, object]:
    """Linearize the base, train an adapter, and measure it."""
    set_seed(seed)
    teacher = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32, trust_remote_code=False).eval()
    with tempfile.TemporaryDirectory() as scratch:
        linearize(str(args.base), Path(scratch, "liger"), LinearizeSettings(mixer=args.mixer, window_size=args.window))
        model = adapted(Path(scratch, "liger"), recipe)
    data = batches(blocks[0], args.batch_size, seed)
    transferred = round(args.steps * recipe.transfer)
    began = time.perf_counter()
    train(model, data, lambda inputs: attention_error(model, inputs), recipe, args.lr, transferred)
    train(
        model,
        data,
        lambda inputs: language_error(model, teacher, inputs, recipe.distill),
        recipe,
        args.lr,
        args.steps - transferred,
    )
    seconds = time.perf_counter() - began
    after = measure_quality(model, blocks[1])
    print(f"{recipe.name}, seed {seed}: {after.accuracy:.2%}, {seconds:.0f} s", flush=True)
    return {
        "name": recipe.name,
        "seed": seed,
        "after": asdict(after),
        "tokens": args.steps * args.batch_size * LENGTH,
        "seconds": round(seconds, 1),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def table(lines: list[dict[str, Any]]) -> str:
    """Format results as a Markdown table. The first line must be the base's."""
    base = Quality(**lines[0]["after"])
    rows = ["| | trained parameters | tokens | seconds | after, by seed | of the base's, mean | perplexity, mean |"]
    rows.append("| --- " * 7 + "|")
    for name in dict.fromkeys(line["name"] for line in lines[1:]):
        own = [line for line in lines if line["name"] == name]
        found = [Quality(**line["after"]) for line in own]
        cells = [
            name,
            f"{own[0]['trained_parameters']:,}",
            f"{own[0]['tokens'] / 1e6:.2f}M",
            ", ".join(f"{line['seconds']:.0f}" for line in own),
            ", ".join(f"{quality.accuracy:.2%}" for quality in found),
            f"{statistics.mean(quality.accuracy for quality in found) / base.accuracy:.1%}",
            f"{statistics.mean(quality.perplexity for quality in found):.2f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def read_results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def compare(args: argparse.Namespace) -> None:
    register()
    encoder = open_model(args.base).encoder
    blocks = token_blocks(encoder, args.data, LENGTH), token_blocks(encoder, args.heldout, LENGTH)
    done = {(line["name"], line["seed"]) for line in read_results(args.results)}
    with args.results.open("a") as results:
        if ("base", None) not in done:
            base = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32, trust_remote_code=False)
            line = {"name": "base", "seed": None, "after": asdict(measure_quality(base, blocks[1]))}
            print(json.dumps(line), file=results, flush=True)
        for seed in args.seeds:
            for recipe in RECIPES:
                if recipe.name.startswith(args.only) and (recipe.name, seed) not in done:
                    print(json.dumps(run(recipe, seed, args, blocks)), file=results, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run", help="train and measure")
    runner.add_argument("base", type=Path, help="transformers checkpoint")
    runner.add_argument("data", type=Path, help="text to train on")
    runner.add_argument("heldout", type=Path, help="text to measure on")
    runner.add_argument("results", type=Path, help="JSONL file for the results")
    runner.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="default: 0 1")
    runner.add_argument("--only", default="", help="start of the names of the recipes to run; default: all")
    runner.add_argument("--mixer", default="gla", help="default: %(default)s")
    runner.add_argument("--window", type=int, default=64, help="default: %(default)s")
    runner.add_argument("--steps", type=int, default=30, help="optimizer steps (default: %(default)s)")
    runner.add_argument("--batch-size", type=int, default=4, help="blocks of 1,024 tokens (default: %(default)s)")
    runner.add_argument("--lr", type=float, default=6e-3, help="peak learning rate (default: %(default)s)")
    runner.set_defaults(action=compare)
    printer = commands.add_parser("table", help="print results as a table")
    printer.add_argument("results", type=Path)
    printer.set_defaults(action=lambda args: print(table(read_results(args.results))))
    args = parser.parse_args()
    args.action(args)


if __name__ == "__main__":
    main()
