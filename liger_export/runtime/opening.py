"""``load``: open a package with the graph and the device that this installation can run."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version
from tokenizers import Tokenizer

from liger_export.errors import EnvironmentMismatchError, InputError, PackageError
from liger_export.files import reading, require_regular
from liger_export.ort import library_path, ort, session_options
from liger_export.package import (
    FUSED,
    FUSED_CUDA,
    MODEL_FILES,
    PORTABLE,
    STANDARD,
    STOCK,
    WASM,
    WEBGPU,
    Manifest,
    read_manifest,
)
from liger_export.page_cache import read_ahead
from liger_export.runtime.buffers import CPU, CUDA
from liger_export.runtime.chat_template import ChatTemplate
from liger_export.runtime.cuda import has_gpu
from liger_export.runtime.defaults import read_defaults
from liger_export.runtime.described import require_described
from liger_export.runtime.dynamic import DynamicExecutor
from liger_export.runtime.executor import Executor
from liger_export.runtime.fixed import engine_device, open_engine
from liger_export.runtime.session import Session
from liger_export.runtime.shipped_prefix import read_prefix

__all__ = ["Choice", "choose_graph", "has_bfloat16", "load", "read_tokenizer"]

MOST_THREADS = 1024  # more than processors have; ONNX Runtime would try to start any number
PROVIDERS = {CPU: "CPUExecutionProvider", CUDA: "CUDAExecutionProvider"}
# TF32 would keep only 10 bits of the mantissa. Steps are captured as CUDA graphs; see DynamicExecutor.
CUDA_OPTIONS = {"use_tf32": "0", "enable_cuda_graph": "1"}
# Graphs for other runtimes, with the option of ``convert`` that makes them. They run on the CPU, if asked for.
FOR_OTHERS = {WASM: "--targets web", WEBGPU: "--targets web", STANDARD: "--opset 27"}


@dataclass(frozen=True, slots=True)
class Choice:
    """A graph and the device to run it on.

    Attributes:
        lowering: A key of ``MODEL_FILES``.
        device: ``cpu`` or ``cuda``.
    """

    lowering: str
    device: str

    @property
    def providers(self) -> list[tuple[str, dict[str, str]]]:
        """ONNX Runtime's execution providers, the one of the device first."""
        host: tuple[str, dict[str, str]] = (PROVIDERS[CPU], {})
        return [host] if self.device == CPU else [(PROVIDERS[CUDA], CUDA_OPTIONS), host]


def load(
    directory: str | Path,
    *,
    device: str | None = None,
    lowering: str | None = None,
    threads: int | None = None,
    verify: bool = False,
    trace: Path | None = None,
) -> Session:
    """Open a package, or an engine directory, and start a session.

    Args:
        directory: Output of ``convert`` or ``build-engine``.
        device: ``cpu`` or ``cuda``. None selects the GPU if the package has kernels for one and ONNX Runtime supports
            CUDA, and the CPU otherwise. An engine directory supports one device.
        lowering: ``stock`` or ``fused``. None selects fused if the package has it and its operators are installed. The
            session's ``lowering`` and ``device`` tell what was selected; the fused graph for a GPU is called ``cuda``.
            ``wasm``, ``webgpu`` and ``standard`` select a graph for other runtimes, on the CPU. An engine directory
            supports none of them.
        threads: ONNX Runtime's threads within an operator; None lets it choose.
        verify: Compare the SHA-256 of weights and engines with the manifest, which about doubles the time to open the
            package. Otherwise only their size is compared. All other files are small and always compared.
        trace: Start of the name of a file in which ONNX Runtime traces every call, on the CPU only. It makes calls
            slower. See ``end_profile``.

    Raises:
        InputError: ``threads`` is invalid, the device or lowering is unknown or not supported by the engine directory,
            or ``trace`` is set for an engine directory or a GPU.
        PackageError: The package is incomplete, changed or has a newer format, or lacks the requested lowering.
        EnvironmentMismatchError: The installation lacks a requested feature, its ONNX Runtime is too old, the engine
            cannot run here, or the package computes in bfloat16 and has no graph for that on this machine.
    """
    if threads is not None and not (isinstance(threads, int) and 1 <= threads <= MOST_THREADS):
        raise InputError(
            f"threads is {threads!r}.", f"Pass a number from 1 to {MOST_THREADS}, or None to let ONNX Runtime choose."
        )
    if not isinstance(directory, str | Path):
        raise InputError(f"{directory!r} is not a directory.", "Pass the path of a package or an engine directory.")
    directory = Path(directory)
    with reading(directory, PackageError, "Copy or convert the package again."):
        return _open_session(directory, device=device, lowering=lowering, threads=threads, verify=verify, trace=trace)


