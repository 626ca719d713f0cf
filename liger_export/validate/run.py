"""``validate``: measure every law and tolerance of a package and write the report into it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from liger_export.checkpoint import Adapter, expected_tensors, open_liger
from liger_export.data import TextEncoder, read_tokens
from liger_export.errors import DataError, InputError, NotFiniteError, OutputError
from liger_export.files import new_file, sha256_file
from liger_export.package import FUSED, MANIFEST_FILE, REPORT_FILE, STOCK, Manifest, read_manifest
from liger_export.parity.opening import ROUNDED, open_emulated, open_stock
from liger_export.parity.report import Check, ParityReport
from liger_export.parity.tolerances import Tolerances, tolerances_of
from liger_export.progress import NO_PROGRESS, Progress
from liger_export.runtime import Sampling, Session, load
from liger_export.runtime.buffers import CPU
from liger_export.runtime.growth import FIRST_TOKEN, Growth
from liger_export.validate import laws
from liger_export.validate.memory import measure_memory, record_memory
from liger_export.validate.reference import TorchReference

__all__ = ["ValidationSettings", "can_record", "validate"]

DRIFT_STEPS = 4096
MAX_BLOCK = 1024  # tokens of a block on which logits are compared
LIBRARIES = ("liger-export", "numpy", "onnxruntime", "peft", "torch", "transformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationSettings:
    """Settings of ``validate``.

    Attributes:
        text: text to read; None for text that the package samples with seed 0.
        max_tokens: tokens of text to compare logits on, at least 4,096.
        memory_tokens: tokens to measure memory growth over, starting at token 64.
        device: device, as in ``load``. Memory is measured on the CPU if the package runs there, on any ``device``.
            A bfloat16 package's stock graph is emulated (``parity.open_emulated``), memory not measured.
        lowering: lowering, as in ``load``.
        record: write the report and the memory growth into the package; otherwise nothing in it is changed.
    """

    text: Path | None = None
    max_tokens: int = 8192
    memory_tokens: int = 4096
    device: str | None = None
    lowering: str | None = None
    record: bool = True

    def check(self) -> None:
        """Check the numbers of tokens. Raises InputError."""
        if self.memory_tokens < 2 * FIRST_TOKEN:
            raise InputError(
                f"memory_tokens is {self.memory_tokens}, which is too few to measure memory growth.",
                f"Use at least {2 * FIRST_TOKEN}.",
            )
        if self.max_tokens < DRIFT_STEPS:
            raise InputError(
                f"max_tokens is {self.max_tokens}, which is too few for the drift check.",
                f"Use at least {DRIFT_STEPS:,}.",
            )


def validate(
    package: Path,
    checkpoint: Path,
    settings: ValidationSettings | None = None,
    *,
    adapters: tuple[Path, ...] = (),
    progress: Progress = NO_PROGRESS,
) -> ParityReport:
    """Compare a package with the PyTorch model it was converted from.

    The report is written into the package, and the memory growth into its manifest, unless ``settings.record`` is
    false.

    Args:
        package: package directory.
        checkpoint: the Liger checkpoint that the package was converted from.
        adapters: the adapters that it was converted with.
        settings: what to measure; None for the defaults.
        progress: receives the name of each check after it is measured.

    Raises:
        PackageError, CheckpointError, AdapterError: an input cannot be read.
        InputError: the package was converted from another model, or a setting is too small.
        NotFiniteError: the package's logits are not finite. The report in the package says so.
        DataError: the text is too short.
        OutputError: the results cannot be written into the package, or it has been replaced meanwhile.
    """
    settings = settings or ValidationSettings()
    settings.check()
    weights = open_liger(checkpoint).weights
    for adapter in adapters:
        Adapter.open(adapter).check(weights)
    session = _open(package, settings)
    if settings.record and not can_record(package):
        raise OutputError(
            f"{package} is read-only, so the results cannot be written into it.",
            "Make it writable, or write the results elsewhere: --json FILE, in Python record=False.",
        )
    is_emulated = session.manifest.activations == "bfloat16" and session.lowering == STOCK
    reference = TorchReference(checkpoint, adapters)
    reference.require_config(session.manifest.model_config)
    progress.stage("measuring memory")
    growth = None if is_emulated else measure_memory(package, session, settings.memory_tokens)
    if growth is not None and settings.record:
        record_memory(package, session.manifest, growth)
    report = ParityReport(
        package=package.resolve().name,
        lowering=session.lowering,
        device=ROUNDED if is_emulated else session.device,
        reference=" + ".join(path.resolve().name for path in (checkpoint, *adapters)),
        manifest_sha256=sha256_file(package / MANIFEST_FILE),
        versions={name: version(name) for name in LIBRARIES},
    )
    subjects = laws.Subjects(session, reference, _tolerances(session.manifest))
    progress.stage("comparing with PyTorch")
    try:
        for check in _checks(package, subjects, _tokens(package, session, settings), growth):
            report.checks.append(check)
            progress.stage(f"comparing with PyTorch, {len(report.checks)} checks done")
    except NotFiniteError as error:
        report.checks.append(Check("logits: not finite", 1.0, 0.0, detail=error.cause))
        _record(report, package, settings)
        raise
    _record(report, package, settings)
    return report


def can_record(package: Path) -> bool:
    """Return True if the results can be written into a package."""
    files = [path for path in (package / MANIFEST_FILE, package / REPORT_FILE) if path.exists()]
    return all(os.access(path, os.W_OK) for path in (package, *files))


def _record(report: ParityReport, package: Path, settings: ValidationSettings) -> None:
    if settings.record:
        with new_file(package / REPORT_FILE) as file:
            file.write_text(report.to_json(), encoding="utf-8")


def _open(package: Path, settings: ValidationSettings) -> Session:
    """Open a package, its files checked against the manifest; the stock graph of a bfloat16 package is emulated."""
    manifest, device, lowering = read_manifest(package), settings.device, settings.lowering
    is_stock = lowering == STOCK or (lowering is None and FUSED not in manifest.graphs)
    if manifest.engine or manifest.activations != "bfloat16" or not is_stock or device not in (None, CPU):
        return load(package, device=device, lowering=lowering, verify=True)
    manifest.check_files(package)
    return open_emulated(package)


def _tolerances(manifest: Manifest) -> Tolerances:
    matrices = [name for name, shape in expected_tensors(manifest.model_config).items() if len(shape) == 2]
    config = manifest.model_config
    return tolerances_of(
        manifest.precision,
        matrices,
        manifest.activations,
        recurrent_layers=config.num_hidden_layers - len(config.softmax_layers),
        recurrent_weight=config.recurrent_weight,
    )


def _tokens(package: Path, session: Session, settings: ValidationSettings) -> laws.Tokens:
    """Tokens to read, int64 [T]: the text given, or text sampled by the package, so that no data is needed."""
    if settings.text is None:
        sampled = session.sample_tokens(settings.max_tokens, Sampling(temperature=1.0, seed=0))
        return np.array(sampled, dtype=np.int64)
    encoder = TextEncoder.of(package, session.tokenizer, session.manifest.model_config)
    tokens = np.array(read_tokens(encoder, settings.text, settings.max_tokens), dtype=np.int64)
    if len(tokens) < DRIFT_STEPS:
        raise DataError(
            f"{settings.text} has only {len(tokens):,} tokens.", f"Add text: at least {DRIFT_STEPS:,} are needed."
        )
    return tokens


def _checks(package: Path, subjects: laws.Subjects, tokens: laws.Tokens, growth: Growth | None) -> Iterator[Check]:
    """Run all laws, in the order of the report."""
    config = subjects.session.manifest.model_config
    length = min(config.max_position_embeddings, MAX_BLOCK)
    blocks = np.split(tokens[: len(tokens) // length * length], len(tokens) // length)
    windows = sorted({config.layer_window(layer) for layer in range(config.num_hidden_layers)})
    yield from laws.check_logits(subjects, blocks)
    if subjects.tolerances.has_integers:
        noise, check = laws.measure_noise(subjects, tokens, windows[0])
        yield check
        subjects = replace(subjects, tolerances=subjects.tolerances.allowing(noise))
    yield from laws.check_splits(subjects, tokens, windows)
    yield from laws.check_drift(subjects, tokens, windows, DRIFT_STEPS)
    yield from laws.check_batch_and_padding(subjects, tokens, windows[0])
    yield from laws.check_handover(subjects, tokens, windows[0])
    yield from laws.check_prefix(subjects, tokens)
    yield from laws.check_memory(subjects.session, growth)
    yield from _check_against_stock(package, subjects, blocks[0])


def _check_against_stock(package: Path, subjects: laws.Subjects, tokens: laws.Tokens) -> Iterator[Check]:
    """If another lowering was measured, compare it with the stock graph.

    Products of integers round their activations to 8 bits, so a difference in the last bit of one may become that of a
    whole rounding. For such packages, the distance of each graph from PyTorch counts, as after a handover.
    """
    lowering, tolerances = subjects.session.lowering, subjects.tolerances
    if lowering == STOCK or STOCK not in subjects.session.manifest.graphs:
        return
    name, detail = f"{lowering} against {STOCK}", f"{len(tokens):,} tokens"
    expected, measured = open_stock(package).all_logits(tokens.tolist()), subjects.package_logits(tokens)
    if tolerances.has_integers:
        yield Check(f"{name}: {tolerances.metric}", tolerances.distance(measured, expected), detail=detail)
        torch = subjects.reference.logits(tokens)
        yield tolerances.handover_check(f"{lowering} from PyTorch", measured, expected, torch, detail)
    else:
        yield tolerances.check(name, measured, expected, detail)
