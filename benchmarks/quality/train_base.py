"""Train a small Llama on a corpus written by ``corpus.py``, and save it in transformers' format.

    python benchmarks/quality/train_base.py CORPUS BASE --shape 100m                # 4.3 minutes on an H100
    python benchmarks/quality/train_base.py CORPUS BASE --shape tiny --steps 20     # a test on a CPU

The run ends at --steps or --minutes, whichever comes first. The learning rate depends on the larger of the two spent
shares: linear warm-up over the first 3%, then a cosine down to a twentieth of the peak. Minutes count from the start of
the compilation. The held-out metrics at the end are those of the saved float16 weights, computed in float32.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from liger_export.data import TextEncoder, token_blocks
from liger_export.errors import DataError, InputError, LigerExportError
from liger_export.metrics import measure_quality

CONTEXT = 1024
END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
PROMPT = "def read_lines(path"

# Under this name transformers builds no mask, so attention is causal by flag, and a compiled model uses the flash
# kernel. Its own "sdpa" always builds a mask when compiled.
AttentionInterface.register("sdpa_without_mask", sdpa_attention_forward)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model's sizes, and the defaults of its training.

    Attributes:
        batch: blocks of CONTEXT tokens per optimizer step.
        micro_batch: maximum number of blocks per forward pass.
        steps: maximum number of optimizer steps.
        minutes: maximum training time.
    """

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    ffn: int
    batch: int
    micro_batch: int
    lr: float
    weight_decay: float
    steps: float = math.inf
    minutes: float = math.inf


SHAPES = {
    "tiny": Shape(
        hidden=64, layers=2, heads=4, key_value_heads=2, head_size=16, ffn=128,
        batch=4, micro_batch=2, lr=4e-3, weight_decay=0.1, steps=100,
    ),
    "7m": Shape(
        hidden=256, layers=8, heads=8, key_value_heads=2, head_size=32, ffn=768,
        batch=32, micro_batch=32, lr=2e-3, weight_decay=1.0, steps=3000,
    ),
    "100m": Shape(
        hidden=768, layers=12, heads=12, key_value_heads=4, head_size=64, ffn=2560,
        batch=128, micro_batch=64, lr=1.5e-3, weight_decay=0.1, minutes=4.3,
    ),
}  # fmt: skip


def build_model(shape: Shape, vocabulary: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_size,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=END_OF_TEXT_ID,
        attn_implementation="sdpa_without_mask",
    )
    return LlamaForCausalLM(config)


def learning_rate(progress: float, peak: float) -> float:
    """Return the learning rate at a share of the run."""
    warmup = 0.03
    if progress < warmup:
        return peak * progress / warmup
    return peak * (0.05 + 0.475 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))))


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def accumulate(forward: Callable[..., Any], batch: Tensor, micro_batch: int) -> float:
    """Accumulate the gradients of the mean loss over a batch of blocks [B, CONTEXT]. Return the loss."""
    total = torch.zeros((), device=batch.device)
    for part in batch.split(micro_batch):
        with autocast(batch.device):
            loss = forward(input_ids=part, labels=part, use_cache=False).loss * (len(part) / len(batch))
        loss.backward()
        total += loss.detach()
    return float(total)


def train(model: LlamaForCausalLM, tokens: Tensor, heldout: Tensor, shape: Shape, report_every: int) -> None:
    """Train in place on random excerpts of the tokens [N], and measure on held-out blocks every ``report_every`` steps.

    Raises:
        DataError: the loss is not finite.
        InputError: compiling left no time for a step.
    """
    device = tokens.device
    decayed = [p for p in model.parameters() if p.dim() > 1]
    undecayed = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": shape.weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=shape.lr, betas=(0.9, 0.95), fused=True)

    began = time.perf_counter()
    deadline = began + shape.minutes * 60
    forward: Callable[..., Any] = model
    if device.type == "cuda":
        forward = torch.compile(model, dynamic=False)
        accumulate(forward, tokens[:CONTEXT].long().repeat(shape.micro_batch, 1), shape.micro_batch)
        optimizer.zero_grad(set_to_none=True)
        print(f"compiled in {time.perf_counter() - began:.0f} s", flush=True)

    step = reported_step = 0
    started = reported = now = time.perf_counter()
    while step < shape.steps and now < deadline:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(max((step + 1) / shape.steps, (now - started) / (deadline - started)), shape.lr)
        starts = torch.randint(tokens.numel() - CONTEXT, (shape.batch, 1), device=device)
        batch = tokens[starts + torch.arange(CONTEXT, device=device)].long()
        loss = accumulate(forward, batch, shape.micro_batch)
        if not math.isfinite(loss):
            raise DataError(f"The loss is {loss} at step {step + 1}.", "Lower --lr.")
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, now = step + 1, time.perf_counter()
        if step % report_every == 0:
            speed = (step - reported_step) * shape.batch * CONTEXT / (now - reported)
            with autocast(device):
                quality = measure_quality(model, heldout)
            print(
                f"step {step}, {now - began:.0f} s: train {loss:.4f}, held out {quality.loss:.4f}, "
                f"accuracy {quality.accuracy:.2%}, {speed:,.0f} tokens/s",
                flush=True,
            )
            reported_step, reported = step, time.perf_counter()
    if step == 0:
        raise InputError(f"Compiling took all of {shape.minutes:g} minutes.", "Raise --minutes.")
    print(f"{step:,} steps, {step * shape.batch * CONTEXT:,} tokens, {now - began:.0f} s, last train loss {loss:.4f}")


