"""Sizes and dtypes of the CUDA operators' calls, checked before a launch; with a fake driver."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.plugins.instructions import SOURCES

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")]

HERE = Path(__file__).parent
FUZZ, FAKE_DRIVER = HERE.parent / "fuzz", HERE.parent / "fakes" / "cuda_driver.cpp"

EXPECTED = {
    "valid": "done",
    "no tokens": "done",
    "no block": "blocks of a multiple of 32",
    "bits": "needs 4 or 8 bits",
    "columns": "hidden states must have shape [B, T, blocks * block_size], not [1, 2, 65]",
    "scales": "scales must have shape [31, 2], not [31, 1]",
    "zero points": "zero_points must have shape [31, 1], not [31]",
    "zero point dtype": "input 4 must have ONNX element type 2, not 1",
    "odd gate and up": "weight must have shape [2 N, K]",
    "no scales": "input 3 is absent",
    "valid gate and up": "done",
    "no sequences": "done",
    "too many rows": "too large",
    "width beyond 32 bits": "must fit into 32 bits",
    "grid beyond 32 bits": "too large for the GPU",
    "damaged axis": "kernels are damaged",
    "damaged number": "kernels are damaged",
}


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("calls")
    sources = [HERE / "cuda_calls.cpp", *sorted(SOURCES.glob("cuda_*.cpp"))]
    flags = ["-std=c++17", f"-I{SOURCES}", f"-I{FUZZ}"]
    subprocess.run(["g++", *flags, *map(str, sources), "-o", str(folder / "calls"), "-ldl", "-lpthread"], check=True)
    driver = ["g++", "-DCAPABILITY=90", "-shared", "-fPIC", str(FAKE_DRIVER), "-o", str(folder / "libcuda.so.1")]
    subprocess.run(driver, check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    ended = subprocess.run([folder / "calls"], env=environment, capture_output=True, text=True, check=False)
    return ended.stdout.splitlines()


def test_calls_that_no_kernel_can_compute_are_refused_with_what_is_wanted(lines: list[str]) -> None:
    found = dict(line.split(": ", 1) for line in lines if not line.startswith("launch "))
    assert found.keys() == EXPECTED.keys()
    assert {what: found[what] for what, cause in EXPECTED.items() if cause not in found[what]} == {}


def test_only_calls_with_tokens_are_launched(lines: list[str]) -> None:
    launched = [line.split()[1:3] for line in lines if line.startswith("launch ")]
    assert launched == [["linear_kernel", "2,1,1"], ["gated_silu_kernel", "6,1,1"]]
