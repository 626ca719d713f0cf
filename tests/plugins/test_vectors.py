"""The exponential of the CPU kernels, in every instruction set that the library is compiled for."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "plugins" / "ort"


def instruction_sets() -> dict[str, list[str]]:
    """Return the compiler flags of the instruction sets in CMakeLists.txt that this processor has."""
    (avx2,) = re.findall(r"PRIVATE (-mavx2 .*)\)", (SOURCES / "CMakeLists.txt").read_text())
    processor = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return {"baseline": []} | ({"avx2": avx2.split()} if " avx2 " in processor else {})


@pytest.mark.parametrize("name", instruction_sets())
def test_exponential_equals_that_of_the_standard_library_on_floats_of_every_class(name: str, tmp_path: Path) -> None:
    program = tmp_path / "exponential"
    flags = ["-std=c++17", "-O3", "-Wno-psabi", *instruction_sets()[name], f"-DLIGER_INSTRUCTIONS={name}"]
    subprocess.run(["g++", *flags, f"-I{SOURCES}", str(HERE / "exponential.cpp"), "-o", str(program)], check=True)
    *wrong, last = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    assert wrong == []
    assert float(last.removeprefix("largest error ")) < 2
