"""The command line as users run it: exit codes, messages and outputs."""

import io
import json
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import pytest
from rich.console import Console

from liger_export.cli import app, main
from liger_export.convert import convert
from liger_export.linearize import LinearizeSettings
from tests.plugins.sessions import needs_library
from tests.tiny import END_OF_TEXT, edit_json, write_base, write_liger

SUBCOMMANDS = [
    "linearize",
    "finetune",
    "convert",
    "validate",
    "evaluate",
    "bench",
    "build-engine",
    "inspect",
    "run",
    "chat",
    "triton",
    "genai",
]


@dataclass(frozen=True)
class Result:
    """Exit code and output of a command."""

    returncode: int
    stdout: str
    stderr: str


def liger_export(*arguments: object, columns: int = 160) -> Result:
    """Run a command in this process, which saves the seconds that imports take in a new one."""
    handlers = {ending: signal.getsignal(ending) for ending in (signal.SIGINT, signal.SIGTERM)}
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        patch("liger_export.commands.console.out", Console(width=columns)),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
        pytest.raises(SystemExit) as ended,
    ):
        main(lambda: app([str(each) for each in arguments], prog_name="liger-export"))
    for ending, handler in handlers.items():
        signal.signal(ending, handler)
    assert isinstance(ended.value.code, int)
    return Result(ended.value.code, stdout.getvalue(), stderr.getvalue())


def in_a_process(*arguments: object) -> Result:
    """Run a command in its own process, as a shell does."""
    command = [sys.executable, "-m", "liger_export", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


def assert_refused(result: Result, *words: str) -> None:
    """Assert exit code 2, and cause and fix on standard error without a traceback."""
    assert result.returncode == 2, result.stderr
    assert "error:" in result.stderr
    assert "fix:" in result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


@pytest.mark.slow
def test_main_path_from_base_to_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_base(tmp_path / "base")
    text = tmp_path / "text.txt"
    text.write_text("def add(a, b):\n    return a + b\n\n" * 150)
    monkeypatch.chdir(tmp_path)
    steps = [
        ("linearize", base, "-o", "liger", "--window", 8),
        ("finetune", "liger", "--data", text, "-o", "adapter", "--sequence-length", 32, "--max-steps", 3,
         "--recipe", "best", "--rank", 4, "--lr", 0.01),
        ("convert", "liger", "--adapter", "adapter", "-o", "package"),
        ("validate", "package", "--reference", "liger", "--adapter", "adapter", "--text", text, "--json", "out.json",
         "--max-tokens", 4096),
        ("inspect", "package"),
        ("run", "package", "def add", "-n", 8, "--temperature", 0.7, "--top-k", 20, "--seed", 1),
    ]  # fmt: skip
    results = [in_a_process(*step) for step in steps]
    assert [result.returncode for result in results] == [0] * len(steps), [result.stderr for result in results]
    assert json.loads((tmp_path / "out.json").read_text())["passed"] is True
    assert (tmp_path / "package" / "parity.json").read_text() == (tmp_path / "out.json").read_text()
    assert "before" in results[1].stdout
    adapter = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (adapter["r"], len(adapter["target_modules"])) == (4, 7)
    assert "as written" in results[4].stdout
    assert "yes, " in results[4].stdout
    assert results[5].stdout.startswith("def add")
    assert "tokens/s" in results[5].stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter", "base", "liger", "out.json", "package", "text.txt",
    ]  # fmt: skip


@pytest.mark.slow
def test_missed_bound_exits_with_1(package_copy: Path, tmp_path: Path) -> None:
    other = write_liger(tmp_path / "other", seed=4)
    result = liger_export("validate", package_copy, "--reference", other, "--max-tokens", 4096)
    assert result.returncode == 1
    assert "MISSED" in result.stdout
    missed = liger_export("inspect", package_copy)
    assert "missed: " in missed.stdout


def test_run_reads_special_tokens_in_the_prompt_only_when_asked(package: Path) -> None:
    prompt = f"{END_OF_TEXT}ab"
    command = ("run", package, prompt, "-n", 2)
    assert f"{1 + len(prompt)} prompt tokens" in liger_export(*command).stderr  # with BOS
    assert "3 prompt tokens" in liger_export(*command, "--parse-special-tokens").stderr
    assert_refused(liger_export(*command, "--stop", ""), "A stop string is ''")


