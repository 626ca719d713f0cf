"""Kernels compiled in separate processes: in this process Triton may run as an interpreter.

Compilations share Triton's cache, so that tests and test runs compile the same kernel once, unless they ask for a fresh
compilation.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from liger_export.kernels.compiler import compiles_batched_steps
from liger_export.kernels.shapes import AttentionShape

HAS_TRITON_3_9 = importlib.util.find_spec("triton") is not None and compiles_batched_steps()
NEEDS_TRITON_3_9 = "needs Triton 3.9 or newer"

BUILT_SHAPE = AttentionShape(
    "gla", num_key_value_heads=2, num_queries_per_kv=2, head_dim=64, window=64, activation="float16"
)
PREBUILT_SHAPE = AttentionShape(
    "gla", num_key_value_heads=1, num_queries_per_kv=2, head_dim=32, window=16, activation="float32"
)
BUILD = """
import json, sys
from pathlib import Path
from liger_export.kernels.build import build_kernels
from liger_export.kernels.shapes import AttentionShape
shape, cache, targets = json.loads(sys.argv[1])
for target in targets:
    print(build_kernels(AttentionShape(**shape), target, Path(cache)).directory)
"""
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


def python(script: str, *arguments: object, fresh: bool = False) -> str:
    """Run a script in a new process and return what it prints. ``fresh`` ignores Triton's cache."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_ALWAYS_COMPILE": "1"} if fresh else {}
    command = [sys.executable, "-W", "ignore", "-c", script, json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def build(cache: Path, targets: Iterable[str], *, fresh: bool = False) -> list[Path]:
    """Build ``BUILT_SHAPE`` for targets and return the folders."""
    lines = python(BUILD, asdict(BUILT_SHAPE), str(cache), list(targets), fresh=fresh).splitlines()
    return [Path(line) for line in lines]


def prebuilt(folder: Path, *targets: str, fresh: bool = False) -> Path:
    """Write a folder of prebuilt kernels of ``PREBUILT_SHAPE``. Needs Triton 3.9."""
    python(PREBUILD, str(folder), [asdict(PREBUILT_SHAPE)], targets, fresh=fresh)
    return folder
