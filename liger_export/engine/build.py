"""``build-engine``: package in, engine directory out."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from liger_export.engine.check import check_against_package, expected_signature
from liger_export.engine.graphs import write_graphs
from liger_export.errors import EngineError, EnvironmentMismatchError
from liger_export.export.portable import check_chunk
from liger_export.files import TOKENIZER_FILES, copy_files, new_directory, sha256_file
from liger_export.ort import ort
from liger_export.package import MANIFEST_FILE, PORTABLE, STOCK, Manifest, read_manifest
from liger_export.package.engines import (
    BACKENDS,
    CHECK_TOKENS,
    CHUNK,
    LAYERS,
    LOG_FILE,
    ONNX,
    TENSORRT_RTX,
    EngineRecord,
    graph_names,
)
from liger_export.package.manifest import describe_files
from liger_export.quantize import FLOATS

__all__ = ["EngineSettings", "build_engine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What ``build_engine`` is asked for.

    Attributes:
        backend: a key of ``BACKENDS``.
        targets: GPU architectures, such as ``86``; none for ``onnx``.
        activations: a key of ``FLOATS``. Recurrent state is float32 whatever it is.
        chunk: tokens of a prefill call; 0 builds the graph of one token alone, and prompts are read by it.
        check_tokens: tokens to compare the graphs with the package on; 0 leaves the comparison out.
    """

    backend: str = TENSORRT_RTX
    targets: tuple[str, ...] = ()
    activations: str = "fp16"
    chunk: int = CHUNK
    check_tokens: int = CHECK_TOKENS

    def check(self) -> None:
        """Check what can be checked without a library. Raises EngineError, InputError."""
        if self.backend not in BACKENDS:
            raise EngineError(f"There is no backend {self.backend!r}.", f"Choose one of: {', '.join(BACKENDS)}.")
        if self.activations not in FLOATS:
            raise EngineError(
                f"There are no activations in {self.activations!r}.", f"Choose one of: {', '.join(FLOATS)}."
            )
        if self.backend == ONNX and self.targets:
            raise EngineError("Portable ONNX graphs are not built for a GPU.", "Leave --sm away.")
        if self.backend == ONNX and self.activations == "bf16":
            raise EngineError("ONNX Runtime computes no bfloat16 on the CPU.", "Choose fp16 or fp32.")
        if self.chunk:
            check_chunk(self.chunk)