def _open_session(
    directory: Path,
    *,
    device: str | None,
    lowering: str | None,
    threads: int | None,
    verify: bool,
    trace: Path | None,
) -> Session:
    manifest = read_manifest(directory)
    _check_names(manifest, lowering, device)
    if manifest.engine is not None:
        if trace is not None:
            raise InputError("The calls of an engine cannot be traced.", "Profile the package it was built from.")
        engine = open_engine(directory, manifest, threads=threads, verify=verify)  # checks all files
        return _session(directory, manifest, read_tokenizer(directory), engine)
    choice = choose_graph(manifest, lowering, device)
    if trace is not None and choice.device != CPU:
        raise InputError("Only calls on the CPU can be traced.", "Use the device cpu.")
    _check_onnxruntime(manifest.graphs[choice.lowering].onnxruntime)
    manifest.check_files(directory, weights=False)  # first: ONNX Runtime maps files, and a truncated one could crash it
    with ThreadPoolExecutor(1) as pool:  # hash on one core while ONNX Runtime prepares weights on another
        verified = pool.submit(manifest.check_files, directory, weights=verify)
        for name in manifest.weight_files:
            read_ahead(directory / name)
        try:
            model = _open(directory, choice, threads, trace)
        except Exception as error:  # ONNX Runtime raises its own types
            verified.result()  # a changed file is the better explanation
            fix = "Copy or convert the package again."
            if "is not a registered function/op" in str(error):
                fix = "The graph needs operators of a newer liger-export: upgrade it, or use the lowering stock."
            raise PackageError(f"{directory} cannot be opened ({error}).", fix) from error
        verified.result()
    require_described(model, manifest, directory)
    tokenizer = read_tokenizer(directory)
    executor = DynamicExecutor(model, manifest, lowering=choice.lowering, device=choice.device)
    return _session(directory, manifest, tokenizer, executor)


def _session(directory: Path, manifest: Manifest, tokenizer: Tokenizer, executor: Executor) -> Session:
    template, defaults = ChatTemplate(directory), read_defaults(directory)
    prefix = read_prefix(directory, manifest)
    return Session(manifest, tokenizer, executor, chat_template=template, defaults=defaults, prefix=prefix)


def has_bfloat16() -> bool:
    """Return True if there is a GPU for bfloat16."""
    return PROVIDERS[CUDA] in ort.get_available_providers() and has_gpu()


def _check_names(manifest: Manifest, lowering: str | None, device: str | None) -> None:
    """Raise InputError for a lowering or device that the directory does not support."""
    lowerings, devices, where = [STOCK, FUSED, *FOR_OTHERS], list(PROVIDERS), ""
    if manifest.engine is not None:
        lowerings, devices, where = [PORTABLE], [engine_device(manifest.engine)], " in this engine directory"
    if device not in (None, *devices):
        raise InputError(f"There is no device {device!r}{where}.", f"Omit it, or use one of: {', '.join(devices)}.")
    if lowering not in (None, *lowerings):
        raise InputError(
            f"There is no lowering {lowering!r}{where}.", f"Omit it, or use one of: {', '.join(lowerings)}."
        )


