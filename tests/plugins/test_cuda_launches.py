"""Launches of compiled kernels through the CUDA driver's interface, with a fake driver that prints them."""

import os
import re
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from liger_export.errors import KernelError
from liger_export.kernels import plans
from liger_export.kernels.build import load_build
from liger_export.kernels.bundle import pack
from tests.kernels.compiled import BUILT_SHAPE, HAS_TRITON_3_9, NEEDS_TRITON_3_9, build

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")]
pytest.importorskip("triton", reason="needs Triton, which is only available on Linux")

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "plugins" / "ort"
FAKE_DRIVER = HERE.parent / "fakes" / "cuda_driver.cpp"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return build(tmp_path_factory.mktemp("cache"), ("sm_80", "sm_86", "sm_90"))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "launches"
    sources = map(str, (HERE / "launches.cpp", SOURCES / "cuda_kernels.cpp", SOURCES / "cuda_top_logits.cpp"))
    subprocess.run(["g++", "-std=c++17", f"-I{SOURCES}", *sources, "-o", str(path), "-ldl"], check=True)
    return path


def launches(program: Path, bundle: bytes, capability: int) -> list[str]:
    """Run the program with a fake driver for a compute capability. Returns what both print."""
    folder = program.parent / f"driver-{capability}"
    if not folder.exists():
        folder.mkdir()
        flags = [f"-DCAPABILITY={capability}", "-shared", "-fPIC"]
        library = str(folder / "libcuda.so.1")
        subprocess.run(["g++", "-std=c++17", *flags, str(FAKE_DRIVER), "-o", library], check=True)
    (program.parent / "bundle").write_bytes(bundle)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    command = [str(program), str(program.parent / "bundle")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_step_is_launched_as_its_metadata_says(program: Path, folders: list[Path]) -> None:
    builds = [load_build(folder) for folder in folders]
    printed = launches(program, pack(builds), 90)
    assert "shape gla 2 2 64 64 float16" in printed
    step = builds[-1].kernels["step_kernel"]
    started = next(line for line in printed if line.startswith("launch step_kernel"))
    head, values = (part.split() for part in started.split(":"))
    launch, _, grid, threads, shared, stream, early = head
    columns = step["grid"][0]["times"]
    assert (launch, grid, stream) == ("launch", f"{columns},2,3", "5")
    assert (int(threads), int(shared)) == (step["threads"], step["shared_bytes"])
    assert (early, step["dependent"]) == ("1", True)
    names = [argument["name"] for argument in step["arguments"]]
    by_name = dict(zip(names, (int(value, 16) for value in values), strict=True))
    assert [by_name[name] for name in ("query", "key", "value", "cos", "sin")] == [0x1000 * n for n in range(1, 6)]
    assert by_name["next_window_value"] == 0xD000
    assert by_name["query_stride"] & 0xFFFFFFFF == 7
    assert struct.unpack("f", struct.pack("I", by_name["gate_normalizer"] & 0xFFFFFFFF)) == (16.0,)
    assert by_name["global_scratch"] == by_name["profile_scratch"] == 0
    assert not any("missing kernel" in line for line in printed)
    assert next(line for line in printed if "gated_silu" in line).split(":")[0].split()[2::4] == ["5,3,1", "0"]
    assert "copy 16 32 64 5" in printed
    assert "no kernel missing_kernel" in printed[-1]


@pytest.mark.skipif(not HAS_TRITON_3_9, reason=NEEDS_TRITON_3_9)
def test_a_batched_step_is_launched_as_its_metadata_says(program: Path, folders: list[Path]) -> None:
    printed = launches(program, pack([load_build(folder) for folder in folders]), 90)
    step = next(line for line in printed if line.startswith("launch many_step_kernel")).split()
    assert (step[2], step[3]) == ("2,3,1", "64")  # one head per program, one warp per 32 of its columns
    assert step[7 + 13 : 7 + 15] == ["10000", "11000"]  # vectors, rotated queries


def test_sizes_that_the_operators_repeat_are_those_of_the_plans() -> None:
    source = "".join((SOURCES / name).read_text() for name in ("cuda_operators.cpp", "top_logits.h"))
    for name in ("BLOCK", "CHUNK", "PART", "BATCHED_COLUMNS", "TOP_LOGITS"):
        (found,) = re.findall(rf"\b{name} = (\d+)", source)
        assert int(found) == getattr(plans, name), name


def test_top_logits_are_listed_merged_and_sorted(program: Path, folders: list[Path]) -> None:
    printed = launches(program, pack([load_build(folders[-1])]), 90)
    names = ("list_kernel", "merge_kernel", "order_kernel")
    started = [line.split() for line in printed if any(f"launch {name}" in line for name in names)]
    # 300,000 tokens make 37 lists of 8,192; 32 are merged at a time.
    assert [(line[1], line[2]) for line in started] == [
        ("list_kernel", "37,3,1"),
        ("merge_kernel", "2,3,1"),
        ("merge_kernel", "1,3,1"),
        ("order_kernel", "1,3,1"),
    ]
    arguments = [[int(value, 16) for value in line[7:]] for line in started]
    assert arguments[0][:4] == [0x100, 0x200, 0x400, 0x500]
    assert arguments[1][:5] == [0x400, 0x500, 0x200, 0x600, 0x700]
    assert arguments[2][:5] == [0x600, 0x700, 0x200, 0x400, 0x500]
    assert arguments[3][:4] == [0x400, 0x500, 0x200, 0x300]


@pytest.mark.parametrize(("capability", "target"), [(80, 0), (86, 1), (89, 1), (90, 2)])
def test_a_gpu_gets_its_own_code_or_the_newest_older_of_its_generation(
    capability: int, target: int, program: Path, folders: list[Path]
) -> None:
    builds = [load_build(folder) for folder in folders]
    alone = launches(program, pack([builds[target]]), capability)
    assert launches(program, pack(builds), capability) == alone
    started = next(line for line in alone if line.startswith("launch step_kernel"))
    assert started.split(":")[0].endswith(" 1" if capability >= 90 else " 0")  # dependent launch, where the GPU has it


def test_other_gpus_and_damaged_bundles_are_refused(program: Path, folders: list[Path]) -> None:
    bundle = pack([load_build(folder) for folder in folders])
    (refusal,) = launches(program, bundle, 75)
    assert "kernels for sm_80, sm_86, sm_90 and this GPU is sm_75; convert it with --targets sm_75" in refusal
    assert "truncated" in launches(program, bundle[:-100], 90)[-1]
    assert "another format version" in launches(program, b"liger-kernels 9" + bundle[15:], 90)[-1]
    assert "damaged" in launches(program, bundle[:60], 90)[-1]


def test_a_bundle_holds_one_shape(folders: list[Path]) -> None:
    first = load_build(folders[0])
    with pytest.raises(KernelError, match="one shape, not of 2"):
        pack([first, replace(first, shape=replace(BUILT_SHAPE, num_key_value_heads=4))])


def test_code_that_kernels_share_is_packed_once(folders: list[Path], program: Path) -> None:
    found = load_build(folders[-1])
    twice = {
        "kernels": {**found.kernels, "same_kernel": found.kernels["step_kernel"]},
        "cubins": {**found.cubins, "same_kernel": found.cubins["step_kernel"]},
    }
    alone, shared = pack([found]), pack([replace(found, **twice)])
    assert len(shared) - len(alone) < len(found.cubins["step_kernel"])
    assert launches(program, shared, 90) == launches(program, alone, 90)
