"""lm-evaluation-harness on a package: local tasks in the harness's format, compared with PyTorch's logits."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from tokenizers import Tokenizer, processors

from liger_export.evaluate import harness
from liger_export.evaluate.harness import PackageLM, register
from liger_export.runtime import load
from tests.tiny import END_OF_TEXT, load_model, record_file

CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
GENERATE = """
task: tiny_generate
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{written}}}}"
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 7, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
QUESTIONS = [f"def f{number}(a, b):\n    return" for number in range(12)]
CHOICES = ["a + b", "None", "b", "sum((a, b))"]


@pytest.fixture
def model(package: Path) -> PackageLM:
    return PackageLM(package)


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, entry, index) for index, entry in enumerate(arguments)]


def torch_loglikelihood(checkpoint: Path, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    with torch.no_grad():
        logits = load_model(checkpoint)(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1]
    picked = logits.log_softmax(-1).gather(-1, torch.tensor(continuation)[:, None])
    return float(picked.sum()), logits.argmax(-1).tolist() == continuation


def encode(text: str) -> list[int]:
    """Encode ASCII text with ``tests.tiny.byte_tokenizer``, without the BOS token."""
    from tests.tiny import byte_tokenizer

    ids: list[int] = byte_tokenizer().encode(text, add_special_tokens=False).ids
    return ids


def test_loglikelihood_equals_torchs_and_a_shared_context_changes_nothing(
    model: PackageLM, liger_checkpoint: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "PIECE", 5)  # so that continuations are read in several pieces
    pairs = [(question, " " + choice) for question in QUESTIONS[:3] for choice in CHOICES]
    together = model.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    separate = [
        PackageLM(package).loglikelihood(requests("loglikelihood", pair), disable_tqdm=True)[0] for pair in pairs
    ]
    assert together == separate
    for (context, continuation), (value, is_greedy) in zip(pairs, together, strict=True):
        expected = torch_loglikelihood(liger_checkpoint, [0, *encode(context)], encode(continuation))
        assert value == pytest.approx(expected[0], rel=1e-5)
        assert is_greedy == expected[1]


def test_greedy_continuations_are_recognized(model: PackageLM, package: Path) -> None:
    written = "".join(load(package).generate("x = ", max_new_tokens=9))
    (value, is_greedy), _ = model.loglikelihood(
        requests("loglikelihood", ("x =", " " + written), ("x =", " 1")), disable_tqdm=True
    )
    session = load(package)
    tokens = [0, *encode("x = " + written)]
    logits = session.all_logits(tokens)
    assert is_greedy == bool((logits[3:-1].argmax(-1) == np.array(tokens[4:])).all())
    assert value < 0


def test_empty_contexts_and_whole_texts_follow_the_bos_token(
    model: PackageLM, liger_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "PIECE", 16)
    text = "import os\n" * 9
    expected = torch_loglikelihood(liger_checkpoint, [0], encode(text))
    rolling = model.loglikelihood_rolling(requests("loglikelihood_rolling", (text,), ("",)), disable_tqdm=True)
    assert rolling == [pytest.approx(expected[0], rel=1e-5), 0.0]
    assert model.loglikelihood(requests("loglikelihood", ("", text)), disable_tqdm=True)[0][0] == rolling[0]
    assert model.tok_encode(END_OF_TEXT + "a") == model.tok_encode("a") == [0, *encode("a")]


def test_generation_equals_the_sessions_and_stops(model: PackageLM, package: Path) -> None:
    whole = "".join(load(package).generate("def ", max_new_tokens=20))
    stop = whole[4:6]
    results = model.generate_until(
        requests(
            "generate_until",
            ("def ", {"until": [], "max_gen_toks": 20}),
            ("def ", {"until": stop, "max_new_tokens": 20, "do_sample": False, "temperature": 0.7}),
            ("def ", {"until": ["\n\n\n\n"], "max_gen_toks": 20, "temperature": 0.9}),
            ("def ", {"until": ["\n\n\n\n"], "max_gen_toks": 20, "temperature": 0.9}),
        ),
        disable_tqdm=True,
    )
    assert results[0] == whole
    assert results[1] == whole[: whole.index(stop)]
    assert len({whole, *results[2:]}) == 3


def test_special_tokens_in_texts_are_parsed_as_by_transformers(model: PackageLM, package: Path) -> None:
    text = f"ab{END_OF_TEXT}c"
    tokens = [0, *encode("ab"), 0, *encode("c")]
    assert model.tok_encode(text) == tokens
    assert model.tok_encode(text, add_special_tokens=False) == tokens[1:]
    written = model.generate_until(requests("generate_until", (text, {"until": ["", "\n\n\n\n"], "max_gen_toks": 9})))
    assert written == ["".join(load(package).generate(tokens, max_new_tokens=9))]


def test_a_context_has_no_end_of_text_token_that_the_tokenizer_adds(package_copy: Path) -> None:
    path = package_copy / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    single = f"{END_OF_TEXT} $A {END_OF_TEXT}"
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[(END_OF_TEXT, 0)])
    tokenizer.save(str(path))
    record_file(package_copy, path.name)
    assert PackageLM(package_copy).tok_encode("ab") == [0, *encode("ab")]


