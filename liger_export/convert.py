"""``convert``: write a package from a Liger checkpoint and its adapters."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from tokenizers import Tokenizer
from torch import Tensor

from liger_export.checkpoint import Adapter, Checkpoint, MergedCheckpoint, expected_tensors, open_liger
from liger_export.config import LigerConfig, with_end_tokens
from liger_export.data import TextEncoder
from liger_export.errors import CheckpointError, PackageError, UnsupportedModelError
from liger_export.export import (
    ONNX_OPSET,
    STANDARD_OPSET,
    WeightSource,
    attach_weights,
    fuse_for_cpu,
    in_place_states,
    lower_to_cuda,
    lower_to_fused,
    lower_to_standard,
    lower_to_stock,
    lower_to_wasm,
    lower_to_webgpu,
    require_fusable,
    require_standard,
    trace,
    weight_bytes,
)
from liger_export.export.weights import Weight
from liger_export.files import CARRIED_FILES, copy_files, require_space, sha256_file, sha256_meanwhile
from liger_export.kernels.shapes import KERNEL_MIXERS
from liger_export.kernels.targets import require_target
from liger_export.package.manifest import (
    FUSED,
    FUSED_CUDA,
    MANIFEST_FILE,
    MODEL_FILES,
    STANDARD,
    STOCK,
    WASM,
    WEBGPU,
    Graph,
    Manifest,
    describe_files,
)
from liger_export.page_cache import drop_cached
from liger_export.precision import EMBEDDING, Calibration, Precision
from liger_export.prefix import add_prefix, read_prefix_text
from liger_export.progress import NO_PROGRESS, Progress
from liger_export.publishing import new_directory
from liger_export.quantize.calibrated import CalibratedCheckpoint, read_calibration
from liger_export.quantize.source import RoundedCheckpoint
from liger_export.runtime import read_tokenizer
from liger_export.runtime.defaults import read_defaults

__all__ = ["convert"]

WEB = "web"  # the target that is not a GPU architecture
DATA_FILE = MODEL_FILES[STOCK] + ".data"
MINIMUM_ONNXRUNTIME = "1.31.0"
STANDARD_ONNXRUNTIME = "1.32.0"  # with LinearAttention of ai.onnx
GRAPH_BYTES = 64 << 20  # disk space for everything but the weights


def convert(
    checkpoint: Path,
    output: Path,
    *,
    adapters: tuple[Path, ...] = (),
    lowering: str = STOCK,
    targets: tuple[str, ...] = (),
    precision: Precision | None = None,
    calibration: Calibration | None = None,
    prefix: Path | None = None,
    opset: int = ONNX_OPSET,
    overwrite: bool = False,
    progress: Progress = NO_PROGRESS,
) -> Manifest:
    """Merge adapters into a Liger checkpoint, trace it into one ONNX graph, and write a package.

    Args:
        checkpoint: Liger checkpoint directory with a ``tokenizer.json``.
        output: package directory to create; it is written completely or not at all.
        adapters: PEFT LoRA adapter directories, merged in this order.
        lowering: ``stock``, or ``fused`` to add a second graph over the same weights.
        targets: GPU architectures, keys of ``kernels.targets.TARGETS``, and ``web``. With ``fused``, GPU architectures
            add a graph for CUDA and its compiled kernels. ``web`` adds two graphs for browsers.
        precision: how to store the weights; default: float32.
        calibration: text for the ``gptq`` method; required by it, and by no other method.
        prefix: file with a system prompt whose state the package ships.
        opset: 23, or 27 to add a graph in ONNX's own operators only.
        overwrite: replace ``output`` if it exists.
        progress: counts the bytes of weights written.

    Raises:
        CheckpointError, UnsupportedModelError, AdapterError, QuantizationError, KernelError: the input cannot be
            converted.
        EnvironmentMismatchError: the installed onnx does not know the opset.
        DataError: the calibration text or the prefix cannot be read.
        InputError: the chat template has no place for the prefix.
        OutputError: ``output`` exists or cannot be written.
    """
    precision = precision or Precision()
    precision.check_calibration(calibration)
    prefix_text = None if prefix is None else read_prefix_text(prefix, precision)
    model = _Model.open(checkpoint, adapters, precision)
    gpus = tuple(target for target in targets if target != WEB)
    _check_lowering(lowering, gpus, model.config)
    _check_web(targets, precision)
    _check_opset(opset, model.config)
    tokens = read_calibration(calibration, model.encoder) if calibration else None
    source = model.weight_source(tokens)
    inputs = (checkpoint, *adapters, *([calibration.text] if calibration else []), *([prefix] if prefix else []))
    with new_directory(output, overwrite, inputs) as partial, sha256_meanwhile(model.source_files) as digests:
        graphs, weights = _build_graphs(model, lowering, gpus, progress)
        nbytes = weight_bytes(weights)
        require_space(output, nbytes + GRAPH_BYTES)
        progress.stage("writing weights")
        progress.start(nbytes)
        attach_weights(weights, source, partial / DATA_FILE, progress)
        drop_cached(partial / DATA_FILE)  # its hash reads it again, in order
        if WEB in targets:
            graphs |= _web_graphs(graphs[STOCK])
        if opset == STANDARD_OPSET:
            graphs[STANDARD] = graphs[STOCK].clone()
            lower_to_standard(graphs[STANDARD])
        described = _write_graphs(graphs, partial, gpus)
        copy_files(CARRIED_FILES, checkpoint, partial)
        progress.stage("hashing")
        source_digests = digests.result()
        manifest = _describe(model, described, source_digests, _describe_calibration(calibration, tokens), partial)
        (partial / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
        if prefix is not None and prefix_text is not None:
            progress.stage("reading the prefix")
            manifest = add_prefix(partial, manifest, prefix.resolve().name, prefix_text)
    return manifest


@dataclass(frozen=True, slots=True)
class _Model:
    """A checkpoint with its adapters, checked, and the precision to store it in.

    Attributes:
        values: the checkpoint's ``config.json``, with the end-of-text ids of its ``generation_config.json``.
        config: ``values``, parsed.
        weights: the checkpoint's tensors with the adapters merged.
        encoder: the checkpoint's tokenizer.
        precision: how to store the weights.
    """

    values: dict[str, Any]
    config: LigerConfig
    weights: MergedCheckpoint
    encoder: TextEncoder
    precision: Precision

    @classmethod
    def open(cls, checkpoint: Path, adapters: tuple[Path, ...], precision: Precision) -> "_Model":
        """Open and check everything that can be checked without reading weights."""
        opened = open_liger(checkpoint)
        values = with_end_tokens(opened.values, checkpoint)
        _check_defaults(checkpoint)
        weights = MergedCheckpoint(opened.weights, tuple(Adapter.open(path) for path in adapters))
        config = LigerConfig.from_dict(values)
        encoder = TextEncoder.of(checkpoint, _read_tokenizer(checkpoint), config)
        model = cls(values, config, weights, encoder, precision)
        weights.check()
        precision.check(model.matrices, model.config.tie_word_embeddings)
        return model

    @property
    def source_files(self) -> list[Path]:
        """The checkpoint's files of weights, and its config."""
        checkpoint = self.weights.checkpoint
        return sorted([*checkpoint.files, checkpoint.directory / "config.json"])

    @property
    def matrices(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights that ``precision`` applies to, by tensor name."""
        return {name: shape for name, shape in expected_tensors(self.config).items() if len(shape) == 2}

    def weight_source(self, tokens: Tensor | None) -> WeightSource:
        """The weights in their precision; rounded for calibration ``tokens``, int64 [N, T], if there are any."""
        if tokens is None:
            return RoundedCheckpoint(self.weights, self.precision.method)
        return CalibratedCheckpoint(self.weights, self.config, self.precision, tokens)


def _check_lowering(lowering: str, targets: tuple[str, ...], config: LigerConfig) -> None:
    if lowering not in (STOCK, FUSED):
        raise UnsupportedModelError(f"There is no lowering {lowering!r}.", f"Choose one of: {FUSED}, {STOCK}.")
    for target in targets:
        require_target(target)
    if lowering == FUSED:
        require_fusable(config)
        if targets and config.mixer not in KERNEL_MIXERS:
            raise UnsupportedModelError(
                f"There are no GPU kernels for the mixer {config.mixer}; there are for {', '.join(KERNEL_MIXERS)}.",
                "Omit --targets: the fused graph for a CPU needs none.",
            )
    elif targets:
        raise UnsupportedModelError(
            "Only the fused lowering has GPU kernels.", "Add --lowering fused or omit --targets."
        )


def _check_web(targets: tuple[str, ...], precision: Precision) -> None:
    if WEB in targets and precision.activations == "bfloat16":
        raise UnsupportedModelError(
            "Browsers do not compute in bfloat16.", "Choose --activations fp32 or fp16, or omit the target web."
        )


def _check_opset(opset: int, config: LigerConfig) -> None:
    if opset not in (ONNX_OPSET, STANDARD_OPSET):
        raise UnsupportedModelError(
            f"A graph cannot be written in opset {opset}.", f"Choose {ONNX_OPSET} or {STANDARD_OPSET}."
        )
    if opset == STANDARD_OPSET:
        require_standard(config)


def _build_graphs(
    model: _Model, lowering: str, targets: tuple[str, ...], progress: Progress
) -> tuple[dict[str, ir.Model], list[Weight]]:
    """Trace the model once. Returns a graph per lowering, still without data, and the weights in file order."""
    progress.stage("tracing")
    stock = trace(model.config, model.values, model.precision.activations)
    weights = lower_to_stock(stock, {name: model.precision.scheme(name) for name in model.matrices})
    graphs = {STOCK: stock}
    if lowering == FUSED:
        graphs[FUSED] = stock.clone()
        lower_to_fused(graphs[FUSED])
    if targets:
        progress.stage("compiling GPU kernels")
        graphs[FUSED_CUDA] = graphs[FUSED].clone()
        lower_to_cuda(graphs[FUSED_CUDA], model.config, model.precision.activations, targets)
    if lowering == FUSED:
        fuse_for_cpu(graphs[FUSED].graph)
    return graphs, _in_file_order(weights, model.config)


def _web_graphs(stock: ir.Model) -> dict[str, ir.Model]:
    """The graphs for browsers, from a stock graph whose weights are attached."""
    graphs = {WASM: stock.clone(), WEBGPU: stock.clone()}
    lower_to_wasm(graphs[WASM])
    lower_to_webgpu(graphs[WEBGPU])
    return graphs


def _in_file_order(weights: list[Weight], config: LigerConfig) -> list[Weight]:
    """Sort weights as calibration computes them, the embedding table last: if tied, it is also the head."""
    order = {name: place for place, name in enumerate(expected_tensors(config))}
    return sorted(weights, key=lambda weight: (EMBEDDING in weight.tensors, order[weight.tensors[0]]))


def _write_graphs(graphs: dict[str, ir.Model], directory: Path, targets: tuple[str, ...]) -> dict[str, Graph]:
    """Write the graphs, all over the weights of the stock graph. Returns their entries in the manifest."""
    weights = graphs[STOCK].graph.initializers
    for lowering, graph in graphs.items():
        for name, value in graph.graph.initializers.items():
            value.const_value = weights[name].const_value if value.const_value is None else value.const_value
        ir.save(graph, directory / MODEL_FILES[lowering])
    return {
        lowering: _describe_graph(graph, targets if lowering == FUSED_CUDA else ())
        for lowering, graph in graphs.items()
    }


def _read_tokenizer(checkpoint: Path) -> Tokenizer:
    """Read ``tokenizer.json``. Raises CheckpointError."""
    path = checkpoint / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{checkpoint} has no tokenizer.json.", "Save the model's fast tokenizer there.")
    try:
        return read_tokenizer(checkpoint)
    except PackageError as error:
        cause = error.__cause__
        raise CheckpointError(f"{path} cannot be read ({cause}).", "Save the model's fast tokenizer again.") from cause


def _check_defaults(checkpoint: Path) -> None:
    """Check ``generation_config.json``, which travels in the package. Raises CheckpointError."""
    try:
        read_defaults(checkpoint)
    except PackageError as error:
        raise CheckpointError(error.cause, "Correct it in the checkpoint, or restore the original file.") from error


def _describe(
    model: _Model,
    graphs: dict[str, Graph],
    digests: dict[Path, str],
    calibration: dict[str, object] | None,
    directory: Path,
) -> Manifest:
    """The manifest of a package whose other files are all in ``directory``."""
    return Manifest(
        source=_describe_source(model.weights.checkpoint, digests),
        adapters=[_describe_adapter(adapter) for adapter in model.weights.adapters],
        config=model.values,
        precision=model.precision,
        calibration=calibration,
        graphs=graphs,
        files=describe_files(directory),
    )


def _describe_graph(model: ir.Model, targets: tuple[str, ...]) -> Graph:
    return Graph(
        opsets={domain or "ai.onnx": version for domain, version in model.opset_imports.items()},
        onnxruntime=STANDARD_ONNXRUNTIME if model.opset_imports[""] == STANDARD_OPSET else MINIMUM_ONNXRUNTIME,
        in_place=in_place_states(model),
        targets=list(targets),
        exact_angles=True,
    )


def _describe_source(checkpoint: Checkpoint, digests: dict[Path, str]) -> dict[str, object]:
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
