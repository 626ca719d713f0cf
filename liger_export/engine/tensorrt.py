"""The TensorRT backend: it builds on the GPU that runs the engine, with attention as ahead-of-time plugins.

This backend was written against TensorRT's published Python sources and has not run with TensorRT: see the README.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from packaging.version import Version

from liger_export.config import LigerConfig
from liger_export.engine.network import Library, target_names
from liger_export.errors import EngineError, EnvironmentMismatchError, KernelError
from liger_export.extras import install_command
from liger_export.kernels.shapes import KERNEL_MIXERS, AttentionShape
from liger_export.kernels.targets import TARGETS
from liger_export.ops.signatures import SIGNATURES
from liger_export.plugins.tensorrt import fitting_tactics, register_plugins
from liger_export.runtime.cuda import Cuda

__all__ = ["TensorRT"]

FIRST = Version("10.13")  # ahead-of-time plugins came with 10.9, engines written as a stream with 10.13
FIRST_WITH_NUMPY_2_4 = Version("11.2")
INSTALL = f"Run: {install_command('tensorrt', '--extra-index-url', 'https://pypi.nvidia.com')}"
ALIASED = "ALIASED_PLUGIN_IO_10_03"  # the preview feature that lets a plugin's output be its input's memory


@dataclass(frozen=True, slots=True)
class TensorRT:
    """See ``backend.Backend``."""

    library: Library

    @classmethod
    def open(cls) -> "TensorRT":
        """Load the library. Raises EnvironmentMismatchError if it is not installed or too old."""
        try:
            import tensorrt
        except (ImportError, OSError) as error:
            raise EnvironmentMismatchError(f"TensorRT cannot be loaded ({error}).", INSTALL) from error
        _check_version(tensorrt.__version__)
        in_place = ALIASED in tensorrt.PreviewFeature.__members__

        def configure(config: Any, targets: list[str]) -> None:
            if in_place:
                config.set_preview_feature(tensorrt.PreviewFeature.__members__[ALIASED], True)

        kinds = tensorrt.NetworkDefinitionCreationFlag
        flags = (kinds.STRONGLY_TYPED, kinds.PREFER_AOT_PYTHON_PLUGINS)
        operators = [SIGNATURES[mixer].onnx_name for mixer in KERNEL_MIXERS]
        return cls(Library(tensorrt, "TensorRT", flags, configure, operators, in_place))

    def require_targets(self, asked: list[str]) -> list[str]:
        """See ``Backend``: the only target is the GPU of this machine, which need not be named."""
        elsewhere = "Run build-engine on the target GPU, or use --backend tensorrt-rtx, which needs no GPU."
        try:
            own = Cuda.open().capability
        except EnvironmentMismatchError as error:
            raise EnvironmentMismatchError(f"TensorRT builds on a GPU. {error.cause}", elsewhere) from error
        for name in target_names(asked):
            if name != own:
                raise EngineError(f"TensorRT builds only for its own GPU, {own} here, not for {name}.", elsewhere)
        if _kernel_target(own) not in TARGETS:
            known = ", ".join(target.replace("_", "") for target in TARGETS)
            raise EngineError(f"There is no attention kernel for {own}.", f"Use a GPU of one of these: {known}.")
        return [own]

    def plugins_for(self, config: LigerConfig, activations: str, targets: list[str]) -> list[str]:
        """See ``Backend``: GLA or HGRN2 attention, if a kernel supports its sizes and fits into shared memory."""
        if config.mixer not in KERNEL_MIXERS:
            return []
        try:
            shape = AttentionShape.of_model(config, activations)
        except KernelError:
            return []
        return [SIGNATURES[config.mixer].onnx_name] if fitting_tactics(shape, _kernel_target(targets[0])) else []

    def prepare(self, targets: list[str]) -> None:
        """See ``Backend``: register the plugins."""
        from tensorrt import plugin  # imported late because it warns that it is experimental

        register_plugins(plugin, _kernel_target(targets[0]), in_place=self.library.in_place)


def _check_version(installed: str) -> None:
    if Version(installed) < FIRST:
        raise EnvironmentMismatchError(f"TensorRT {installed} is installed; a build needs {FIRST} or newer.", INSTALL)
    if Version(installed) < FIRST_WITH_NUMPY_2_4 and Version(np.__version__) >= Version("2.4"):
        raise EnvironmentMismatchError(
            f"TensorRT {installed} cannot read a plugin's attributes with numpy {np.__version__}.",
            "Run: pip install 'numpy<2.4', or update TensorRT to 11.2.",
        )


def _kernel_target(name: str) -> str:
    return name.replace("sm", "sm_")