def choose_graph(manifest: Manifest, lowering: str | None, device: str | None) -> Choice:
    """Choose a package's graph and device. For the arguments and errors see ``load``."""
    has_operators, has_cuda = library_path() is not None, PROVIDERS[CUDA] in ort.get_available_providers()
    if lowering == FUSED and FUSED not in manifest.graphs:
        raise PackageError("The package has no fused graph.", "Convert it with --lowering fused.")
    if lowering in FOR_OTHERS:
        return _for_others(manifest, lowering, device)
    if lowering == FUSED and not has_operators:
        raise EnvironmentMismatchError(
            "liger-export was installed without its ONNX Runtime operators because no C++ compiler was found.",
            "Install a C++ compiler and reinstall liger-export, or open the package with lowering='stock'.",
        )
    if device == CUDA and not has_cuda:
        raise EnvironmentMismatchError(
            "The installed ONNX Runtime does not support CUDA.",
            "Run: pip uninstall onnxruntime; pip install onnxruntime-gpu",
        )
    uses_fused = lowering != STOCK and FUSED in manifest.graphs and has_operators
    on_gpu = uses_fused and has_cuda and FUSED_CUDA in manifest.graphs
    if device == CUDA and not on_gpu:
        raise PackageError(
            "On CUDA a package needs a fused graph with kernels for the GPU, and this one has none.",
            "Convert it with --lowering fused and --targets for the GPU, such as sm_90.",
        )
    on_cuda = device == CUDA or (device is None and on_gpu)
    if manifest.activations == "bfloat16":
        _require_bfloat16(uses_fused=uses_fused, on_cuda=on_cuda)
    return Choice(FUSED_CUDA, CUDA) if on_cuda else Choice(FUSED if uses_fused else STOCK, CPU)


def _require_bfloat16(*, uses_fused: bool, on_cuda: bool) -> None:
    """Raise EnvironmentMismatchError if the chosen graph cannot compute in bfloat16 here.

    ONNX Runtime's CPU provider lacks most operators in it. The fused graph has the library's instead.
    """
    if on_cuda and not has_bfloat16():
        raise EnvironmentMismatchError(
            "The package computes in bfloat16 on a GPU, and there is none.", "Open it with device='cpu'."
        )
    if not uses_fused:
        raise EnvironmentMismatchError(
            "The package computes in bfloat16, for which ONNX Runtime has no operators on a CPU.",
            "Convert it with --lowering fused and open the fused graph, or convert it with fp16 instead of bf16.",
        )


def _for_others(manifest: Manifest, lowering: str, device: str | None) -> Choice:
    if lowering not in manifest.graphs:
        raise PackageError(f"The package has no {lowering} graph.", f"Convert it with {FOR_OTHERS[lowering]}.")
    if device == CUDA:
        raise InputError(f"The {lowering} graph runs on the CPU here.", "Omit the device, or use cpu.")
    return Choice(lowering, CPU)


def _open(directory: Path, choice: Choice, threads: int | None, trace: Path | None) -> ort.InferenceSession:
    options = session_options(threads)
    if trace is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(trace)
    if choice.lowering == WASM:
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # as the browser runs it
    if choice.lowering in (FUSED, FUSED_CUDA):
        options.register_custom_ops_library(str(library_path()))
    if choice.device == CUDA:
        ort.preload_dlls()  # CUDA's libraries as installed by pip
    return ort.InferenceSession(directory / MODEL_FILES[choice.lowering], options, providers=choice.providers)


def read_tokenizer(directory: Path) -> Tokenizer:
    """Read a package's tokenizer, without truncation or padding. Raises PackageError if it cannot be read."""
    try:
        require_regular(directory / "tokenizer.json")
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # tokenizers raises bare Exception
        raise PackageError(
            f"{directory}'s tokenizer.json cannot be read ({error}).", "Copy or convert the package again."
        ) from error
    tokenizer.no_truncation()  # tokenizer.json may contain settings of a training run
    tokenizer.no_padding()
    return tokenizer


def _check_onnxruntime(needed: str) -> None:
    installed = ort.__version__
    if Version(installed) < Version(needed):
        raise EnvironmentMismatchError(
            f"The package needs ONNX Runtime {needed} or newer; {installed} is installed.",
            f"Run: pip install 'onnxruntime>={needed}'",
        )