def write_tasks(directory: Path, model: PackageLM, checkpoint: Path) -> dict[str, float]:
    """Write two tasks in the harness's format; return the accuracy of each, from logits and from a session."""
    best, written = [], []
    for question in QUESTIONS:
        context = [0, *encode(question)]
        values = [torch_loglikelihood(checkpoint, context, encode(" " + choice))[0] for choice in CHOICES]
        best.append(int(np.argmax(values)))
        generated = model.generate_until(
            requests("generate_until", (question, {"max_gen_toks": 7, "until": ["\n\n"]})), disable_tqdm=True
        )
        written.append(generated[0])
    answers = [choice if index % 3 else (choice + 1) % 4 for index, choice in enumerate(best)]
    targets = [text if index % 4 else text + "!" for index, text in enumerate(written)]
    rows = [
        {"question": question, "choices": CHOICES, "answer": answer, "written": target}
        for question, answer, target in zip(QUESTIONS, answers, targets, strict=True)
    ]
    data = directory / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "choice.yaml").write_text(CHOICE.format(data=data, cache=directory / "cache"))
    (directory / "generate.yaml").write_text(GENERATE.format(data=data, cache=directory / "cache"))
    return {"tiny_choice": 8 / 12, "tiny_generate": 9 / 12}


@pytest.mark.slow
def test_the_harness_command_runs_its_tasks_on_a_package(
    model: PackageLM, package: Path, liger_checkpoint: Path, tmp_path: Path
) -> None:
    expected = write_tasks(tmp_path, model, liger_checkpoint)
    command = [sys.executable, "-m", "liger_export.evaluate.harness", "run", "--model", "liger-export"]
    command += ["--model_args", f"package={package}", "--include_path", str(tmp_path), "--tasks", ",".join(expected)]
    command += ["--output_path", str(tmp_path / "out.json")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    written = next(tmp_path.glob("out_*.json")).read_text()
    results = json.loads(written)["results"]
    assert results["tiny_choice"]["acc,none"] == pytest.approx(expected["tiny_choice"])
    assert results["tiny_generate"]["exact_match,none"] == pytest.approx(expected["tiny_generate"])


def test_registering_keeps_the_harnesss_own_models() -> None:
    register()
    register()
    assert get_model("liger-export") is PackageLM
    assert get_model("dummy").__module__.startswith("lm_eval")


def test_a_batch_size_above_one_is_refused(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: PackageLM(package, batch_size=8))
    with pytest.raises(SystemExit, match="2"):
        harness.main()
    assert "batch_size is 8" in capsys.readouterr().err
