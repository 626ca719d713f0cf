"""Recall of a fact by its distance: passkey retrieval and multi-query associative recall.

    python benchmarks/quality/recall.py FILLER MODEL [MODEL ...] [--dtype bfloat16] [--json FILE]

A MODEL is a base or Liger checkpoint, or CHECKPOINT+ADAPTER. All models read the same prompts, cut from FILLER, a text
or JSONL file: facts, filler of the given length in tokens, then questions. An answer counts if each of its tokens is
the model's most likely one, given the tokens before it.

- passkey: one fact, a number of five digits.
- pairs: eight facts, a name with a number of two digits each. Four of the names are asked for, one after the other.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from liger_export.checkpoint.causal_lm import load_tokenizer
from liger_export.data import read_documents
from liger_export.evaluate.models import DTYPES, TorchModel

DISTANCES = (64, 128, 256, 512, 1024, 2048, 4096, 8000)
ROOM = 256  # tokens of a prompt beside the distance: filler before the facts, the facts, and the later questions
NAMES = (
    "Alice", "Bruno", "Carla", "David", "Elena", "Frank", "Grace", "Henry", "Irene", "James", "Karen", "Louis",
    "Maria", "Nancy", "Oscar", "Peter", "Quinn", "Rosa", "Simon", "Tracy", "Victor", "Wendy", "Xavier", "Yvonne",
)  # fmt: skip
PAIRS, QUERIES = 8, 4
PIECE = 2048  # tokens per call

Encode = Callable[[str], list[int]]
Task = tuple[str, list[tuple[str, str]]]
"""The text of the facts, and each question with its answer."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, and the answers in them as ranges of positions."""

    token_ids: list[int]
    answers: list[range]


def passkey(random: Random) -> Task:
    """One number to find again."""
    key = f"{random.randrange(10**5):05d}"
    fact = f"The pass key is {key}. Remember it. {key} is the pass key.\n\n"
    return fact, [("\n\nWhat is the pass key? The pass key is ", key)]


def pairs(random: Random) -> Task:
    """Numbers by name, of which several are asked for."""
    codes = {name: f"{random.randrange(10, 100)}" for name in random.sample(NAMES, PAIRS)}
    facts = "".join(f"The code of {name} is {code}.\n" for name, code in codes.items())
    asked = random.sample(list(codes), QUERIES)
    starts = ["\n\n", *[".\n"] * (QUERIES - 1)]
    return f"{facts}\n", [
        (f"{start}The code of {name} is ", codes[name]) for start, name in zip(starts, asked, strict=True)
    ]


TASKS: dict[str, Callable[[Random], Task]] = {"passkey": passkey, "pairs": pairs}


def make_prompt(task: Task, filler: list[int], distance: int, encode: Encode) -> Prompt:
    """Build a prompt of ``distance + ROOM`` tokens. The distance is from the facts' end to the first answer."""
    facts, questions = encode(task[0]), [(encode(question), encode(answer)) for question, answer in task[1]]
    between = distance - len(questions[0][0])
    asked = [token for question in questions for part in question for token in part]
    before = ROOM + distance - len(facts) - between - len(asked)
    token_ids = [*filler[:before], *facts, *filler[before : before + between]]
    answers = []
    for question, answer in questions:
        token_ids += question
        answers.append(range(len(token_ids), len(token_ids) + len(answer)))
        token_ids += answer
    return Prompt(token_ids, answers)


def make_prompts(name: str, distance: int, count: int, filler: list[int], encode: Encode) -> list[Prompt]:
    """Prompts of one length, each with its own facts and its own part of the filler."""
    random = Random(f"{name} {distance}")
    starts = [random.randrange(len(filler) - distance - ROOM) for _ in range(count)]
    cut = [filler[start : start + distance + ROOM] for start in starts]
    return [make_prompt(TASKS[name](random), part, distance, encode) for part in cut]


@torch.no_grad()
def recalled(model: Any, prompts: Sequence[Prompt], batch_size: int) -> float:
    """Return the share of answers whose tokens are all the most likely ones."""
    right = [
        all(bool(correct[position]) for position in answer)
        for start in range(0, len(prompts), batch_size)
        for prompt, correct in zip(
            prompts[start : start + batch_size],
            top1_correct(model, [prompt.token_ids for prompt in prompts[start : start + batch_size]]),
            strict=True,
        )
        for answer in prompt.answers
    ]
    return sum(right) / len(right)


def top1_correct(model: Any, rows: list[list[int]]) -> torch.Tensor:
    """Mark the tokens that the model predicts as the most likely, bool [B, T]. The first is never marked."""
    tokens = torch.tensor(rows, device=model.device)
    predictions, cache = [torch.full_like(tokens[:, :1], -1)], None
    for piece in tokens.split(PIECE, dim=1):
        output = model(input_ids=piece, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        predictions.append(output.logits.argmax(-1))
    return (torch.cat(predictions, dim=1)[:, :-1] == tokens).cpu()


def open_torch(spec: str, device: str | None, dtype: str) -> tuple[str, Any]:
    """Load CHECKPOINT or CHECKPOINT+ADAPTER. Returns its name and the model."""
    path, *adapters = spec.split("+")
    opened = TorchModel(Path(path), tuple(map(Path, adapters)), device, dtype)
    return opened.name, opened.load()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("filler", type=Path)
    parser.add_argument("models", nargs="+", metavar="model")
    parser.add_argument("--count", type=int, default=100, help="prompts per task and distance")
    parser.add_argument("--distances", type=int, nargs="+", default=DISTANCES)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--device")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    tokenizer = load_tokenizer(Path(options.models[0].split("+")[0]))

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        return ids

    filler: list[int] = []
    for document in read_documents(options.filler):
        filler += encode(document)
        if len(filler) > 60 * max(options.distances):
            break
    results = []
    for spec in options.models:
        name, model = open_torch(spec, options.device, options.dtype)
        for task in TASKS:
            for distance in options.distances:
                prompts = make_prompts(task, distance, options.count, filler, encode)
                share = recalled(model, prompts, options.batch_size)
                results.append({"model": name, "task": task, "distance": distance, "recalled": share})
                print(json.dumps(results[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    show(results)


def show(results: Sequence[dict[str, Any]]) -> None:
    """Print a row per model and task, and a column per distance."""
    distances = sorted({result["distance"] for result in results})
    table = Table("model", "task", *[f"{distance:,}" for distance in distances])
    for model, task in dict.fromkeys((result["model"], result["task"]) for result in results):
        shares = {r["distance"]: r["recalled"] for r in results if (r["model"], r["task"]) == (model, task)}
        table.add_row(model, task, *[f"{shares[distance]:.0%}" for distance in distances])
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