def test_run_shows_where_a_steps_time_goes(package: Path) -> None:
    result = liger_export("run", package, "ab", "-n", 4, "--profile")
    assert result.returncode == 0
    assert "3 calls of 1 token" in result.stderr
    assert "a call" in result.stderr
    assert "between nodes" not in result.stdout


def test_run_uses_the_packages_generation_defaults_and_options_override_them(
    checkpoint_copy: Path, package: Path, tmp_path: Path
) -> None:
    edit_json(checkpoint_copy / "generation_config.json", do_sample=True, top_k=1, repetition_penalty=5.0, num_beams=4)
    made = liger_export("convert", checkpoint_copy, "-o", tmp_path / "package")
    note = "note: ignored settings of generation_config.json: num_beams 4"
    assert note in made.stderr
    command = ("run", tmp_path / "package", "def", "-n", 12)
    greedy = liger_export("run", package, "def", "-n", 12).stdout
    assert note in liger_export(*command).stderr
    assert liger_export(*command).stdout == liger_export("run", package, *command[2:], "--repetition-penalty", 5).stdout
    assert liger_export(*command).stdout != greedy == liger_export(*command, "--repetition-penalty", 1).stdout
    shown = " ".join(liger_export("inspect", tmp_path / "package").stdout.split())
    assert "repetition_penalty 5.0, temperature 1.0, top_k 1" in shown
    assert "not applied: num_beams 4" in shown
    assert "generation greedy" in " ".join(liger_export("inspect", package).stdout.split())


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_help_says_what_a_command_does(subcommand: str) -> None:
    result = liger_export(subcommand, "--help")
    assert result.returncode == 0
    assert subcommand in result.stdout


def test_activations_that_contradict_the_weights_are_refused(checkpoint_copy: Path, tmp_path: Path) -> None:
    command = ("convert", checkpoint_copy, "-o", tmp_path / "package", "--precision")
    assert_refused(
        liger_export(*command, "fp16", "--activations", "bf16"), "need fp16 activations, not bf16", "--activations"
    )
    assert_refused(
        liger_export(*command, "int4", "--activations", "fp8"), "Unknown activation precision 'fp8'", "fp32, fp16, bf16"
    )


def test_convert_adds_the_graphs_that_other_engines_need(checkpoint_copy: Path, tmp_path: Path) -> None:
    package, folder = tmp_path / "package", tmp_path / "genai"
    more = ("--targets", "web", "--opset", 27, "--genai", folder)
    made = liger_export("convert", checkpoint_copy, "-o", package, *more)
    assert made.returncode == 0, made.stderr
    assert "stock and wasm and webgpu and standard lowering" in made.stdout
    assert (folder / "genai_config.json").is_file()
    assert (folder / "model.onnx.data").read_bytes() == (package / "model.onnx.data").read_bytes()
    assert liger_export("inspect", package).returncode == 0
    assert liger_export("genai", package, "-o", tmp_path / "again").returncode == 0
    assert_refused(liger_export("genai", package, "-o", folder), "already exists")
    assert_refused(liger_export("convert", checkpoint_copy, "-o", tmp_path / "other", "--opset", 26), "opset 26")


def test_what_genai_cannot_run_is_refused_before_the_package_is_written(checkpoint_copy: Path, tmp_path: Path) -> None:
    slots = write_liger(tmp_path / "slots", settings=LinearizeSettings(mixer="gsa"))
    (tmp_path / "genai").mkdir()
    for checkpoint, folder, word in (
        (slots, "new", "gsa"),
        (checkpoint_copy, "genai", "already exists"),
    ):
        command = ("convert", checkpoint, "-o", tmp_path / "package", "--genai", tmp_path / folder)
        assert_refused(liger_export(*command), word)
    assert_refused(liger_export(*command[:-1], tmp_path / "new", "--precision", "bf16"), "bfloat16")
    assert not (tmp_path / "package").exists()


