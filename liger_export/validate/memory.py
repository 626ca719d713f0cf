"""Memory growth of a package: measured in a separate process, and recorded in its manifest."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

from liger_export.errors import OutputError
from liger_export.files import new_file
from liger_export.package import FUSED, FUSED_CUDA, MANIFEST_FILE, Manifest, read_manifest
from liger_export.runtime import Session
from liger_export.runtime.growth import Growth

__all__ = ["measure_memory", "record_memory"]


def measure_memory(package: Path, session: Session, tokens: int) -> Growth:
    """Measure memory growth in a process that does nothing else.

    The process has one thread: each further thread of a pool allocates its stack when it first gets work, at any time.

    Args:
        package: package directory.
        session: a session of the package, which tells the device and the lowering.
        tokens: tokens to read while memory is sampled.
    """
    lowering = FUSED if session.lowering == FUSED_CUDA else session.lowering
    command = [sys.executable, "-m", "liger_export.runtime.growth", str(package.resolve())]
    command += ["--tokens", str(tokens), "--threads", "1", "--lowering", lowering]
    if session.manifest.engine is not None or session.manifest.activations == "bfloat16":
        command += ["--device", session.device]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Growth(**json.loads(output))


def record_memory(package: Path, manifest: Manifest, growth: Growth) -> None:
    """Write measured memory growth into a package's manifest.

    Raises:
        OutputError: the package has been replaced since its manifest was read, or cannot be written.
    """
    if replace(read_manifest(package), memory=None) != replace(manifest, memory=None):
        raise OutputError(f"{package} has been replaced while it was measured.", "Validate it again.")
    with new_file(package / MANIFEST_FILE) as file:
        file.write_text(replace(manifest, memory=asdict(growth)).to_json(), encoding="utf-8")
