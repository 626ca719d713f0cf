"""Run a wheel for 64-bit Arm Linux under QEMU, beside this machine's installation.

    python -m tests.arm.wheel dist/liger_export-0.1.0-py3-none-manylinux_2_34_aarch64.whl PACKAGE

Unpacks Debian for Arm with ``mmdebstrap``, and the wheels of ONNX Runtime, numpy and tokenizers with pip. Imports the
runtime, then continues prompts with the package's fused graph: the greedy tokens must be those on this machine. Needs
root, ``mmdebstrap`` and ``qemu-user-static``. ONNX Runtime's wheels from 1.28 on crash under Debian's QEMU 7.2 when
they are imported, so an older one runs the graph, without liger-export's runtime, which refuses it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from liger_export.ort import library_path
from liger_export.runtime.opening import read_tokenizer

PROCESSORS = ("max", "neoverse-n1", "cortex-a72")  # with i8mm, with dot products only, with neither
LIBRARIES = ("onnxruntime==1.27.0", "numpy", "tokenizers", "packaging")
PLATFORMS = ("manylinux_2_34_aarch64", "manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
DEBIAN = ("python3", "libgomp1", "libstdc++6")
PROMPTS = ("def read_lines(path", "class Stack:\n    def push(self, item):\n", "import os\n\n\ndef main(")
IMPORT = "import liger_export; from liger_export.ort import library_path; print(library_path())"
ELF_MACHINE = b"\xb7\x00"  # EM_AARCH64, in the header of an ELF file
GREEDY = Path(__file__).with_name("greedy.py")


def require_arm(wheel: Path) -> None:
    """Raise ValueError if a shared library in the wheel is for another processor."""
    with zipfile.ZipFile(wheel) as archive:
        machines = {name: archive.read(name)[18:20] for name in archive.namelist() if name.endswith(".so")}
    if not machines or set(machines.values()) != {ELF_MACHINE}:
        raise ValueError(f"{wheel} has other libraries than for aarch64: {machines}")


def make_root(root: Path) -> None:
    options = ["--mode=root", "--architectures=arm64", "--variant=extract", "--skip=check/qemu"]
    command = ["mmdebstrap", *options, f"--include={','.join(DEBIAN)}", "bookworm", root]
    subprocess.run(command, check=True, capture_output=True)


def install(wheel: Path, site: Path) -> None:
    """Install the wheel as pip on Arm would, and the libraries it imports."""
    tags = [f"--platform={platform}" for platform in PLATFORMS]
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--python-version=3.11", "--target", site, *tags]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, wheel, *LIBRARIES], check=True)


class Emulator:
    """Python of a Debian for Arm, on an emulated processor."""

    def __init__(self, root: Path, site: Path, processor: str) -> None:
        self.command = ["qemu-aarch64-static", "-cpu", processor, "-L", root, "-E", f"PYTHONPATH={site}"]
        self.command.append(root / "usr/bin/python3.11")

    def run(self, *arguments: object, text: str = "") -> str:
        command = [*map(str, self.command), *map(str, arguments)]
        return subprocess.run(command, input=text, text=True, check=True, stdout=subprocess.PIPE).stdout


def compare(expected: dict[str, list[list[float]]], found: dict[str, list[list[float]]]) -> tuple[int, float]:
    """Return the number of equal tokens before the first other one, and the relative difference of the logits."""
    equal = 0
    for wanted, tokens in zip(expected["tokens"], found["tokens"], strict=True):
        same = [a == b for a, b in zip(wanted, tokens, strict=True)]
        equal += same.index(False) if False in same else len(same)
    logits, others = np.array(expected["logits"]), np.array(found["logits"])
    return equal, float(np.linalg.norm(logits - others) / np.linalg.norm(logits))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.arm.wheel", description="Run a wheel for Arm under QEMU.")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("package", type=Path)
    parser.add_argument("--tokens", type=int, default=64, help="to choose after each prompt")
    arguments = parser.parse_args()
    require_arm(arguments.wheel)
    tokenizer = read_tokenizer(arguments.package)
    prompts = json.dumps([tokenizer.encode(prompt).ids for prompt in PROMPTS])
    tail = [arguments.package, library_path(), arguments.tokens]
    command = [sys.executable, GREEDY, *map(str, tail)]
    expected = json.loads(subprocess.run(command, input=prompts, text=True, check=True, stdout=subprocess.PIPE).stdout)
    failures, total = 0, arguments.tokens * len(PROMPTS)
    with tempfile.TemporaryDirectory() as folder:
        root, site = Path(folder) / "root", Path(folder) / "site"
        make_root(root)
        install(arguments.wheel, site)
        for processor in PROCESSORS:
            emulator = Emulator(root, site, processor)
            library = emulator.run("-c", IMPORT).strip()
            found = json.loads(emulator.run(GREEDY, arguments.package, library, arguments.tokens, text=prompts))
            equal, difference = compare(expected, found)
            failures += equal < total
            print(f"{processor}, ONNX Runtime {found['onnxruntime']}: {equal} of {total} tokens are the same.")
            print(f"  Logits after the prompts differ by {difference:.1e} (relative L2).")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
