"""``convert``: checkpoint and adapters in, package out."""

import hashlib
import json
from pathlib import Path
from typing import Any

import onnx_ir as ir
from tokenizers import Tokenizer
from torch import Tensor

from liger_export.checkpoint import Adapter, Checkpoint, MergedCheckpoint, expected_tensors, open_liger
from liger_export.config import LigerConfig
from liger_export.errors import CheckpointError, PackageError, UnsupportedModelError
from liger_export.export import (
    WeightSource,
    attach_weights,
    in_place_states,
    lower,
    lower_to_cuda,
    lower_to_fused,
    require_fusable,
    trace,
    weight_bytes,
)
from liger_export.export.weights import Weight
from liger_export.files import TOKENIZER_FILES, copy_files, new_directory, require_space, sha256_file, sha256_files
from liger_export.kernels.targets import require_target
from liger_export.package.manifest import (
    FUSED,
    FUSED_CUDA,
    MANIFEST_FILE,
    MODEL_FILES,
    STOCK,
    Graph,
    Manifest,
    describe_files,
)
from liger_export.precision import EMBEDDING, Calibration, Precision
from liger_export.progress import NO_PROGRESS, Progress
from liger_export.quantize.calibrated import CalibratedCheckpoint, read_calibration
from liger_export.quantize.source import RoundedCheckpoint
from liger_export.runtime import read_tokenizer

__all__ = ["convert"]

DATA_FILE = MODEL_FILES[STOCK] + ".data"
MINIMUM_ONNXRUNTIME = "1.31.0"
GRAPH_BYTES = 64 << 20  # room for everything but the weights


