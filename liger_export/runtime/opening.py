"""``load``: open a package, choosing the graph and the device that this installation can run."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version
from tokenizers import Tokenizer

from liger_export.errors import EnvironmentMismatchError, InputError, PackageError
from liger_export.ort import library_path, ort, session_options
from liger_export.package import FUSED, FUSED_CUDA, MODEL_FILES, PORTABLE, STOCK, Manifest, read_manifest
from liger_export.runtime.buffers import CPU, CUDA
from liger_export.runtime.cuda import has_gpu
from liger_export.runtime.fixed import engine_device, open_engine
from liger_export.runtime.session import Session

__all__ = ["has_bfloat16", "load", "read_tokenizer"]

PROVIDERS = {CPU: "CPUExecutionProvider", CUDA: "CUDAExecutionProvider"}
# Float32 means float32: TF32 keeps 10 bits. Graphs are captured for steps; see Session.
CUDA_OPTIONS = {"use_tf32": "0", "enable_cuda_graph": "1"}


@dataclass(frozen=True, slots=True)
class Choice:
    """Which graph runs where.

    Attributes:
        lowering: a key of ``MODEL_FILES``.
        device: ``cpu`` or ``cuda``.
    """

    lowering: str
    device: str

    @property
    def providers(self) -> list[tuple[str, dict[str, str]]]:
        """ONNX Runtime's execution providers, the device's first."""
        host: tuple[str, dict[str, str]] = (PROVIDERS[CPU], {})
        return [host] if self.device == CPU else [(PROVIDERS[CUDA], CUDA_OPTIONS), host]


def load(
    directory: str | Path,
    *,
    device: str | None = None,
    lowering: str | None = None,
    threads: int | None = None,
    verify: bool = False,
) -> Session:
    """Open a package, or an engine directory, and start a session.

    Args:
        directory: what ``convert`` or ``build-engine`` wrote.
        device: ``cpu`` or ``cuda``; None for a GPU where the package holds kernels for it and ONNX Runtime is one with
            CUDA, and the CPU otherwise. An engine directory is for one of them.
        lowering: ``stock`` or ``fused``; None for fused where the package has it and its operators are installed. The
            session's ``lowering`` and ``device`` say what was chosen; the fused graph for a GPU is ``cuda``. An engine
            directory has neither.
        threads: ONNX Runtime's threads within an operator; None lets it choose.
        verify: compare every file's SHA-256 with the manifest, which takes about as long again as opening it;
            otherwise sizes only.

    Raises:
        InputError: there is no such device or lowering, or not in an engine directory.
        PackageError: the package is incomplete, changed, or of a newer format, or lacks the lowering asked for.
        EnvironmentMismatchError: the installation lacks what was asked for, its ONNX Runtime is too old, nothing here
            runs the engine, or the package computes in bfloat16 and no GPU is here.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    _check_names(manifest, lowering, device)
    if manifest.engine is not None:
        return open_engine(directory, manifest, read_tokenizer(directory), threads=threads, verify=verify)
    choice = _choose(manifest, lowering, device)
    _check_onnxruntime(manifest.graphs[choice.lowering].onnxruntime)
    manifest.check_files(directory, hashes=False)  # first: ONNX Runtime maps files, and a cut one could crash it
    with ThreadPoolExecutor(1) as beside:  # ONNX Runtime prepares weights on one core; hash on another
        verified = beside.submit(manifest.check_files, directory, hashes=verify)
        try:
            model = _open(directory, choice, threads)
        except Exception as error:  # ONNX Runtime raises its own types
            verified.result()  # a file that has changed says more than what ONNX Runtime makes of it
            fix = "Copy or convert the package again."
            raise PackageError(f"{directory} cannot be opened ({error}).", fix) from error
        verified.result()
    return Session(manifest, read_tokenizer(directory), model, lowering=choice.lowering, device=choice.device)


