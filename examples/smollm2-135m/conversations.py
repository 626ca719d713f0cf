"""Sample conversations from a chat model: it writes the user's turns and its own answers. Needs a GPU.

    python examples/smollm2-135m/conversations.py BASE TEXTS

The chat template opens a user turn, and the model continues it until the end of the turn: that is the question. The
template opens the assistant's turn, and the model answers. A second question and answer follow in the same way. Nothing
is selected or edited. Turns that do not end within their limit are kept as they are.

Output, one {"text": ...} per line, with the template's special tokens:

    TEXTS/conversations.jsonl            --tokens tokens, sampled with seed 1
    TEXTS/conversations-heldout.jsonl    --heldout-tokens tokens, sampled with seed 2
"""

import argparse
import json
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

QUESTION_TOKENS = 64
ANSWER_TOKENS = 320
TURNS = 2
MARK = "\x00"  # stands for a turn's text while the template is cut


def template_parts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, str]:
    """Return what the chat template writes before the first question, before an answer and before another question."""
    messages = [{"role": "user", "content": MARK}, {"role": "assistant", "content": MARK}] * 2
    text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    start, answer, question, *_ = text.split(MARK)
    return start, answer, question


def continued(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], limit: int, temperature: float
) -> list[str]:
    """Continue each text to the end of the turn, at most ``limit`` tokens."""
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left").to(model.device)
    ids = model.generate(
        **batch, max_new_tokens=limit, do_sample=True, temperature=temperature, top_p=0.95, top_k=0,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return tokenizer.batch_decode(ids[:, batch.input_ids.shape[1] :], skip_special_tokens=True)


def sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int, batch_size: int
) -> list[dict[str, str]]:
    """Sample conversations until they have ``count`` tokens in all."""
    start, answer, question = template_parts(tokenizer)
    found: list[dict[str, str]] = []
    tokens = 0
    while tokens < count:
        texts = [start] * batch_size
        for turn in range(TURNS):
            if turn:
                texts = [text + question for text in texts]
            questions = continued(model, tokenizer, texts, QUESTION_TOKENS, temperature=1.0)
            texts = [text + asked.strip() + answer for text, asked in zip(texts, questions, strict=True)]
            answers = continued(model, tokenizer, texts, ANSWER_TOKENS, temperature=0.8)
            texts = [text + given.strip() for text, given in zip(texts, answers, strict=True)]
        end = question.split("\n")[0]  # closes the last turn
        found += [{"text": text + end + "\n"} for text in texts]
        tokens += sum(map(len, tokenizer(texts).input_ids))
        print(f"{len(found):,} conversations, {tokens:,} tokens", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, metavar="BASE", help="checkpoint of the chat model")
    parser.add_argument("texts", type=Path, metavar="TEXTS", help="directory to write")
    parser.add_argument("--tokens", type=int, default=2_500_000)
    parser.add_argument("--heldout-tokens", type=int, default=150_000)
    parser.add_argument("--batch-size", type=int, default=1536)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.base, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(options.base, dtype=torch.bfloat16, trust_remote_code=False).cuda()
    options.texts.mkdir(parents=True, exist_ok=True)
    parts = (("conversations", options.tokens, 1), ("conversations-heldout", options.heldout_tokens, 2))
    for name, count, seed in parts:
        began = time.perf_counter()
        torch.manual_seed(seed)
        found = sample(model.eval(), tokenizer, count, min(options.batch_size, 1 + count // 500))
        (options.texts / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in found))
        print(f"{name}: {len(found):,} conversations in {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