def convert(
    checkpoint: Path,
    output: Path,
    *,
    adapters: tuple[Path, ...] = (),
    lowering: str = STOCK,
    targets: tuple[str, ...] = (),
    precision: Precision | None = None,
    calibration: Calibration | None = None,
    overwrite: bool = False,
    progress: Progress = NO_PROGRESS,
) -> Manifest:
    """Merge adapters into a Liger checkpoint, trace it into one ONNX graph, and write a package.

    Args:
        checkpoint: a Liger checkpoint directory with a ``tokenizer.json``.
        output: package directory to create; complete or absent afterwards.
        adapters: PEFT LoRA adapter directories, merged in this order.
        lowering: ``stock``, or ``fused`` for a second graph over the same weights.
        targets: GPU architectures, keys of ``kernels.targets.TARGETS``; with any, ``fused`` adds a third graph, for
            CUDA, and compiles its kernels.
        precision: how weights are stored; default: float32.
        calibration: text for the method that reads one, and for no other.
        overwrite: replace ``output`` if it exists.
        progress: counts the bytes of weights written.

    Raises:
        CheckpointError, UnsupportedModelError, AdapterError, QuantizationError, KernelError: the input cannot be
            converted.
        DataError: the calibration text cannot be read.
        OutputError: ``output`` exists or cannot be written.
    """
    precision = precision or Precision()
    precision.check_calibration(calibration)
    opened = open_liger(checkpoint)
    values = _with_generation_ends(opened.values, checkpoint)
    config = LigerConfig.from_dict(values)
    _check_lowering(lowering, targets, config)
    weights = MergedCheckpoint(opened.weights, tuple(Adapter.open(path) for path in adapters))
    tokenizer = _read_tokenizer(checkpoint)
    weights.check()
    matrices = {name: shape for name, shape in expected_tensors(config).items() if len(shape) == 2}
    precision.check(matrices, config.tie_word_embeddings)

    tokens = read_calibration(calibration, tokenizer) if calibration else None
    source: WeightSource = RoundedCheckpoint(weights, precision.method)
    if tokens is not None:
        source = CalibratedCheckpoint(weights, config, precision, tokens)

    read = (checkpoint, *adapters, *([calibration.text] if calibration else []))
    with new_directory(output, overwrite, inputs=read) as partial:
        progress.stage("tracing")
        model = trace(config, values, precision.activations)
        stored = lower(model, STOCK, {name: precision.scheme(name) for name in matrices})
        models = {STOCK: model}
        if lowering == FUSED:
            models |= _fused(model, config, precision.activations, targets, progress)
        _sort_by_layer(stored, config)
        nbytes = weight_bytes(stored)
        require_space(output, nbytes + GRAPH_BYTES)
        progress.stage("writing weights")
        progress.start(nbytes)
        attach_weights(stored, source, partial / DATA_FILE, progress)
        graphs = _write_graphs(models, partial, targets)
        copy_files(TOKENIZER_FILES, checkpoint, partial)
        progress.stage("hashing")
        manifest = Manifest(
            source=_describe_source(weights.checkpoint),
            adapters=[_describe_adapter(adapter) for adapter in weights.adapters],
            config=values,
            precision=precision,
            calibration=_describe_calibration(calibration, tokens),
            graphs=graphs,
            files=describe_files(partial),
        )
        (partial / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _sort_by_layer(stored: list[Weight], config: LigerConfig) -> None:
    """In the order in which calibration computes them, and the table last: a tied one is the head."""
    order = {name: place for place, name in enumerate(expected_tensors(config))}
    stored.sort(key=lambda weight: (EMBEDDING in weight.tensors, order[weight.tensors[0]]))


def _check_lowering(lowering: str, targets: tuple[str, ...], config: LigerConfig) -> None:
    if lowering not in (STOCK, FUSED):
        raise UnsupportedModelError(f"There is no lowering {lowering!r}.", f"Choose one of: {FUSED}, {STOCK}.")
    for target in targets:
        require_target(target)
    if lowering == FUSED:
        require_fusable(config)
    elif targets:
        raise UnsupportedModelError(
            "Only the fused lowering has GPU kernels.", "Add --lowering fused, or drop --targets."
        )


def _fused(
    model: ir.Model, config: LigerConfig, activations: str, targets: tuple[str, ...], progress: Progress
) -> dict[str, ir.Model]:
    """The fused graph and, with GPU kernels, the one for CUDA, both without data yet."""
    models = {FUSED: model.clone()}
    lower_to_fused(models[FUSED])
    if targets:
        progress.stage("compiling GPU kernels")
        models[FUSED_CUDA] = models[FUSED].clone()
        lower_to_cuda(models[FUSED_CUDA], config, activations, targets)
    return models


def _write_graphs(models: dict[str, ir.Model], directory: Path, targets: tuple[str, ...]) -> dict[str, Graph]:
    """Write every lowering over the weights that the stock graph refers to; returns what the manifest says of them."""
    weights = models[STOCK].graph.initializers
    for lowering, model in models.items():
        for name, value in model.graph.initializers.items():
            value.const_value = weights[name].const_value if value.const_value is None else value.const_value
        ir.save(model, directory / MODEL_FILES[lowering])
    return {
        lowering: _describe_graph(model, targets if lowering == FUSED_CUDA else ())
        for lowering, model in models.items()
    }


def _describe_graph(model: ir.Model, targets: tuple[str, ...]) -> Graph:
    return Graph(
        opsets={domain or "ai.onnx": version for domain, version in model.opset_imports.items()},
        onnxruntime=MINIMUM_ONNXRUNTIME,
        in_place=in_place_states(model),
        targets=list(targets),
    )


def _read_tokenizer(checkpoint: Path) -> Tokenizer:
    """The tokenizer that the package will have. Raises CheckpointError if there is none that can be read."""
    path = checkpoint / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{checkpoint} holds no tokenizer.json.", "Save the model's fast tokenizer there.")
    try:
        return read_tokenizer(checkpoint)
    except PackageError as error:
        cause = error.__cause__
        raise CheckpointError(f"{path} cannot be read ({cause}).", "Save the model's fast tokenizer again.") from cause


def _with_generation_ends(values: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """A config whose end-of-text ids are also those that transformers' ``generate`` would stop at."""
    path = checkpoint / "generation_config.json"
    if not path.is_file():
        return values
    try:
        ends = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}).", "Restore the original file.") from error
    return values if ends is None else {**values, "eos_token_id": ends}


def _describe_source(checkpoint: Checkpoint) -> dict[str, object]:
    digests = sha256_files(sorted([*checkpoint.files, checkpoint.directory / "config.json"]))
    return {
        "name": checkpoint.directory.resolve().name,
        "files": {file.name: digest for file, digest in digests.items()},
    }


def _describe_adapter(adapter: Adapter) -> dict[str, object]:
    return {
        "name": adapter.directory.resolve().name,
        "sha256": sha256_file(adapter.directory / "adapter_model.safetensors"),
        "base_verified": adapter.base_sha256 is not None,
    }


def _describe_calibration(calibration: Calibration | None, tokens: Tensor | None) -> dict[str, object] | None:
    if calibration is None or tokens is None:
        return None
    digest = hashlib.sha256(tokens.numpy().astype("<i8").tobytes()).hexdigest()
    return {"name": calibration.text.resolve().name, "tokens": tokens.numel(), "tokens_sha256": digest}
