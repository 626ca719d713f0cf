"""``build-engine``: from a package to an engine directory."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from liger_export.engine.backend import Backend, open_backend
from liger_export.engine.check import check_against_package
from liger_export.engine.graph_io import expected_io
from liger_export.engine.graphs import drop_functions, write_graphs
from liger_export.errors import EngineError
from liger_export.export.portable import check_prefill_length
from liger_export.files import CARRIED_FILES, copy_files, sha256_file
from liger_export.ort import ort
from liger_export.package import MANIFEST_FILE, PORTABLE, STOCK, Manifest, read_manifest
from liger_export.package.engines import (
    BACKENDS,
    CHECK_TOKENS,
    LAYERS_SUFFIX,
    LOG_FILE,
    ONNX,
    PREFILL_TOKENS,
    TENSORRT_RTX,
    EngineRecord,
    graph_names,
)
from liger_export.package.manifest import describe_files
from liger_export.precision import FLOATS
from liger_export.progress import NO_PROGRESS, Progress
from liger_export.publishing import new_directory
from liger_export.state import WINDOW_STATES

__all__ = ["EngineSettings", "build_engine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Settings of ``build_engine``.

    Attributes:
        backend: a key of ``BACKENDS``.
        targets: GPU architectures, such as ``86``. ``onnx`` takes none; ``tensorrt`` needs none.
        activations: a key of ``FLOATS``. The recurrent state is always float32.
        chunk: tokens of a prefill call. With 0, only the single-token graph is built, and it reads prompts too.
        check_tokens: tokens on which the graphs are compared with the package; 0 skips the comparison.
    """

    backend: str = TENSORRT_RTX
    targets: tuple[str, ...] = ()
    activations: str = "fp16"
    chunk: int = PREFILL_TOKENS
    check_tokens: int = CHECK_TOKENS

    def check(self) -> None:
        """Check what does not depend on the backend's library. Raises EngineError, InputError."""
        if self.backend not in BACKENDS:
            raise EngineError(f"There is no backend {self.backend!r}.", f"Choose one of: {', '.join(BACKENDS)}.")
        if self.activations not in FLOATS:
            raise EngineError(
                f"{self.activations!r} is not a precision for activations.", f"Choose one of: {', '.join(FLOATS)}."
            )
        if self.backend == ONNX and self.targets:
            raise EngineError("Portable ONNX graphs are not built for a specific GPU.", "Omit --sm.")
        if self.backend == ONNX and self.activations == "bf16":
            raise EngineError("ONNX Runtime does not support bfloat16 on the CPU.", "Choose fp16 or fp32.")
        if self.chunk:
            check_prefill_length(self.chunk)


def build_engine(
    package: Path,
    output: Path,
    settings: EngineSettings,
    *,
    overwrite: bool = False,
    progress: Progress = NO_PROGRESS,
) -> Manifest:
    """Build engines that decode and prefill like a package, for a backend and its devices.

    The package's graph is lowered to ai.onnx operators, and to the backend's plugins if it has any. The result is
    compared with the package on ONNX Runtime, parsed, compared with the state table, and built.

    Args:
        package: package directory.
        output: engine directory to create; it is complete or absent afterwards.
        settings: what to build.
        overwrite: replace ``output`` if it exists.
        progress: receives the name of each stage.

    Raises:
        PackageError: the package cannot be read.
        EngineError, InputError: a setting is not supported, or the library rejects a graph.
        BoundError: the graphs do not compute what the package computes.
        EnvironmentMismatchError: the backend's library is not installed, or it needs a GPU and there is none.
        OutputError: ``output`` exists or cannot be written.
    """
    settings.check()
    backend = None if settings.backend == ONNX else open_backend(settings.backend)
    targets = backend.require_targets(list(settings.targets)) if backend else []
    manifest = read_manifest(package)
    if manifest.engine is not None:
        raise EngineError(f"{package} is an engine directory.", "Pass a package that convert wrote.")
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
        return _Build(package, manifest, backend, settings.check_tokens, progress).run(folder, record)


