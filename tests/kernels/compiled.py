"""Kernels compiled in processes of their own, since here Triton may be an interpreter."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from liger_export.kernels.shapes import AttentionShape

SHAPE = AttentionShape("gla", groups=1, repeats=2, head_dim=32, window=16, activation="float32")
PREBUILD = """
import json, sys
from pathlib import Path
from liger_export.kernels.prebuilt import prebuild
from liger_export.kernels.shapes import AttentionShape, LinearShape
if __name__ == "__main__":
    folder, shapes, targets = json.loads(sys.argv[1])
    linears = (LinearShape(64, 64), LinearShape(64, 64, is_gated=True))
    prebuild(Path(folder), [(AttentionShape(**shape), linears) for shape in shapes], targets)
"""


def python(script: str, *arguments: object) -> str:
    """What a fresh process prints, which compiles everything anew."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_ALWAYS_COMPILE"] = "1"
    command = [sys.executable, "-W", "ignore", "-c", script, json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def prebuilt(folder: Path, *targets: str) -> Path:
    python(PREBUILD, str(folder), [asdict(SHAPE)], targets)
    return folder
