"""Builds for GPUs that this machine does not have. In processes of their own: here Triton may be an interpreter."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from liger_export.errors import KernelError
from liger_export.kernels.build import TARGETS, build_kernels, compiles_many_steps, load_build
from liger_export.kernels.plans import pointwise_plans
from liger_export.kernels.shapes import AttentionShape

pytest.importorskip("triton", reason="needs Triton, which is made for Linux alone")

SHAPE = AttentionShape("gla", groups=2, repeats=2, head_dim=32, window=16, activation="float16")
SCRIPT = """
import json, sys
from pathlib import Path
from liger_export.kernels.build import build_kernels
from liger_export.kernels.shapes import AttentionShape
shape, cache, targets = json.loads(sys.argv[1])
for target in targets:
    print(build_kernels(AttentionShape(**shape), target, Path(cache)).directory)
"""
MANY_SCRIPT = """
import json, sys
from liger_export.kernels.build import compile_plan
from liger_export.kernels.plans import many_step_plan
from liger_export.kernels.shapes import AttentionShape
shape, _, targets = json.loads(sys.argv[1])
shape = AttentionShape(**shape)
for target in targets:
    for ring in (True, False):
        compiled = compile_plan(many_step_plan(shape, ring=ring), shape, target)
        counts = [compiled.ptx.count(name) for name in ("prefetch.global.L2", "griddepcontrol.wait")]
        print(compiled.shared_bytes, *counts)
"""


def printed(script: str, shape: AttentionShape, cache: Path, targets: Iterable[str]) -> list[str]:
    """The lines that a fresh process prints, without Triton's own cache."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache / "triton"), "TRITON_ALWAYS_COMPILE": "1"}
    arguments = json.dumps([asdict(shape), str(cache), list(targets)])
    command = [sys.executable, "-W", "ignore", "-c", script, arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def build(shape: AttentionShape, cache: Path, *targets: str) -> list[Path]:
    """The folders that a fresh process makes."""
    return [Path(line) for line in printed(SCRIPT, shape, cache, targets)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(SHAPE, tmp_path_factory.mktemp("cache"), "sm_90")[0]


def test_every_target_compiles(tmp_path: Path) -> None:
    folders = build(SHAPE, tmp_path, *TARGETS)
    assert len(folders) == len(TARGETS) == 7
    for target, folder in zip(TARGETS, folders, strict=True):
        found = load_build(folder)
        assert found.target == target
        for name in found.kernels:
            assert f".target {target}" in (folder / f"{name}.ptx").read_text()
            assert (folder / f"{name}.cubin").read_bytes()[:4] == b"\x7fELF"


def test_a_second_build_in_another_process_has_the_same_bytes(built: Path, tmp_path: Path) -> None:
    again = build(SHAPE, tmp_path, "sm_90")[0]
    assert again.name == built.name
    files = sorted(path.name for path in built.iterdir())
    assert files == sorted(path.name for path in again.iterdir())
    assert all((built / name).read_bytes() == (again / name).read_bytes() for name in files)
    assert not any(str(Path(__file__).parents[2]).encode() in (built / name).read_bytes() for name in files)


def test_metadata_says_how_to_launch(built: Path) -> None:
    kernels = load_build(built).kernels
    order = ["step_kernel", "prepare_kernel", "pass_kernel", "window_kernel", "output_kernel", "leave_kernel"]
    assert list(kernels) == [*order, *pointwise_plans()]
    step = kernels["step_kernel"]
    names = [argument["name"] for argument in step["arguments"]]
    assert names[0] == "query"
    assert names[-3:] == ["recurrent_weight", "global_scratch", "profile_scratch"]
    entry = (built / "step_kernel.ptx").read_text().split(".entry", 1)[1].split(")", 1)[0]
    assert entry.count(".param") == len(names)
    assert step["threads"] % 32 == 0
    assert step["grid"][1] == {"times": 2, "of": "one", "per": 1}


def test_a_build_is_taken_from_the_cache(built: Path) -> None:
    before = (built / "step_kernel.cubin").stat().st_mtime_ns
    assert build_kernels(SHAPE, "sm_90", built.parent).directory == built
    assert (built / "step_kernel.cubin").stat().st_mtime_ns == before


def test_a_damaged_build_is_refused(built: Path, tmp_path: Path) -> None:
    copy = tmp_path / built.name
    copy.mkdir()
    for path in built.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "step_kernel.ptx").write_text("")
    with pytest.raises(KernelError, match=r"step_kernel\.ptx is damaged"):
        load_build(copy)
    with pytest.raises(KernelError, match="no whole build"):
        load_build(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"head_dim": 64}, "head_dim 32, not 64"), ({"mixer": "hgrn2"}, "mixer gla"), ({"window": 8}, "window 16, not 8")],
)
def test_another_shape_is_refused(built: Path, change: dict[str, object], message: str) -> None:
    found = load_build(built)
    found.require(SHAPE, "sm_90")
    with pytest.raises(KernelError, match=message):
        found.require(replace(SHAPE, **change), "sm_90")  # type: ignore[arg-type]
    with pytest.raises(KernelError, match="target sm_90, not sm_80"):
        found.require(SHAPE, "sm_80")


def test_an_unknown_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="no target sm_75"):
        build_kernels(SHAPE, "sm_75", tmp_path)


@pytest.mark.skipif(not compiles_many_steps(), reason="needs Triton 3.9 or newer")
def test_steps_of_many_move_no_tile_through_shared_memory_and_ask_for_memory_ahead_where_they_begin_early(
    tmp_path: Path,
) -> None:
    shape = AttentionShape("gla", groups=8, repeats=4, head_dim=128, window=64, activation="bfloat16")
    lines = printed(MANY_SCRIPT, shape, tmp_path, ("sm_80", "sm_90"))
    found = [tuple(int(number) for number in line.split()) for line in lines]
    assert len(found) == 4
    assert max(shared for shared, _, _ in found) < 16 * 128 * 4  # less than a tile of the state
    # keys before the wait, values after it, and then 32 rows of the state
    assert [rest for _, *rest in found] == [[0, 0], [0, 0], [3, 1], [3, 1]]