@dataclass(frozen=True, slots=True)
class _Build:
    """One run of ``build_engine``, after its settings have been checked.

    Attributes:
        package: package directory.
        manifest: the package's manifest.
        backend: the loaded library; None for portable ONNX graphs.
        check_tokens: see ``EngineSettings``.
        progress: see ``build_engine``.
    """

    package: Path
    manifest: Manifest
    backend: Backend | None
    check_tokens: int
    progress: Progress

    def run(self, folder: Path, record: EngineRecord) -> Manifest:
        """Fill an engine directory and return its manifest."""
        portable = folder / "portable"
        portable.mkdir()
        self.progress.stage("lowering")
        engines = 0 if self.backend is None else len(graph_names(record.chunk))
        opsets = self._lower(portable, record, engines=engines)
        if self.check_tokens:
            record = replace(record, check=self._compare(portable, record, opsets))
        if self.backend is None:
            for path in portable.iterdir():
                path.rename(folder / path.name)
        else:
            record = replace(record, graphs=self._build(self.backend, portable, folder, record))
        shutil.rmtree(portable)
        self.progress.stage("hashing")
        in_place = bool(self.backend and self.backend.library.in_place)
        return self._seal(folder, record, opsets, in_place=in_place)

    def _lower(self, folder: Path, record: EngineRecord, *, engines: int) -> dict[str, int]:
        """Write the graphs to build from; see ``write_graphs``."""
        return write_graphs(
            self.package,
            self.manifest,
            folder,
            activations=record.activations,
            chunk=record.chunk,
            plugins=record.plugins,
            engines=engines,
        )

    def _compare(self, portable: Path, record: EngineRecord, opsets: dict[str, int]) -> dict[str, object]:
        """Compare the graphs with the package and return the checks.

        ONNX Runtime does not support bfloat16 on the CPU, so bfloat16 graphs are lowered again in float32 for this.
        """
        runnable, activations = portable, record.activations
        if activations == "bfloat16":
            runnable, activations = portable.with_name("float32"), "float32"
            runnable.mkdir()
            self._lower(runnable, replace(record, activations=activations), engines=0)
        self.progress.stage("comparing with the package")
        self._seal(runnable, replace(record, backend=ONNX, activations=activations), opsets, in_place=False)
        result = check_against_package(self.package, runnable, self.check_tokens)
        for name in (MANIFEST_FILE, *CARRIED_FILES):
            (runnable / name).unlink(missing_ok=True)
        if runnable is not portable:
            shutil.rmtree(runnable)
        return result

    def _build(
        self, backend: Backend, portable: Path, folder: Path, record: EngineRecord
    ) -> dict[str, dict[str, float]]:
        """Build an engine from each graph, with its layers and a log; return seconds and bytes by graph."""
        log: list[str] = []
        graphs: dict[str, dict[str, float]] = {}
        typed = replace(self.manifest, engine=record)
        backend.prepare(record.targets)
        for length, name in graph_names(record.chunk).items():
            self.progress.stage(f"building {name}")
            graph_file = portable / (name + BACKENDS[ONNX])
            drop_functions(graph_file)
            engine_file = folder / (name + BACKENDS[record.backend])
            built = backend.library.build_graph(
                graph_file, engine_file, record.targets, expected_io(typed, length), log
            )
            (folder / (name + LAYERS_SUFFIX)).write_text(json.dumps(built.layers, indent=1) + "\n", encoding="utf-8")
            graphs[name] = {"seconds": round(built.seconds, 3), "bytes": built.nbytes}
        (folder / LOG_FILE).write_text("".join(f"{line}\n" for line in log), encoding="utf-8")
        return graphs

    def _seal(self, folder: Path, record: EngineRecord, opsets: dict[str, int], *, in_place: bool) -> Manifest:
        """Add tokenizer and manifest to a folder of graphs; plugins may update recurrent states ``in_place``."""
        copy_files(CARRIED_FILES, self.package, folder)
        recurrent = [entry.past_name for entry in self.manifest.state if entry.name not in WINDOW_STATES]
        in_place_states = recurrent if in_place and record.plugins else []
        stock = self.manifest.graphs[STOCK]  # of a package that may be older than the graphs written here
        graphs = {PORTABLE: replace(stock, opsets=opsets, in_place=in_place_states, exact_angles=True)}
        sealed = replace(
            self.manifest, graphs=graphs, engine=record, memory=None, prefix=None, files=describe_files(folder)
        )
        (folder / MANIFEST_FILE).write_text(sealed.to_json(), encoding="utf-8")
        return sealed


def _plugins(backend: Backend | None, manifest: Manifest, activations: str, targets: list[str]) -> list[str]:
    return backend.plugins_for(manifest.model_config, activations, targets) if backend else []


def _precisions(manifest: Manifest, activations: str, *, with_plugins: bool) -> dict[str, str]:
    """Precision of each kind of stored or computed value, for the manifest."""
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
