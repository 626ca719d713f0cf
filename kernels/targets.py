"""GPU architectures that kernels can be compiled for."""

from liger_export.errors import KernelError

__all__ = ["DEPENDENT_LAUNCH_CAPABILITY", "SHARED_KILOBYTES", "TARGETS", "require_target"]

TARGETS = {f"sm_{capability}": capability for capability in (80, 86, 87, 89, 90, 100, 120)}
SHARED_KILOBYTES = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 120: 99}  # per block: CUDA C++ guide
DEPENDENT_LAUNCH_CAPABILITY = 90  # the first architecture with programmatic dependent launch


def require_target(target: str) -> None:
    """Check that kernels can be compiled for an architecture. Raises KernelError if not."""
    if target not in TARGETS:
        raise KernelError(f"There is no target {target}.", f"Choose one of {', '.join(TARGETS)}.")