def load_tokens(path: Path, vocabulary: int) -> Tensor:
    """Read the training tokens: int32 [N].

    Raises:
        DataError: they are missing, unreadable, too few or from another tokenizer.
    """
    try:
        tokens = torch.from_numpy(np.load(path).astype(np.int32))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.", "Write it with corpus.py.") from error
    if tokens.numel() <= CONTEXT:
        raise DataError(f"{path} holds {tokens.numel()} tokens.", f"Add text: more than {CONTEXT} are needed.")
    if int(tokens.max()) >= vocabulary:
        raise DataError(
            f"{path} was written with a different tokenizer than the one next to it.", "Run corpus.py again."
        )
    return tokens


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    if not path.is_file():
        raise DataError(f"{path} does not exist.", "Write it with corpus.py.")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(path)),
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=CONTEXT,
    )


def run(corpus: Path, out: Path, shape: Shape, seed: int, report_every: int) -> None:
    """Train a model, save it with its tokenizer, and print its held-out metrics and a sample."""
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(corpus / "tokenizer.json")
    tokens = load_tokens(corpus / "train.npy", len(tokenizer)).to(device)
    encoder = TextEncoder(corpus, tokenizer, len(tokenizer), (END_OF_TEXT_ID,))
    heldout = token_blocks(encoder, corpus / "heldout.jsonl", CONTEXT)
    model = build_model(shape, len(tokenizer)).to(device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{device}: {parameters:,} parameters, {tokens.numel():,} training tokens, {heldout.numel():,} held out")

    train(model, tokens, heldout, shape, report_every)
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"wrote {out}")

    model.float().set_attn_implementation("sdpa")
    quality = measure_quality(model, heldout)
    print(
        f"held out, {quality.tokens:,} tokens: loss {quality.loss:.4f}, perplexity {quality.perplexity:.2f}, "
        f"next-token accuracy {quality.accuracy:.2%}"
    )
    prompt = tokenizer(PROMPT, return_tensors="pt").input_ids.to(device)
    sample = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=64, do_sample=False)
    print(tokenizer.decode(sample[0], skip_special_tokens=True))


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """Return an argument type that accepts finite numbers greater than zero."""

    def number(text: str) -> float:
        value = kind(text)
        if not (math.isfinite(value) and value > 0):
            raise argparse.ArgumentTypeError(f"{text} is not a number greater than zero")
        return value

    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="directory that corpus.py wrote")
    parser.add_argument("out", type=Path, metavar="BASE", help="directory to write the model to")
    parser.add_argument("--shape", choices=SHAPES, required=True, help="size of the model")
    for name, kind in (("steps", int), ("minutes", float), ("batch", int), ("micro-batch", int), ("lr", float)):
        parser.add_argument(f"--{name}", type=positive(kind), help="default: the shape's")
    parser.add_argument("--weight-decay", type=float, help="default: the shape's")
    parser.add_argument(
        "--report-every", type=positive(int), default=250, help="steps between measurements (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args()

    named = ("steps", "minutes", "batch", "micro_batch", "lr", "weight_decay")
    shape = replace(
        SHAPES[args.shape], **{name: getattr(args, name) for name in named if getattr(args, name) is not None}
    )
    shape = replace(shape, micro_batch=min(shape.micro_batch, shape.batch))
    if shape.batch % shape.micro_batch:
        parser.error(f"--batch {shape.batch} is not a multiple of --micro-batch {shape.micro_batch}")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        parser.error(f"{args.out} exists: pass a new directory")
    try:
        run(args.corpus, args.out, shape, args.seed, args.report_every)
    except LigerExportError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