def build_engine(
    package: Path,
    output: Path,
    settings: EngineSettings,
    *,
    overwrite: bool = False,
    stage: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Build engines that decode and prefill as a package does, for a backend and its devices.

    The package's graph is lowered to ONNX's own operators, compared with the package on ONNX Runtime, parsed, held
    against the state table, and built.

    Args:
        package: a package directory.
        output: engine directory to create; complete or absent afterwards.
        settings: what to build.
        overwrite: replace ``output`` if it exists.
        stage: called with the name of each stage.

    Raises:
        PackageError: the package cannot be read.
        EngineError, InputError: the settings do not fit, or the library refuses the graph.
        BoundError: the graphs do not compute what the package computes.
        EnvironmentMismatchError: the backend's library is not installed.
        OutputError: ``output`` exists or cannot be written.
    """
    settings.check()
    library = _library() if settings.backend == TENSORRT_RTX else None
    targets = library.require_targets(list(settings.targets)) if library else []
    manifest = read_manifest(package)
    if manifest.engine is not None:
        raise EngineError(f"{package} is an engine directory.", "Build from the package that convert wrote.")
    manifest.check_files(package)
    activations = FLOATS[settings.activations]
    record = EngineRecord(
        backend=settings.backend,
        backend_version=library.VERSION if library else ort.__version__,
        targets=targets,
        activations=activations,
        chunk=settings.chunk,
        package_sha256=sha256_file(package / MANIFEST_FILE),
        precisions=_precisions(manifest, activations),
    )
    with new_directory(output, overwrite, inputs=(package,)) as partial:
        portable = partial / "portable"
        stage("lowering")
        record = replace(record, check=_checked(package, manifest, record, portable, settings, stage))
        if library is None:
            for path in portable.iterdir():
                path.rename(partial / path.name)
        else:
            record = _build(library, portable, partial, manifest, record, stage)
        shutil.rmtree(portable)
        stage("hashing")
        return _seal(partial, package, manifest, record)


def _library() -> ModuleType:
    try:
        from liger_export.engine import tensorrt_rtx
    except ImportError as error:
        raise EnvironmentMismatchError(
            f"TensorRT-RTX cannot be loaded ({error}).", "Run: pip install 'liger-export[tensorrt-rtx]'"
        ) from error
    return tensorrt_rtx


def _checked(
    package: Path,
    manifest: Manifest,
    record: EngineRecord,
    portable: Path,
    settings: EngineSettings,
    stage: Callable[[str], None],
) -> dict[str, object] | None:
    """Write the graphs to build from, and compare them with the package.

    ONNX Runtime computes no bfloat16 on a CPU: what is compared then is the same lowering in float32.
    """
    twin = portable.with_name("twin") if record.activations == "bfloat16" else portable
    result = None
    for folder in [portable, twin] if settings.check_tokens else [portable]:
        if folder.exists():
            continue
        folder.mkdir()
        activations = "float32" if folder is not portable else record.activations
        write_graphs(package, manifest, folder, activations=activations, chunk=record.chunk)
    if settings.check_tokens:
        stage("comparing with the package")
        activations = "float32" if twin is not portable else record.activations
        checked = replace(record, backend=ONNX, activations=activations)
        _seal(twin, package, manifest, checked)
        result = check_against_package(package, twin, settings.check_tokens)
        for name in (MANIFEST_FILE, *TOKENIZER_FILES):
            (twin / name).unlink(missing_ok=True)
        if twin is not portable:
            shutil.rmtree(twin)
    return result


def _build(
    library: ModuleType,
    portable: Path,
    folder: Path,
    manifest: Manifest,
    record: EngineRecord,
    stage: Callable[[str], None],
) -> EngineRecord:
    log: list[str] = []
    graphs = {}
    typed = replace(manifest, engine=record)
    for length, name in graph_names(record.chunk).items():
        stage(f"building {name}")
        built = library.build_graph(
            portable / (name + BACKENDS[ONNX]),
            folder / (name + BACKENDS[record.backend]),
            record.targets,
            expected_signature(typed, length),
            log,
        )
        (folder / (name + LAYERS)).write_text(json.dumps(built.layers, indent=1) + "\n", encoding="utf-8")
        graphs[name] = {"seconds": round(built.seconds, 3), "bytes": built.nbytes}
    (folder / LOG_FILE).write_text("".join(f"{line}\n" for line in log), encoding="utf-8")
    return replace(record, graphs=graphs)


def _seal(folder: Path, package: Path, manifest: Manifest, record: EngineRecord) -> Manifest:
    """Add tokenizer and manifest to a folder of graphs."""
    copy_files(TOKENIZER_FILES, package, folder)
    graphs = {PORTABLE: replace(manifest.graphs[STOCK], in_place=[])}
    sealed = replace(manifest, graphs=graphs, engine=record, memory=None, files=describe_files(folder))
    (folder / MANIFEST_FILE).write_text(sealed.to_json(), encoding="utf-8")
    return sealed


def _precisions(manifest: Manifest, activations: str) -> dict[str, str]:
    """What is stored and computed in which precision."""
    precision = manifest.precision
    products = (
        f"{precision.storage}, through DequantizeLinear, scales in {activations}"
        if precision.quantizes
        else activations
    )
    return {
        "weights of products": products,
        "embedding table": activations,
        "activations, window, products": activations,
        "state, recurrence, softmax, rotary": "float32, no TF32",
        "logits": "float32",
    }