def has_bfloat16() -> bool:
    """Whether a device here computes in bfloat16: ONNX Runtime's CPU provider lacks most operators in it."""
    return PROVIDERS[CUDA] in ort.get_available_providers() and has_gpu()


def _check_names(manifest: Manifest, lowering: str | None, device: str | None) -> None:
    lowerings, devices, where = [STOCK, FUSED], list(PROVIDERS), ""
    if manifest.engine is not None:
        lowerings, devices, where = [PORTABLE], [engine_device(manifest.engine)], " in this engine directory"
    if device not in (None, *devices):
        raise InputError(f"There is no device {device!r}{where}.", f"Name none, or one of: {', '.join(devices)}.")
    if lowering not in (None, *lowerings):
        raise InputError(f"There is no lowering {lowering!r}{where}.", f"Name none, or one of: {', '.join(lowerings)}.")


def _choose(manifest: Manifest, lowering: str | None, device: str | None) -> Choice:
    has_operators, has_cuda = library_path() is not None, PROVIDERS[CUDA] in ort.get_available_providers()
    if lowering == FUSED and FUSED not in manifest.graphs:
        raise PackageError("The package has no fused graph.", "Convert it with --lowering fused.")
    if lowering == FUSED and not has_operators:
        raise EnvironmentMismatchError(
            "liger-export was installed without its operators, for want of a C++ compiler.",
            "Install a compiler and reinstall liger-export, or open the package with lowering='stock'.",
        )
    if device == CUDA and not has_cuda:
        raise EnvironmentMismatchError(
            "The installed ONNX Runtime has no CUDA.", "Run: pip uninstall onnxruntime; pip install onnxruntime-gpu"
        )
    takes_fused = lowering != STOCK and FUSED in manifest.graphs and has_operators
    on_gpu = takes_fused and has_cuda and FUSED_CUDA in manifest.graphs
    if device == CUDA and not on_gpu:
        raise PackageError(
            "On CUDA a package runs by its fused graph, with kernels for the GPU, which this one lacks.",
            "Convert it with --lowering fused --targets, such as sm_90.",
        )
    on_cuda = device == CUDA or (device is None and on_gpu)
    if manifest.activations == "bfloat16" and not (on_cuda and has_bfloat16()):
        raise EnvironmentMismatchError(
            "The package computes in bfloat16, which ONNX Runtime does on a GPU alone.",
            "Run it on an NVIDIA GPU, with onnxruntime-gpu and the fused graph's kernels (convert --lowering fused "
            "--targets, such as sm_90), or convert it for a CPU, with fp16 in place of bf16.",
        )
    return Choice(FUSED_CUDA, CUDA) if on_cuda else Choice(FUSED if takes_fused else STOCK, CPU)


def _open(directory: Path, choice: Choice, threads: int | None) -> ort.InferenceSession:
    options = session_options(threads)
    if choice.lowering != STOCK:
        options.register_custom_ops_library(str(library_path()))
    if choice.device == CUDA:
        ort.preload_dlls()  # CUDA's libraries, where pip has put them
    return ort.InferenceSession(directory / MODEL_FILES[choice.lowering], options, providers=choice.providers)


def read_tokenizer(directory: Path) -> Tokenizer:
    """A package's tokenizer, which reads texts of any length whole. Raises PackageError if there is none."""
    try:
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # tokenizers raises bare Exception
        raise PackageError(
            f"{directory}'s tokenizer.json cannot be read ({error}).", "Copy or convert the package again."
        ) from error
    tokenizer.no_truncation()  # tokenizer.json may carry what some training run had set
    tokenizer.no_padding()
    return tokenizer


def _check_onnxruntime(needed: str) -> None:
    installed = ort.__version__
    if Version(installed) < Version(needed):
        raise EnvironmentMismatchError(
            f"The package needs ONNX Runtime {needed} or newer; {installed} is installed.",
            f"Run: pip install 'onnxruntime>={needed}'",
        )
