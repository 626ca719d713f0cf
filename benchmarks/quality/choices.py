"""A multiple-choice task from held-out text, for lm-evaluation-harness: which of four passages goes on?

    python benchmarks/quality/choices.py TEXT TASK [--count 200]
    python -m liger_export.evaluate.harness run --model liger-export --model_args package=PACKAGE \\
        --include_path TASK --tasks continuation
    lm_eval run --model hf --model_args pretrained=BASE --include_path TASK --tasks continuation

TEXT is a text or JSONL file. TASK becomes a directory with the questions and the task's definition. A question is 60
words of a document; the choices are the next 15 words and 15 words of three other documents. Seed 0.
"""

import argparse
import json
from pathlib import Path
from random import Random

from liger_export.data import read_documents

QUESTION_WORDS, CHOICE_WORDS, CHOICES = 60, 15, 4

DEFINITION = """\
task: continuation
dataset_path: json
dataset_kwargs:
  data_files:
    test: {questions}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: label
metric_list:
  - metric: acc
  - metric: acc_norm
"""


def make_question(documents: list[list[str]], random: Random) -> dict[str, object]:
    """Draw a question from one document and its wrong choices from others."""
    own, *others = random.sample(documents, CHOICES)
    start = random.randrange(len(own) - QUESTION_WORDS - CHOICE_WORDS + 1)
    at = start + QUESTION_WORDS
    right = own[at : at + CHOICE_WORDS]
    wrong = [_passage(other, random) for other in others]
    choices = [" ".join(words) for words in (right, *wrong)]
    order = random.sample(range(CHOICES), CHOICES)
    return {
        "question": " ".join(own[start:at]),
        "choices": [choices[each] for each in order],
        "label": order.index(0),
    }


def _passage(words: list[str], random: Random) -> list[str]:
    start = random.randrange(len(words) - CHOICE_WORDS + 1)
    return words[start : start + CHOICE_WORDS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("task", type=Path)
    parser.add_argument("--count", type=int, default=200)
    options = parser.parse_args()

    split = (document.split() for document in read_documents(options.text))
    documents = [words for words in split if len(words) >= QUESTION_WORDS + CHOICE_WORDS]
    random = Random(0)
    options.task.mkdir(parents=True, exist_ok=True)
    questions = options.task / "questions.jsonl"
    lines = [json.dumps(make_question(documents, random)) for _ in range(options.count)]
    questions.write_text("\n".join(lines) + "\n", encoding="utf-8")
    (options.task / "continuation.yaml").write_text(DEFINITION.format(questions=questions.resolve()), encoding="utf-8")


if __name__ == "__main__":
    main()
