"""``build-engine``: package in, engine directory out."""

import json
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from liger_export.engine.backend import Backend, open_backend
from liger_export.engine.check import check_against_package, expected_signature
from liger_export.engine.graphs import drop_functions, write_graphs
from liger_export.errors import EngineError
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
from liger_export.precision import FLOATS
from liger_export.progress import NO_PROGRESS, Progress
from liger_export.state import WINDOW_STATES

__all__ = ["EngineSettings", "build_engine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What ``build_engine`` is asked for.

    Attributes:
        backend: a key of ``BACKENDS``.
        targets: GPU architectures, such as ``86``; none for ``onnx``, and none needed for ``tensorrt``.
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
    progress: Progress = NO_PROGRESS,
) -> Manifest:
    """Build engines that decode and prefill as a package does, for a backend and its devices.

    The package's graph is lowered to ONNX's own operators, and to the backend's plugins if it has any, compared with
    the package on ONNX Runtime, parsed, held against the state table, and built.

    Args:
        package: a package directory.
        output: engine directory to create; complete or absent afterwards.
        settings: what to build.
        overwrite: replace ``output`` if it exists.
        progress: told the name of each stage.

    Raises:
        PackageError: the package cannot be read.
        EngineError, InputError: the settings do not fit, or the library refuses the graph.
        BoundError: the graphs do not compute what the package computes.
        EnvironmentMismatchError: the backend's library is not installed, or needs a GPU and there is none.
        OutputError: ``output`` exists or cannot be written.
    """
    settings.check()
    backend = None if settings.backend == ONNX else open_backend(settings.backend)
    targets = backend.require_targets(list(settings.targets)) if backend else []
    manifest = read_manifest(package)
    if manifest.engine is not None:
        raise EngineError(f"{package} is an engine directory.", "Build from the package that convert wrote.")
    manifest.check_files(package)
    activations = FLOATS[settings.activations]
    plugins = _plugins(backend, manifest, activations, targets)
    record = EngineRecord(
        backend=settings.backend,
        backend_version=backend.library.version if backend else ort.__version__,
        targets=targets,
        activations=activations,
        chunk=settings.chunk,
        package_sha256=sha256_file(package / MANIFEST_FILE),
        plugins=plugins,
        precisions=_precisions(manifest, activations, with_plugins=bool(plugins)),
    )
    with new_directory(output, overwrite, inputs=(package,)) as folder:
        portable = folder / "portable"
        progress.stage("lowering")
        check, opsets = _checked(package, manifest, record, portable, settings, progress)
        record = replace(record, check=check)
        if backend is None:
            for path in portable.iterdir():
                path.rename(folder / path.name)
        else:
            record = _build(backend, portable, folder, manifest, record, progress)
        shutil.rmtree(portable)
        progress.stage("hashing")
        in_place = bool(backend and backend.library.in_place)
        return _seal(folder, package, manifest, record, opsets, in_place=in_place)


def _plugins(backend: Backend | None, manifest: Manifest, activations: str, targets: list[str]) -> list[str]:
    return backend.plugins_for(manifest.model_config, activations, targets) if backend else []


def _checked(
    package: Path,
    manifest: Manifest,
    record: EngineRecord,
    portable: Path,
    settings: EngineSettings,
    progress: Progress,
) -> tuple[dict[str, object] | None, dict[str, int]]:
    """Write the graphs to build from, and compare them with the package; returns the comparison, and operator sets.

    ONNX Runtime computes no bfloat16 on a CPU: what is compared then is the same lowering in float32.
    """
    portable.mkdir()
    write = partial(write_graphs, package, manifest, chunk=record.chunk, plugins=record.plugins)
    engines = 0 if record.backend == ONNX else len(graph_names(record.chunk))
    opsets = write(portable, activations=record.activations, engines=engines)
    if not settings.check_tokens:
        return None, opsets
    twin, activations = portable, record.activations
    if activations == "bfloat16":
        twin, activations = portable.with_name("twin"), "float32"
        twin.mkdir()
        write(twin, activations=activations)
    progress.stage("comparing with the package")
    _seal(twin, package, manifest, replace(record, backend=ONNX, activations=activations), opsets)
    result = check_against_package(package, twin, settings.check_tokens)
    for name in (MANIFEST_FILE, *TOKENIZER_FILES):
        (twin / name).unlink(missing_ok=True)
    if twin is not portable:
        shutil.rmtree(twin)
    return result, opsets


def _build(
    backend: Backend,
    portable: Path,
    folder: Path,
    manifest: Manifest,
    record: EngineRecord,
    progress: Progress,
) -> EngineRecord:
    log: list[str] = []
    graphs = {}
    typed = replace(manifest, engine=record)
    backend.prepare(record.targets)
    for length, name in graph_names(record.chunk).items():
        progress.stage(f"building {name}")
        graph_file = portable / (name + BACKENDS[ONNX])
        drop_functions(graph_file)
        built = backend.library.build_graph(
            graph_file,
            folder / (name + BACKENDS[record.backend]),
            record.targets,
            expected_signature(typed, length),
            log,
        )
        (folder / (name + LAYERS)).write_text(json.dumps(built.layers, indent=1) + "\n", encoding="utf-8")
        graphs[name] = {"seconds": round(built.seconds, 3), "bytes": built.nbytes}
    (folder / LOG_FILE).write_text("".join(f"{line}\n" for line in log), encoding="utf-8")
    return replace(record, graphs=graphs)


def _seal(
    folder: Path,
    package: Path,
    manifest: Manifest,
    record: EngineRecord,
    opsets: dict[str, int],
    *,
    in_place: bool = False,
) -> Manifest:
    """Add tokenizer and manifest to a folder of graphs, whose plugins may update recurrent states in place."""
    copy_files(TOKENIZER_FILES, package, folder)
    recurrent = [entry.past_name for entry in manifest.state if entry.name not in WINDOW_STATES]
    in_place_states = recurrent if in_place and record.plugins else []
    graphs = {PORTABLE: replace(manifest.graphs[STOCK], opsets=opsets, in_place=in_place_states)}
    sealed = replace(manifest, graphs=graphs, engine=record, memory=None, files=describe_files(folder))
    (folder / MANIFEST_FILE).write_text(sealed.to_json(), encoding="utf-8")
    return sealed


def _precisions(manifest: Manifest, activations: str, *, with_plugins: bool) -> dict[str, str]:
    """What is stored and computed in which precision."""
    has_tf32 = with_plugins and activations != "float32"  # kernels.shapes.AttentionShape.precision
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
        "state, recurrence, softmax, rotary": "float32, "
        + ("TF32 in the plugin's products" if has_tf32 else "no TF32"),
        "logits": "float32",
    }