def test_bad_input_is_refused_with_cause_and_fix(package_copy: Path, checkpoint_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_refused(liger_export("linearize", tmp_path / "empty", "-o", tmp_path / "out"), "no config.json")
    assert_refused(liger_export("convert", tmp_path / "empty", "-o", tmp_path / "out"), "no config.json")
    assert_refused(
        liger_export("convert", checkpoint_copy, "--adapter", tmp_path / "empty", "-o", tmp_path / "out"),
        "adapter_config.json is missing",
    )
    assert_refused(liger_export("run", tmp_path / "empty", "x"), "is not a package")
    assert_refused(liger_export("run", package_copy, "x", "--top-p", 3), "top_p")
    edit_json(package_copy / "manifest.json", format_version=99)
    assert_refused(liger_export("run", package_copy, "x"), "99", "Upgrade")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_bfloat16_package_without_a_fused_graph_is_made_noted_and_refused(
    checkpoint_copy: Path, tmp_path: Path
) -> None:
    package = tmp_path / "package"
    made = liger_export("convert", checkpoint_copy, "-o", package, "--precision", "bf16")
    assert made.returncode == 0
    assert ", bf16, stock lowering" in made.stdout
    assert "note: bfloat16 runs only with the fused graph" in made.stderr
    assert_refused(liger_export("run", package, "def"), "bfloat16", "--lowering fused", "fp16 instead of bf16")
    measured = liger_export("validate", package, "--reference", checkpoint_copy, "--max-tokens", 4096)
    assert "note: the stock graph does not run in bfloat16" in measured.stderr
    assert "bfloat16" in liger_export("inspect", package).stdout


def test_a_reader_may_close_the_output_early(package: Path) -> None:
    command = f"{sys.executable} -m liger_export run {package} def -n 2000 --temperature 1 --seed 0 | head -c 1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.stdout == "d"
    assert "Traceback" not in result.stderr


@needs_library
def test_lookup_prints_the_same_text_and_is_refused_on_the_stock_graph(liger_checkpoint: Path, tmp_path: Path) -> None:
    convert(liger_checkpoint, tmp_path / "package", lowering="fused")
    command = ("run", tmp_path / "package", "def f(a, b): return f(a, b)\ndef f(a, b)", "-n", 40)
    plain, guessed = liger_export(*command), liger_export(*command, "--lookup", 15)
    assert guessed.returncode == 0
    assert guessed.stdout == plain.stdout
    assert_refused(liger_export(*command, "--lookup", 15, "--lowering", "stock"), "other rounding", "--lowering fused")


def test_inspect_shows_a_damaged_package_and_exits_with_2(package_copy: Path) -> None:
    data = package_copy / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-5])
    result = liger_export("inspect", package_copy)
    assert_refused(result, "was truncated")
    assert "state per session" in result.stdout


def test_inspect_prints_the_contract_of_the_graphs(package: Path) -> None:
    found = json.loads(liger_export("inspect", package, "--contract", "--json").stdout)
    inputs = found["graphs"]["model.onnx"]["inputs"]
    assert [port["name"] for port in inputs][:3] == ["input_ids", "position_ids", "logits_to_keep"]
    assert inputs[3]["shape"] == ["batch", 2, 8, 8]
    shown = " ".join(liger_export("inspect", package, "--contract").stdout.split())
    assert "past_key_values.N.recurrent_state" in shown
    assert "float32 [batch, 2, 8, 8]" in shown
    assert_refused(liger_export("inspect", package, "--json"), "--json", "Add --contract")


def test_inspect_shows_measured_memory_growth(package_copy: Path) -> None:
    assert "not measured yet" in " ".join(liger_export("inspect", package_copy).stdout.split())
    measured = {"from_token": 64, "to_token": 5000, "bytes_grown": 0, "bytes_per_token": 0.0, "onnxruntime": "1.32.0"}
    edit_json(package_copy / "manifest.json", memory=measured)
    assert "0 bytes from token 64 to 5,000" in " ".join(liger_export("inspect", package_copy).stdout.split())


