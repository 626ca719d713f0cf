"""Fixtures that all tests share: a tiny Liger checkpoint, an adapter for it and its package."""

import hashlib
import json
import os
import shutil
import string
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import onnx_ir as ir
import onnxruntime
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # set before peft imports Triton: kernels then run on numpy

from peft import LoraConfig, get_peft_model
from torch.onnx._internal._lazy_import import onnxscript_apis

from liger_export.checkpoint import Checkpoint, write_base_record
from liger_export.config import LigerConfig
from liger_export.convert import convert
from liger_export.export import trace
from tests.conftest import COMPILED
from tests.once import made_once
from tests.tiny import load_model, write_liger
from tests.traced import read_traced, write_traced


@pytest.fixture
def ran_code(record_property: Callable[[str, object], None]) -> Callable[[str, bytes], None]:
    """Function that takes a name and the compiled code that a test runs, and adds its SHA-256 to the test report."""
    return lambda name, code: record_property(COMPILED, f"{hashlib.sha256(code).hexdigest()} {name}")


class OneThread(onnxruntime.SessionOptions):  # type: ignore[misc]
    """Session options of one thread, unless a test sets a number."""

    def __init__(self) -> None:
        super().__init__()
        self.intra_op_num_threads = 1


@pytest.fixture(scope="session", autouse=True)
def one_thread_per_session() -> Iterator[None]:
    with patch.object(onnxruntime, "SessionOptions", OneThread):
        yield


@pytest.fixture(scope="session", autouse=True)
def traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trace each model only once per test run, because PyTorch's exporter takes seconds."""

    def read_or_traced(config: LigerConfig, values: dict[str, Any], activations: str = "float32") -> ir.Model:
        shapes = {name: value for name, value in values.items() if name != "initializer_range"}
        key = json.dumps([shapes, activations], sort_keys=True)
        name = f"trace-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        folder = made_once(
            name, lambda folder: write_traced(trace(config, values, activations), folder), tmp_path_factory
        )
        return read_traced(folder)

    with (
        patch("liger_export.convert.trace", read_or_traced),
        patch("liger_export.engine.graphs.trace", read_or_traced),
        patch.object(
            onnxscript_apis, "get_torchlib_ops", cache(onnxscript_apis.get_torchlib_ops)
        ),  # a fifth of a trace
    ):
        yield


@pytest.fixture(scope="session")
def liger_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_liger(tmp_path_factory.mktemp("tiny") / "liger")


@pytest.fixture(scope="session")
def random_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of the minimum length for ``validate``; the tiny models have one token per byte."""
    path = tmp_path_factory.mktemp("text") / "random.txt"
    path.write_text("".join(Random(0).choices(string.printable, k=4200)))
    return path


@pytest.fixture
def code_text(tmp_path: Path) -> Path:
    """Training text: a short function, again and again."""
    path = tmp_path / "text.txt"
    path.write_text("def add(a, b):\n    return a + b\n\n" * 200)
    return path


@pytest.fixture(scope="session")
def adapter(liger_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter with large random factors."""
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
    """A copy of the package that a test may modify."""
    return Path(shutil.copytree(package, tmp_path / "package"))


@pytest.fixture
def checkpoint_copy(liger_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may modify."""
    return Path(shutil.copytree(liger_checkpoint, tmp_path / "liger"))
