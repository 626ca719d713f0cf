"""The CPU operators in every instruction set that the library is compiled for, on x86-64 and, emulated, on Arm."""

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.once import made_once
from tests.plugins.instructions import QUICK, SOURCES, instruction_sets

ARM = ["cmake", "aarch64-linux-gnu-g++", "qemu-aarch64-static"]
CALLS = {"IntegerLinear": 91, "IntegerLogits": 29, "Linear": 90, "Logits": 30}  # of every instruction set
ATTENTION = {"Attention", "GSAAttention", "LoLCATsAttention"}
FOUR_BITS, SEVERAL_BLOCKS = 60, 80  # calls of them with 4-bit weights, and with more than one block in a row

pytestmark = pytest.mark.slow
native = pytest.mark.skipif(not all(map(shutil.which, ("cmake", "g++"))), reason="needs cmake and g++")
emulated = pytest.mark.skipif(not all(map(shutil.which, ARM)), reason=f"needs {', '.join(ARM)}")


def build(folder: Path, *options: str, flags: tuple[str, ...] = QUICK) -> None:
    settings = ["-DLIGER_KERNEL_TESTS=ON", f"-DCMAKE_CXX_FLAGS_RELEASE={' '.join(flags)}", *options]
    if "avxvnni" not in instruction_sets("avxvnni"):
        settings.append("-Dhas_avxvnni=OFF")  # nothing here would run it
    subprocess.run(["cmake", "-S", SOURCES, "-B", folder, *settings], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", folder, "--target", "kernel_tests"], check=True, capture_output=True)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once("kernels", build, tmp_path_factory) / "kernel_tests"


@pytest.fixture(scope="module")
def arm_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = [f"-DCMAKE_TOOLCHAIN_FILE={SOURCES / 'aarch64-linux.cmake'}", "-DCMAKE_EXE_LINKER_FLAGS=-static"]
    flags = (*QUICK, "-Og")  # emulation makes up for the time that it takes to compile
    return (
        made_once("arm_kernels", lambda folder: build(folder, *options, flags=flags), tmp_path_factory) / "kernel_tests"
    )


def run(*command: str | Path) -> tuple[list[str], dict[str, dict[str, int]]]:
    """Return the lines about wrong calls, and the number of calls by instruction set and operator."""
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    calls: dict[str, dict[str, int]] = {}
    for name, operator, number in re.findall(r"^(\w+) (\w+): (\d+) calls$", "\n".join(lines), re.MULTILINE):
        calls.setdefault(name, {})[operator] = int(number)
    return [line for line in lines if line.startswith("wrong")], calls


def require_all_right(command: Sequence[str | Path], linear_sets: set[str], attention_sets: set[str]) -> None:
    wrong, calls = run(*command)
    assert wrong == []
    assert {name for name, numbers in calls.items() if CALLS.items() <= numbers.items()} == linear_sets
    others = {*ATTENTION, "Candidates", "GatedSiLU", "MostLikely"}
    assert {name for name, numbers in calls.items() if others <= numbers.keys()} == attention_sets - {"avx512"}
    assert {name for name, numbers in calls.items() if numbers.keys() >= ATTENTION} == attention_sets


def require_damage_is_seen(command: Sequence[str | Path], linear_sets: set[str]) -> None:
    for damage, calls in (("shift", FOUR_BITS), ("blocks", SEVERAL_BLOCKS)):
        wrong, _ = run(*command, damage)
        assert Counter(line.split()[1] for line in wrong) == dict.fromkeys(linear_sets, calls)


@native
def test_every_instruction_set_of_this_processor_gives_the_results_of_the_reference(program: Path) -> None:
    attention_sets = instruction_sets("avx2", "avx512")
    require_all_right([program], set(instruction_sets("avx2", "avxvnni", "avx512vnni")), set(attention_sets))


@native
def test_wrong_shifts_and_wrong_blocks_are_seen_in_every_call_that_has_them(program: Path) -> None:
    require_damage_is_seen([program], set(instruction_sets("avx2", "avxvnni", "avx512vnni")))


@emulated
@pytest.mark.parametrize(
    ("processor", "sets"),
    [("max", {"baseline", "dotprod", "i8mm"}), ("neoverse-n1", {"baseline", "dotprod"}), ("cortex-a72", {"baseline"})],
)
def test_every_instruction_set_of_an_arm_processor_gives_the_results_of_the_reference(
    processor: str, sets: set[str], arm_program: Path
) -> None:
    require_all_right(["qemu-aarch64-static", "-cpu", processor, arm_program], sets, {"baseline"})


@emulated
def test_wrong_shifts_and_wrong_blocks_are_seen_on_arm(arm_program: Path) -> None:
    require_damage_is_seen(["qemu-aarch64-static", "-cpu", "max", arm_program], {"baseline", "dotprod", "i8mm"})
