"""``validate``: measure every law and tolerance on a package and write the report into it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from liger_export.checkpoint import Adapter, expected_tensors, open_liger
from liger_export.data import read_tokens
from liger_export.errors import DataError, InputError
from liger_export.files import sha256_file
from liger_export.package import FUSED, FUSED_CUDA, MANIFEST_FILE, REPORT_FILE, STOCK, read_manifest
from liger_export.parity.bfloat16 import ROUNDED, open_rounded, open_stock
from liger_export.parity.report import Check, ParityReport
from liger_export.parity.tolerances import tolerances_of
from liger_export.progress import NO_PROGRESS, Progress
from liger_export.runtime import Sampling, Session, load
from liger_export.runtime.buffers import CPU
from liger_export.runtime.growth import FIRST_TOKEN, Growth
from liger_export.runtime.opening import has_bfloat16
from liger_export.validate import laws
from liger_export.validate.reference import TorchReference

__all__ = ["validate"]

DRIFT_STEPS = 4096
LIBRARIES = ("liger-export", "numpy", "onnxruntime", "peft", "torch", "transformers")


def validate(
    package: Path,
    checkpoint: Path,
    *,
    adapters: tuple[Path, ...] = (),
    text: Path | None = None,
    max_tokens: int = 8192,
    memory_tokens: int = 4096,
    device: str | None = None,
    lowering: str | None = None,
    progress: Progress = NO_PROGRESS,
) -> ParityReport:
    """Compare a package with the PyTorch model it was made from; the report lands in the package.

    Args:
        package: package directory.
        checkpoint: the Liger checkpoint it was converted from.
        adapters: the adapters it was converted with.
        text: text to read; default: text that the package itself samples with seed 0.
        max_tokens: tokens of text to compare logits on, at least 4,096.
        memory_tokens: tokens to watch memory over, from token 64 on; the result lands in the package's manifest.
        device: as ``load`` takes it; memory is watched on the CPU whatever it is, if the package runs there. On a CPU,
            or where no GPU is, a bfloat16 package's stock graph is measured as ``rounded`` opens it, memory not.
        lowering: as ``load`` takes it.
        progress: told the name of each check when it is measured.

    Raises:
        PackageError, CheckpointError, AdapterError: an input cannot be read.
        InputError: the package is of another model, or ``max_tokens`` is too small.
        DataError: the text is too short.
    """
    if memory_tokens < 2 * FIRST_TOKEN:
        raise InputError(f"memory_tokens is {memory_tokens}.", f"At least {2 * FIRST_TOKEN} are needed.")
    if max_tokens < DRIFT_STEPS:
        raise InputError(f"max_tokens is {max_tokens}.", f"The drift check needs {DRIFT_STEPS:,}.")
    weights = open_liger(checkpoint).weights
    for adapter in adapters:
        Adapter.open(adapter).check(weights)
    session = _open(package, device, lowering)
    is_rounded = session.manifest.activations == "bfloat16" and session.device == CPU
    reference = TorchReference(checkpoint, adapters)
    config = session.manifest.model_config
    reference.require_config(config)
    growth = None if is_rounded else _certify_memory(package, session, memory_tokens)
    report = ParityReport(
        package=package.resolve().name,
        lowering=session.lowering,
        device=ROUNDED if is_rounded else session.device,
        reference=" + ".join(path.resolve().name for path in (checkpoint, *adapters)),
        manifest_sha256=sha256_file(package / MANIFEST_FILE),
        versions={name: version(name) for name in LIBRARIES},
    )
    tokens = _sample(session, max_tokens) if text is None else _encode(session, text, max_tokens)
    length = min(config.max_position_embeddings, 1024)
    blocks = np.split(tokens[: len(tokens) // length * length], len(tokens) // length)

    windows = sorted({config.layer_window(layer) for layer in range(config.num_hidden_layers)})
    window = windows[0]
    matrices = [name for name, shape in expected_tensors(config).items() if len(shape) == 2]
    subjects = laws.Subjects(
        session, reference, tolerances_of(session.manifest.precision, matrices, session.manifest.activations)
    )
    for checks in (
        laws.check_logits(subjects, blocks),
        laws.check_splits(subjects, tokens, windows),
        laws.check_drift(subjects, tokens, windows, DRIFT_STEPS),
        laws.check_batch_and_padding(subjects, tokens, window),
        laws.check_handover(subjects, tokens, window),
        laws.check_memory(session, growth),
        _check_against_stock(package, subjects, blocks[0]),
    ):
        for check in checks:
            report.checks.append(check)
            progress.stage(f"measured {check.name}")
    (package / REPORT_FILE).write_text(report.to_json(), encoding="utf-8")
    return report


def _open(package: Path, device: str | None, lowering: str | None) -> Session:
    """As ``load``, files compared with the manifest; a bfloat16 package without a GPU as ``open_rounded``."""
    manifest = read_manifest(package)
    is_here = device != CPU and (device is not None or has_bfloat16())
    if manifest.engine or manifest.activations != "bfloat16" or lowering == FUSED or is_here:
        return load(package, device=device, lowering=lowering, verify=True)
    manifest.check_files(package)
    return open_rounded(package)


def _check_against_stock(package: Path, subjects: laws.Subjects, tokens: laws.Tokens) -> Iterator[Check]:
    """Where another graph was measured, its distance to the stock one."""
    lowering = subjects.session.lowering
    if lowering != STOCK and STOCK in subjects.session.manifest.graphs:
        expected = open_stock(package).all_logits(tokens.tolist())
        measured = subjects.package_logits(tokens)
        yield subjects.tolerances.check(f"{lowering} against {STOCK}", measured, expected, f"{len(tokens):,} tokens")


def _certify_memory(package: Path, session: Session, tokens: int) -> Growth:
    """Measure growth in a process of its own, where nothing else allocates, and write it into the manifest.

    With one thread: each further one of a pool takes memory for its stack when it first gets work, early or late.
    """
    lowering = FUSED if session.lowering == FUSED_CUDA else session.lowering
    command = [sys.executable, "-m", "liger_export.runtime.growth", str(package.resolve())]
    command += ["--tokens", str(tokens), "--threads", "1", "--lowering", lowering]
    if session.manifest.engine is not None or session.manifest.activations == "bfloat16":
        command += ["--device", session.device]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    growth = Growth(**json.loads(output))
    (package / MANIFEST_FILE).write_text(replace(session.manifest, memory=asdict(growth)).to_json(), encoding="utf-8")
    return growth


def _encode(session: Session, text: Path, max_tokens: int) -> laws.Tokens:
    tokens = np.array(read_tokens(session.tokenizer, text, max_tokens), dtype=np.int64)
    if len(tokens) < DRIFT_STEPS:
        raise DataError(f"{text} holds {len(tokens):,} tokens.", f"At least {DRIFT_STEPS:,} are needed: add text.")
    return tokens


def _sample(session: Session, count: int) -> laws.Tokens:
    """Text from the package itself, so that validation needs no data: tokens it finds likely."""
    return np.array(session.sample_tokens(count, Sampling(temperature=1.0, seed=0)), dtype=np.int64)
