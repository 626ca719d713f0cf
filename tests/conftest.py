"""Shared fixtures: a tiny Liger checkpoint, an adapter for it, and its package, each made once."""

import os
import shutil
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, by peft too: kernels then run on numpy

from peft import LoraConfig, get_peft_model

from liger_export.checkpoint import Checkpoint, write_base_record
from liger_export.package.build import convert
from tests.tiny import load_model, write_liger

torch.set_num_threads(1)  # the models are so small that threads cost more than they give


@pytest.fixture(scope="session")
def liger_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_liger(tmp_path_factory.mktemp("tiny") / "liger")


@pytest.fixture(scope="session")
def adapter(liger_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter with random factors that change the model clearly."""
    directory = tmp_path_factory.mktemp("tiny") / "adapter"
    torch.manual_seed(1)
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(load_model(liger_checkpoint), lora).save_pretrained(directory)
    write_base_record(directory, Checkpoint.open(liger_checkpoint))
    return directory


@pytest.fixture(scope="session")
def package(liger_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny") / "package"
    convert(liger_checkpoint, directory)
    return directory


@pytest.fixture
def package_copy(package: Path, tmp_path: Path) -> Path:
    """A package that a test may damage."""
    return Path(shutil.copytree(package, tmp_path / "package"))


@pytest.fixture
def checkpoint_copy(liger_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    return Path(shutil.copytree(liger_checkpoint, tmp_path / "liger"))
