"""Print 20 conversations side by side: the base in transformers and a package, both greedy.

    python examples/smollm2-135m/side_by_side.py BASE PACKAGE > side-by-side.md

Nothing is selected or edited. Each conversation has one or two questions, and each model sees its own answers.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from liger_export.runtime import Sampling, load
from liger_export.runtime.chat_template import Message

TOKENS = 96
CONVERSATIONS = (
    ("What is the capital of France?", "And of Italy?"),
    ("Write a haiku about the sea.",),
    ("Explain photosynthesis in two sentences.",),
    ("What is 17 plus 25?",),
    ("Translate 'good morning' into Spanish.",),
    ("Name three prime numbers.", "Is 9 one of them?"),
    ("My name is Ada and I live in Oslo. Say hello to me.", "Where do I live?"),
    ("How do I boil an egg?",),
    ("Write a Python function that reverses a string.",),
    ("What does the command 'ls -l' do?",),
    ("Summarize in one sentence: The cat sat on the mat because it was warm and the sun was shining on it.",),
    ("Who wrote Romeo and Juliet?",),
    ("Give me three tips for better sleep.",),
    ("What is the difference between a list and a tuple in Python?",),
    ("Write a short e-mail that declines a meeting on Friday.",),
    ("Which is heavier, a kilogram of feathers or a kilogram of iron?",),
    ("Tell me a joke about programmers.",),
    ("What causes the seasons?", "When is summer in Australia?"),
    ("List the steps to change a bicycle tube.",),
    ("What is an LLM?",),
)

Answer = Callable[[list[Message]], str]


def base_answers(path: str) -> Answer:
    """Answer with the base in transformers, float32."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, trust_remote_code=False),
        AutoTokenizer.from_pretrained(path, trust_remote_code=False),
    )

    def answer(messages: list[Message]) -> str:
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        return str(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    return answer


def package_answers(path: Path) -> Answer:
    """Answer with a package."""
    session = load(path)

    def answer(messages: list[Message]) -> str:
        return "".join(session.chat(messages, max_new_tokens=TOKENS, sampling=Sampling()))

    return answer


def converse(answer: Answer, questions: tuple[str, ...]) -> list[str]:
    """Ask the questions of one conversation and return the answers."""
    messages: list[Message] = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer(messages)})
    return [str(message["content"]) for message in messages[1::2]]


def cell(text: str) -> str:
    """Text of one cell of a Markdown table."""
    return text.strip().replace("|", "\\|").replace("\n", "<br>")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("package", type=Path)
    options = parser.parse_args()
    base, package = base_answers(options.base), package_answers(options.package)
    print("| question | base | package |\n| --- | --- | --- |")
    for questions in CONVERSATIONS:
        rows = zip(questions, converse(base, questions), converse(package, questions), strict=True)
        for question, *answers in rows:
            print(f"| {cell(question)} | {' | '.join(map(cell, answers))} |", flush=True)


if __name__ == "__main__":
    main()
