"""``bench``: contenders in turn, each in a fresh process, at every context."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import liger_export
from liger_export import errors
from liger_export.bench.report import BenchReport, Machine, Row, Sample, processor_name
from liger_export.bench.settings import BenchSettings
from liger_export.bench.worker import PACKAGE, TRANSFORMER, Job
from liger_export.config import MODEL_TYPES, read_config_json
from liger_export.errors import EnvironmentMismatchError, InputError, UnsupportedModelError
from liger_export.package import Manifest, read_manifest
from liger_export.progress import NO_PROGRESS, Progress

__all__ = ["bench", "in_process"]

SHAPE_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    "vocab_size",
)


def bench(
    package: Path,
    against: Path | None = None,
    settings: BenchSettings | None = None,
    progress: Progress = NO_PROGRESS,
) -> BenchReport:
    """Measure a package, and a transformer beside it, at every context.

    Both run on the CPU with the same number of threads and read the same random tokens. Each measurement has a
    process to itself, so its peak memory is its own; contenders take turns, so a change in the machine's load
    falls on both.

    Args:
        package: the package's directory.
        against: a Hugging Face checkpoint with softmax attention, run by transformers with its KV cache.
        settings: how to measure.
        progress: counts runs; each run is a stage.

    Raises:
        InputError: a setting is out of range, or ``against`` is a Liger checkpoint.
        PackageError, CheckpointError, UnsupportedModelError: a directory is damaged or cannot be run.
        EnvironmentMismatchError: a process was ended from outside, for want of memory as a rule.
    """
    settings = settings or BenchSettings()
    settings.check()
    manifest = read_manifest(package)
    if against is not None:
        _check_transformer(against)
    manifest.check_files(package)  # once; the processes below trust it
    contenders = {PACKAGE: package} if against is None else {PACKAGE: package, TRANSFORMER: against}

    rows = []
    progress.start(len(settings.contexts) * settings.repeats * len(contenders))
    for context in settings.contexts:
        samples: dict[str, list[Sample]] = {name: [] for name in contenders}
        for repeat in range(settings.repeats):
            for name, directory in contenders.items():
                progress.stage(f"{name} at {context:,}")
                path = str(directory.absolute())
                job = Job(name, path, context, settings.tokens, settings.threads, settings.dtype, repeat)
                samples[name].append(in_process(job))
                progress.advance(1)
        rows += [Row.of(name, context, found) for name, found in samples.items()]
    progress.stage("done")
    return BenchReport(
        package=package.resolve().name,
        against=None if against is None else against.resolve().name,
        precisions=_precisions(manifest, against, settings),
        machine=_machine(against),
        settings=settings,
        rows=tuple(rows),
        notes=() if against is None else _shape_notes(manifest, against),
    )


def in_process(job: Job) -> Sample:
    """Run a job in a process of its own. Raises what it raised, or EnvironmentMismatchError if it was ended."""
    root = Path(liger_export.__file__).parents[1]  # found there whatever directory the command runs in
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-P", "-m", "liger_export.bench.worker", json.dumps(asdict(job))]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}
    )
    lines = result.stdout.splitlines()
    if result.returncode or not lines:
        told = result.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise EnvironmentMismatchError(
            f"The process that measured the {job.contender} at {job.context:,} tokens ended with code "
            f"{result.returncode} ({told[0]}).",
            "Free some memory, or leave out the longest contexts.",
        )
    answer: dict[str, Any] = json.loads(lines[-1])
    if "error" in answer:
        raise getattr(errors, answer["error"])(answer["cause"], answer["fix"])
    return Sample(**{**answer, "step_seconds": tuple(answer["step_seconds"])})


def _check_transformer(directory: Path) -> None:
    """Check what can be checked without the weights. torch is imported here, so not where a package runs alone."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from liger_export.checkpoint import Checkpoint

    model_type = read_config_json(directory).get("model_type")
    if model_type in MODEL_TYPES:
        raise InputError(
            f"{directory} is a Liger checkpoint, which has no KV cache.", "Pass the base that it was linearized from."
        )
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnsupportedModelError(
            f"{directory} has model_type {model_type!r}, which is no causal language model that transformers knows.",
            "Pass a transformer with softmax attention, such as the package's base.",
        )
    Checkpoint.open(directory)


def _shape_notes(manifest: Manifest, against: Path) -> tuple[str, ...]:
    """What differs between both models' shapes, if anything does."""
    ours, theirs = manifest.config, read_config_json(against)
    differing = [name for name in SHAPE_FIELDS if name in theirs and theirs[name] != ours.get(name)]
    if not differing:
        return ()
    return (f"The transformer has another shape than the package: {', '.join(differing)}.",)


def _precisions(manifest: Manifest, against: Path | None, settings: BenchSettings) -> dict[str, str]:
    described = {PACKAGE: f"{manifest.precision} in ONNX Runtime"}
    if against is not None:
        described[TRANSFORMER] = f"{settings.dtype} in PyTorch, transformers' default cache (DynamicCache)"
    return described


def _machine(against: Path | None) -> Machine:
    libraries = ["onnxruntime"] if against is None else ["onnxruntime", "torch", "transformers"]
    return Machine(processor_name(), {name: version(name) for name in libraries})
