"""The CPU kernels of quantized linear layers, in every instruction set that the library is compiled for."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.plugins.instructions import SOURCES, instruction_sets

SETS = instruction_sets("avx2", "avxvnni", "avx512vnni")
EMULATED = ["aarch64-linux-gnu-g++", "qemu-aarch64-static"]
BOUND = 4e-6  # of float32 sums


def compile_and_run(compiler: str, flags: list[str], name: str, folder: Path, *runner: str) -> list[str]:
    program, source = folder / "linear", Path(__file__).with_name("linear.cpp")
    flags = ["-std=c++17", "-O1", "-Wno-psabi", *flags, f"-DLIGER_INSTRUCTIONS={name}", f"-I{SOURCES}"]
    subprocess.run([compiler, *flags, str(source), "-o", str(program)], check=True)
    ended = subprocess.run([*runner, program, "1", "100"], capture_output=True, text=True, check=True)
    return ended.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("name", SETS)
def test_products_equal_sums_in_float64(name: str, tmp_path: Path) -> None:
    *wrong, last = compile_and_run("g++", SETS[name], name, tmp_path)
    assert wrong == []
    assert float(last.removeprefix("largest error ")) < BOUND


@pytest.mark.slow
@pytest.mark.skipif(not all(map(shutil.which, EMULATED)), reason=f"needs {' and '.join(EMULATED)}")
def test_products_on_arm_equal_sums_in_float64(tmp_path: Path) -> None:
    flags, runner = ["-static", "-march=armv8.2-a+dotprod"], "qemu-aarch64-static"
    *wrong, last = compile_and_run("aarch64-linux-gnu-g++", flags, "dotprod", tmp_path, runner)
    assert wrong == []
    assert float(last.removeprefix("largest error ")) < BOUND
