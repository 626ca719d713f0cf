"""The exponential of the CPU kernels, in every instruction set that the library is compiled for."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.plugins.instructions import SOURCES, instruction_sets

SETS = instruction_sets("avx2", "avx512")

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.mark.parametrize("name", SETS)
def test_exponential_equals_that_of_the_standard_library_on_floats_of_every_class(name: str, tmp_path: Path) -> None:
    program, source = tmp_path / "exponential", Path(__file__).with_name("exponential.cpp")
    flags = ["-std=c++17", "-O3", "-Wno-psabi", *SETS[name], f"-DLIGER_INSTRUCTIONS={name}"]
    subprocess.run(["g++", *flags, f"-I{SOURCES}", str(source), "-o", str(program)], check=True)
    *wrong, last = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    assert wrong == []
    assert float(last.removeprefix("largest error ")) < 2
