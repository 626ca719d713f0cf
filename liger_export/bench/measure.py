"""The ``bench`` command: the systems take turns, each in a fresh process, at every context length."""

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
from liger_export.errors import EnvironmentMismatchError, InputError
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
    """Measure a package, and optionally a transformer for comparison, at every context length.

    Both run on the CPU with the same number of threads and read the same random tokens. Each measurement has its own
    process, so peak memory is not shared. The systems take turns, so a change in the machine's load affects both.

    Args:
        package: the package's directory.
        against: a Hugging Face checkpoint with softmax attention, run by transformers with its KV cache.
        settings: what to measure, and how.
        progress: counts runs; each run is a stage.

    Raises:
        InputError: a setting is out of range, or ``against`` is a Liger checkpoint.
        PackageError, CheckpointError, UnsupportedModelError: a directory is damaged or cannot be run.
        EnvironmentMismatchError: a measuring process was killed, usually for lack of memory.
    """
    settings = settings or BenchSettings()
    settings.check()
    manifest = read_manifest(package)
    if against is not None:
        _check_transformer(against)
    manifest.check_files(package)  # once: the processes below do not check again
    systems = {PACKAGE: package} if against is None else {PACKAGE: package, TRANSFORMER: against}

    rows = []
    progress.start(len(settings.contexts) * settings.repeats * len(systems))
    for context in settings.contexts:
        samples: dict[str, list[Sample]] = {name: [] for name in systems}
        for repeat in range(settings.repeats):
            for name, directory in systems.items():
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
        model=_model_name(manifest),
    )


def _model_name(manifest: Manifest) -> str:
    """The type, size and checkpoint of a package's model."""
    config = manifest.model_config
    size = f"{config.num_hidden_layers} layers of {config.hidden_size}"
    return f"{config.model_type} ({size}) from {manifest.source['name']}"


def in_process(job: Job) -> Sample:
    """Run a job in a new process. Raises the job's own error, or EnvironmentMismatchError if the process died."""
    root = Path(liger_export.__file__).parents[1]  # makes the import independent of the working directory
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-P", "-m", "liger_export.bench.worker", json.dumps(asdict(job))]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}
    )
    lines = result.stdout.splitlines()
    if result.returncode or not lines:
        told = result.stderr.strip().splitlines()[-1:] or ["no output"]
        raise EnvironmentMismatchError(
            f"The process that measured the {job.system} at {job.context:,} tokens ended with code "
            f"{result.returncode} ({told[0]}).",
            "Free some memory, or omit the longest contexts.",
        )
    answer: dict[str, Any] = json.loads(lines[-1])
    if "error" in answer:
        raise getattr(errors, answer["error"])(answer["cause"], answer["fix"])
    return Sample(**{**answer, "step_seconds": tuple(answer["step_seconds"])})


def _check_transformer(directory: Path) -> None:
    """Check everything that needs no weights. torch is imported here, so only if there is a transformer."""
    from liger_export.checkpoint import Checkpoint
    from liger_export.checkpoint.causal_lm import check_causal_lm

    if read_config_json(directory).get("model_type") in MODEL_TYPES:
        raise InputError(
            f"{directory} is a Liger checkpoint, which has no KV cache.",
            "Pass the base checkpoint that it was linearized from.",
        )
    check_causal_lm(directory)
    Checkpoint.open(directory)


def _shape_notes(manifest: Manifest, against: Path) -> tuple[str, ...]:
    """Name the sizes in which the two models differ, if any."""
    ours, theirs = manifest.config, read_config_json(against)
    differing = [name for name in SHAPE_FIELDS if name in theirs and theirs[name] != ours.get(name)]
    if not differing:
        return ()
    return (f"The transformer's shape differs from the package's: {', '.join(differing)}.",)


def _precisions(manifest: Manifest, against: Path | None, settings: BenchSettings) -> dict[str, str]:
    described = {PACKAGE: f"{manifest.precision} in ONNX Runtime"}
    if against is not None:
        described[TRANSFORMER] = f"{settings.dtype} in PyTorch, transformers' default cache (DynamicCache)"
    return described


def _machine(against: Path | None) -> Machine:
    libraries = ["onnxruntime"] if against is None else ["onnxruntime", "torch", "transformers"]
    return Machine(processor_name(), {name: version(name) for name in libraries})
