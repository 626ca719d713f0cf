"""Two CPU processes under ``accelerate launch``: one run, one output, and the metrics of a single process.

Only ``--multi_gpu`` makes accelerate start several processes; ``--cpu`` starts several only through MPI.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from liger_export.checkpoint import open_liger
from liger_export.evaluate import evaluate
from liger_export.finetune import FinetuneSettings, finetune, transfer
from liger_export.linearize import LinearizeSettings
from tests.tiny import Shape, relative_l2, write_liger

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes"]
FSDP2 = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
ANY_PORT = ["--main_process_port", "0"]
ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow

# Interrupts a run after its last step, when there is a checkpoint to resume from.
INTERRUPTED = """
from liger_export import cli
from liger_export.finetune import training

measure, calls = training.measure_quality, []

def interrupt(*arguments, **options):
    calls.append(arguments)
    if len(calls) == 2:
        raise KeyboardInterrupt
    return measure(*arguments, **options)

training.measure_quality = interrupt
cli.main()
"""


def launch(
    *arguments: object, processes: int = 2, options: Sequence[str] = ("--multi_gpu",), cpu: bool = True
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "160", "NO_COLOR": "1"} | ({"ACCELERATE_USE_CPU": "true"} if cpu else {})
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [*LAUNCH, str(processes), *options, *ANY_PORT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("def add(a, b):\n    return a + b\n\n" * 200)
    return path


def test_two_processes_finetune_as_one_and_resume(liger_checkpoint: Path, text: Path, tmp_path: Path) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(INTERRUPTED)
    options = ["finetune", liger_checkpoint, "--data", text, "-o", tmp_path / "two", "--sequence-length", 32]
    options += ["--batch-size", 4, "--max-steps", 8, "--save-steps", 4, "--lr", 0.02]
    interrupted = launch(driver, *options)
    assert interrupted.returncode != 0
    assert not (tmp_path / "two").exists()

    resumed = launch("-m", "liger_export", *options, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    settings = FinetuneSettings(sequence_length=32, batch_size=8, max_steps=8, save_steps=4, learning_rate=0.02)
    single = finetune(liger_checkpoint, text, tmp_path / "one", settings)
    rows = [line.split() for line in resumed.stdout.splitlines()]
    metrics = {row[0]: row[1] for row in rows if row[:1] in (["before"], ["after"])}
    assert metrics == {"before": f"{single.before.loss:.4f}", "after": f"{single.after.loss:.4f}"}
    assert resumed.stdout.count("held out") == 2  # in the table's header and in the last line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["driver.py", "one", "text.txt", "two"]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(
        path.name for path in (tmp_path / "one").iterdir()
    )


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
@pytest.mark.parametrize("options", [["--multi_gpu"], FSDP2], ids=["ddp", "fsdp2"])
def test_two_gpus_finetune_as_one(options: list[str], text: Path, tmp_path: Path) -> None:
    """With the kernels, in bfloat16. FSDP also adds gradients up in bfloat16, so its adapter differs more."""
    shape = Shape(heads=4, key_value_heads=2, head_dim=32, window=16)
    checkpoint, adapters, losses = write_liger(tmp_path / "liger", shape), [], []
    for processes, of in ((1, ["--num_machines", "1"]), (2, options)):
        arguments: list[object] = ["-m", "liger_export", "finetune", checkpoint, "--data", text, "--lr", 0.02]
        arguments += ["-o", tmp_path / f"{processes}", "--sequence-length", 128, "--max-steps", 8, "--save-steps", 4]
        result = launch(*arguments, "--batch-size", 4 // processes, processes=processes, options=of, cpu=False)
        assert result.returncode == 0, result.stderr
        rows = [line.split() for line in result.stdout.splitlines()]
        losses.append([float(row[1]) for row in rows if row[:1] in (["before"], ["after"])])
        adapters.append(load_file(tmp_path / f"{processes}" / "adapter_model.safetensors"))
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)
    assert losses[0][1] < losses[0][0] - 0.1
    one, two = adapters
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert options == FSDP2 or relative_l2(two[name], weight) < 5e-2, name


@pytest.fixture
def lolcats(tmp_path: Path) -> Path:
    return write_liger(tmp_path / "lolcats", settings=LinearizeSettings(mixer="lolcats"))


def test_two_processes_transfer_as_one(lolcats: Path, text: Path, tmp_path: Path) -> None:
    options = ["--stage", "transfer", "--data", text, "--sequence-length", 32, "--max-steps", 3, "--lr", 0.02]
    launched = launch("-m", "liger_export", "finetune", lolcats, "-o", tmp_path / "two", "--batch-size", 2, *options)
    assert launched.returncode == 0, launched.stderr
    settings = FinetuneSettings(sequence_length=32, batch_size=4, max_steps=3, learning_rate=0.02)
    transfer(lolcats, text, tmp_path / "one", settings)
    two, one, before = (open_liger(at).weights for at in (tmp_path / "two", tmp_path / "one", lolcats))
    for name in ("query_map", "key_map"):
        tensor = f"model.layers.1.self_attn.{name}"
        assert relative_l2(two.read(tensor), one.read(tensor)) < 1e-5
        assert not one.read(tensor).equal(before.read(tensor))


@pytest.mark.parametrize(("stage", "adapted"), [("lora", 2 * 3 * 2), ("transfer", 2 * 3)])
def test_a_model_sharded_by_fsdp_has_the_unsharded_loss_and_gradients(stage: str, adapted: int, lolcats: Path) -> None:
    result = launch("-m", "tests.sharded", lolcats, stage)
    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout)
    assert measured["loss"] < 1e-5
    assert measured["gradient"] < 1e-5
    assert measured["of"] == adapted


def test_two_processes_evaluate_as_one(liger_checkpoint: Path, package: Path, text: Path, tmp_path: Path) -> None:
    report = tmp_path / "out.json"
    options = ["--text", text, "--sequence-length", 100, "--batch-size", 3, "--max-tokens", 1500, "--json", report]
    result = launch("-m", "liger_export", "evaluate", liger_checkpoint, package, *options)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("perplexity") == 1
    for entry, path in zip(json.loads(report.read_text())["models"], (liger_checkpoint, package), strict=True):
        single = evaluate(path, text, sequence_length=100, batch_size=3, max_tokens=1500)
        assert entry["tokens"] == single.quality.tokens == 15 * 99
        assert entry["loss"] == pytest.approx(single.quality.loss, rel=1e-6)
        assert entry["accuracy"] == single.quality.accuracy
        ranges = [(positions.start, quality.accuracy) for positions, quality in single.scores.ranges()]
        assert [(part["first"], part["accuracy"]) for part in entry["positions"]] == ranges
