"""The TensorRT for RTX backend: it builds for named GPUs and needs none itself. It has no plugins."""

from dataclasses import dataclass
from typing import Any

from liger_export.config import LigerConfig
from liger_export.engine.network import Library, target_names
from liger_export.errors import EngineError, EnvironmentMismatchError
from liger_export.extras import install_command
from liger_export.runtime.cuda import has_gpu

__all__ = ["TensorRTRTX"]

NO_TARGETS = ("NONE", "CURRENT")
NEEDS_A_GPU = {"sm75"}  # the library initializes CUDA to build for it


@dataclass(frozen=True, slots=True)
class TensorRTRTX:
    """See ``backend.Backend``."""

    library: Library

    @classmethod
    def open(cls) -> "TensorRTRTX":
        """Load the library. Raises EnvironmentMismatchError if it is not installed."""
        try:
            import tensorrt_rtx
        except (ImportError, OSError) as error:
            raise EnvironmentMismatchError(
                f"TensorRT-RTX cannot be loaded ({error}).", f"Run: {install_command('tensorrt-rtx')}"
            ) from error

        def configure(config: Any, targets: list[str]) -> None:
            config.num_compute_capabilities = len(targets)
            for index, target in enumerate(targets):
                config.set_compute_capability(tensorrt_rtx.ComputeCapability.__members__[target.upper()], index)
            # Lets an application set a memory budget for weights; the rest is then streamed from the host.
            config.set_flag(tensorrt_rtx.BuilderFlag.WEIGHT_STREAMING)

        flags = (tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED,)
        return cls(Library(tensorrt_rtx, "TensorRT-RTX", flags, configure))

    def require_targets(self, asked: list[str]) -> list[str]:
        """See ``Backend``: one or more architectures that the library builds for on this machine."""
        members = self.library.module.ComputeCapability.__members__
        known = {name.lower() for name in members if name not in NO_TARGETS}
        if not has_gpu():
            known -= NEEDS_A_GPU
        names = target_names(asked)
        listed = ", ".join(sorted((name.removeprefix("sm") for name in known), key=int))
        for name in names:
            if name not in known:
                where = " on a machine without a GPU" if name in NEEDS_A_GPU else ""
                raise EngineError(
                    f"TensorRT-RTX {self.library.version} does not build for {name}{where}.",
                    f"Choose from: {listed}.",
                )
        if not names:
            raise EngineError("No GPU architecture was named.", f"Pass --sm with one or more of: {listed}.")
        return names

    def plugins_for(self, config: LigerConfig, activations: str, targets: list[str]) -> list[str]:
        """See ``Backend``: none."""
        return []

    def prepare(self, targets: list[str]) -> None:
        """See ``Backend``: nothing to prepare."""