@pytest.mark.slow
def test_bench_prints_what_it_writes(package: Path, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    command = ("bench", package, "--against", f"hf:{base}", "--contexts", "16,40", "--tokens", 2, "--repeats", 1,
               "--threads", 1, "--json", tmp_path / "out.json", "--plot", tmp_path / "out.png")  # fmt: skip
    result = liger_export(*command, columns=80)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["contender"], row["context"]) for row in rows] == [
        ("package", 16), ("transformer", 16), ("package", 40), ("transformer", 40),
    ]  # fmt: skip
    for row in rows:
        assert f"{row['memory_bytes'] / 1e3:,.1f} kB" in result.stdout
        assert f"{row['peak_rss_bytes']['median'] / 1e6:,.1f} MB" in result.stdout
    assert "…" not in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--contexts", ""), ["no contexts", "128,4096"]),
        (("--contexts", "128,-1"), ["'-1'", "128,4096"]),
        (("--contexts", "many"), ["'many'", "128,4096"]),
        (("--against", "base"), ["'base'", "hf:DIR"]),
        (("--against", "hf:/nowhere"), ["/nowhere is not a directory", "hf:DIR"]),
        (("--plot", "/nowhere/out.png"), ["/nowhere", "Create it"]),
        (("--plot", "out.txt"), ["not have the suffix of an image format", ".png"]),
        (("--json", "/nowhere/out.json"), ["/nowhere", "Create it"]),
        (("--dtype", "int8"), ["int8", "bfloat16"]),
    ],
)
def test_bench_refuses_before_it_measures(package: Path, arguments: tuple[str, ...], words: list[str]) -> None:
    assert_refused(liger_export("bench", package, *arguments), *words)


@pytest.mark.slow
def test_build_engine_describes_the_engine_and_run_names_what_is_missing(package: Path, tmp_path: Path) -> None:
    refused = liger_export("build-engine", package, "--sm", "90", "-o", tmp_path / "engine")
    assert_refused(refused, "sm90", "Choose from: 80, 86, 89, 120, 121")
    command = ("build-engine", package, "--sm", "86, 89", "--sm", "120", "--chunk", 32, "--check-tokens", 24)
    result = liger_export(*command, "-o", tmp_path / "engine")
    assert result.returncode == 0, result.stderr
    words = ("sm86, sm89, sm120", "one token, and 32", "float32, no TF32", "step", "prefill: mean KL", "MB, built in")
    for each in words:
        assert each in result.stdout
    shown = liger_export("inspect", tmp_path / "engine")
    assert "a GPU of sm86, sm89, sm120" in " ".join(shown.stdout.split())
    assert "prefill: mean KL" in shown.stdout
    assert_refused(liger_export("run", tmp_path / "engine", "def"), "GPU")


def test_triton_names_its_models_after_the_package(package: Path, tmp_path: Path) -> None:
    result = liger_export("triton", package, "-o", tmp_path / "repository", "--batch", 3)
    assert result.returncode == 0, result.stderr
    assert "package_step and package_chunk" in result.stdout
    assert "max_batch_size: 3" in (tmp_path / "repository" / "package_step" / "config.pbtxt").read_text()
    assert_refused(liger_export("triton", package, "-o", tmp_path / "other", "--name", "a b"), "Pass --name")


def test_version_is_that_of_the_package() -> None:
    assert liger_export("--version").stdout == f"liger-export {version('liger-export')}\n"


@pytest.mark.parametrize("options", [(), ("--quiet",)])
def test_quiet_hides_progress_and_keeps_results(
    options: tuple[str, ...], checkpoint_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("liger_export.commands.console.LOG_SECONDS", 0.001)
    stderr = io.StringIO()
    monkeypatch.setattr("liger_export.commands.console.err", Console(file=stderr))
    result = liger_export("convert", checkpoint_copy, "-o", tmp_path / "package", *options)
    assert (" so far" in stderr.getvalue()) == (not options)
    assert "stock lowering" in result.stdout


@pytest.mark.parametrize(("option", "names"), [("--recipe", "paper, best"), ("--stage", "lora, transfer")])
def test_finetune_names_the_recipes_and_stages_that_exist(option: str, names: str, tmp_path: Path) -> None:
    result = liger_export("finetune", tmp_path, "--data", tmp_path, "-o", tmp_path / "out", option, "better")
    assert_refused(result, "'better'", names)
