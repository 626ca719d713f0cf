"""Two CPU processes under ``accelerate launch``: one run, one output, and the metrics of a single process.

Only ``--multi_gpu`` makes accelerate start several processes; ``--cpu`` starts several only through MPI.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from liger_export.checkpoint import open_liger
from liger_export.evaluate import evaluate
from liger_export.finetune import FinetuneSettings, finetune, transfer
from liger_export.linearize import LinearizeSettings
from tests.once import made_once
from tests.tiny import Shape, relative_l2, write_liger

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes"]
FSDP2 = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
ANY_PORT = ["--main_process_port", "0"]
ROOT = Path(__file__).parents[1]
FINETUNE = ["--sequence-length", 32, "--batch-size", 4, "--max-steps", 8, "--save-steps", 4, "--lr", 0.02]
TRANSFER = ["--stage", "transfer", "--sequence-length", 32, "--batch-size", 2, "--max-steps", 3, "--lr", 0.02]
EVALUATE = ["--sequence-length", 100, "--batch-size", 3, "--max-tokens", 1500]

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Launched:
    """A folder with the results of two launches of two processes."""

    folder: Path

    def output(self, job: str) -> str:
        """Standard output of both processes, whose exit codes are 0."""
        ranks = [json.loads((self.folder / f"{job}.{rank}.json").read_text()) for rank in range(2)]
        assert [rank["code"] for rank in ranks] == [0, 0], ranks
        return "".join(rank["stdout"] for rank in ranks)


def launch(
    *arguments: object, processes: int = 2, options: Sequence[str] = ("--multi_gpu",), cpu: bool = True
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "160", "NO_COLOR": "1"} | ({"ACCELERATE_USE_CPU": "true"} if cpu else {})
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [*LAUNCH, str(processes), *options, *ANY_PORT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)


@pytest.fixture
def launched(liger_checkpoint: Path, package: Path, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """Every command in two processes: in one launch, the last of which is interrupted, and in one that resumes it."""

    def make(folder: Path) -> None:
        text, lolcats = folder / "text.txt", folder / "lolcats"
        text.write_text("def add(a, b):\n    return a + b\n\n" * 200)
        write_liger(lolcats, settings=LinearizeSettings(mixer="lolcats"))
        finetuned = ["finetune", liger_checkpoint, "--data", text, "-o", folder / "adapters" / "two", *FINETUNE]
        jobs: dict[str, list[object]] = {
            "evaluate": [
                "evaluate",
                liger_checkpoint,
                package,
                "--text",
                text,
                "--json",
                folder / "out.json",
                *EVALUATE,
            ],
            "transfer": ["finetune", lolcats, "-o", folder / "transferred", "--data", text, *TRANSFER],
            "sharded-lora": ["sharded", lolcats, "lora"],
            "sharded-transfer": ["sharded", lolcats, "transfer"],
            "interrupted": ["interrupted", *finetuned],
        }
        (folder / "jobs.json").write_text(json.dumps({name: [*map(str, job)] for name, job in jobs.items()}))
        interrupted = launch("-m", "tests.launched", folder)
        assert (folder / "interrupted.0.json").exists(), interrupted.stderr
        assert interrupted.returncode != 0
        assert not (folder / "adapters" / "two").exists()
        resumed = launch("-m", "liger_export", *finetuned, "--resume")
        assert resumed.returncode == 0, resumed.stderr
        (folder / "resumed.txt").write_text(resumed.stdout)

    return Launched(made_once("launched", make, tmp_path_factory))


def test_two_processes_finetune_as_one_and_resume(liger_checkpoint: Path, launched: Launched, tmp_path: Path) -> None:
    resumed, adapters = (launched.folder / "resumed.txt").read_text(), launched.folder / "adapters"
    settings = FinetuneSettings(sequence_length=32, batch_size=8, max_steps=8, save_steps=4, learning_rate=0.02)
    single = finetune(liger_checkpoint, launched.folder / "text.txt", tmp_path / "one", settings)
    rows = [line.split() for line in resumed.splitlines()]
    metrics = {row[0]: row[1] for row in rows if row[:1] in (["before"], ["after"])}
    assert metrics == {"before": f"{single.before.loss:.4f}", "after": f"{single.after.loss:.4f}"}
    assert resumed.count("held out") == 2  # in the table's header and in the last line
    assert [path.name for path in adapters.iterdir()] == ["two"]
    assert sorted(path.name for path in (adapters / "two").iterdir()) == sorted(
        path.name for path in (tmp_path / "one").iterdir()
    )


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
@pytest.mark.parametrize("options", [["--multi_gpu"], FSDP2], ids=["ddp", "fsdp2"])
def test_two_gpus_finetune_as_one(options: list[str], code_text: Path, tmp_path: Path) -> None:
    """With the kernels, in bfloat16. FSDP also adds gradients up in bfloat16, so its adapter differs more."""
    shape = Shape(heads=4, key_value_heads=2, head_dim=32, window=16)
    checkpoint, adapters, losses = write_liger(tmp_path / "liger", shape), [], []
    for processes, of in ((1, ["--num_machines", "1"]), (2, options)):
        arguments: list[object] = ["-m", "liger_export", "finetune", checkpoint, "--data", code_text, "--lr", 0.02]
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


def test_two_processes_transfer_as_one(launched: Launched, tmp_path: Path) -> None:
    launched.output("transfer")
    lolcats, transferred = launched.folder / "lolcats", launched.folder / "transferred"
    settings = FinetuneSettings(sequence_length=32, batch_size=4, max_steps=3, learning_rate=0.02)
    transfer(lolcats, launched.folder / "text.txt", tmp_path / "one", settings)
    two, one, before = (open_liger(at).weights for at in (transferred, tmp_path / "one", lolcats))
    for name in ("query_map", "key_map"):
        tensor = f"model.layers.1.self_attn.{name}"
        assert relative_l2(two.read(tensor), one.read(tensor)) < 1e-5
        assert not one.read(tensor).equal(before.read(tensor))


@pytest.mark.parametrize(("stage", "adapted"), [("lora", 2 * 3 * 2), ("transfer", 2 * 3)])
def test_a_model_sharded_by_fsdp_has_the_unsharded_loss_and_gradients(
    stage: str, adapted: int, launched: Launched
) -> None:
    measured = json.loads(launched.output(f"sharded-{stage}"))
    assert measured["loss"] < 1e-5
    assert measured["gradient"] < 1e-5
    assert measured["of"] == adapted


def test_two_processes_evaluate_as_one(liger_checkpoint: Path, package: Path, launched: Launched) -> None:
    assert launched.output("evaluate").count("perplexity") == 1
    models = json.loads((launched.folder / "out.json").read_text())["models"]
    for entry, path in zip(models, (liger_checkpoint, package), strict=True):
        single = evaluate(path, launched.folder / "text.txt", sequence_length=100, batch_size=3, max_tokens=1500)
        assert entry["tokens"] == single.quality.tokens == 15 * 99
        assert entry["loss"] == pytest.approx(single.quality.loss, rel=1e-6)
        assert entry["accuracy"] == single.quality.accuracy
        ranges = [(positions.start, quality.accuracy) for positions, quality in single.scores.ranges()]
        assert [(part["first"], part["accuracy"]) for part in entry["positions"]] == ranges
