"""Train the pycode-7m base model: a small Llama on the source of CPython's standard library.

python corpus.py CORPUS
python train_base.py CORPUS BASE                         # the shipped model, on a GPU
python train_base.py CORPUS BASE --steps 40 --batch 4    # a smaller run, on a CPU
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 1024
END_OF_TEXT_ID = 0


def encode(tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """Join documents into one row of token ids, each opened by the end-of-text token. Returns int64 [N]."""
    encodings = tokenizer.encode_batch(texts)
    return torch.from_numpy(np.concatenate([np.asarray(encoding.ids, np.int64) for encoding in encodings]))


def build_model() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4096,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=CONTEXT,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=END_OF_TEXT_ID,
            eos_token_id=END_OF_TEXT_ID,
        )
    )


@torch.no_grad()
def heldout_loss(model: LlamaForCausalLM, tokens: torch.Tensor) -> float:
    """Mean next-token loss, in nats, over whole blocks of CONTEXT tokens."""
    blocks = tokens[: tokens.numel() // CONTEXT * CONTEXT].view(-1, CONTEXT)
    losses = [float(model(input_ids=batch, labels=batch).loss) * len(batch) for batch in blocks.split(16)]
    return sum(losses) / len(blocks)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first 3% of the steps, then a cosine down to a twentieth of the peak."""
    warmup = max(1, steps * 3 // 100)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.05 + 0.475 * (1 + math.cos(math.pi * progress)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = Tokenizer.from_file(str(args.corpus / "tokenizer.json"))
    lines = (args.corpus / "train.jsonl").read_text(encoding="utf-8").splitlines()
    train = encode(tokenizer, [json.loads(line)["text"] for line in lines]).to(device)
    heldout_files = sorted((args.corpus / "heldout").glob("*.txt"))
    heldout = encode(tokenizer, [path.read_text(encoding="utf-8") for path in heldout_files]).to(device)
    print(f"{device}: {train.numel():,} training tokens, {heldout.numel():,} held out")

    model = build_model().to(device)
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    forward = torch.compile(model) if device == "cuda" else model
    decayed = [p for p in model.parameters() if p.dim() > 1]
    undecayed = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95))

    started = time.perf_counter()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        starts = torch.randint(train.numel() - CONTEXT, (args.batch, 1), device=device)
        batch = train[starts + torch.arange(CONTEXT, device=device)]
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = forward(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 99 or step + 1 == args.steps:
            seconds = time.perf_counter() - started
            heldout_now = heldout_loss(model, heldout)
            print(f"step {step + 1}: train {loss.item():.4f}, held out {heldout_now:.4f}, {seconds:.0f} s", flush=True)

    model.half().save_pretrained(args.out)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", model_max_length=CONTEXT
    ).save_pretrained(args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
