"""Builds for GPUs that this machine does not have."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import pytest

from liger_export.errors import KernelError
from liger_export.kernels.build import build_kernels, load_build
from liger_export.kernels.plans import chunkwise_plans, pointwise_plans
from liger_export.kernels.shapes import AttentionShape
from liger_export.kernels.targets import TARGETS
from tests.kernels.compiled import BUILT_SHAPE, HAS_TRITON_3_9, NEEDS_TRITON_3_9, build, python

pytest.importorskip("triton", reason="needs Triton, which is only available on Linux")

BATCHED = """
import json, sys
from liger_export.kernels.compiler import compile_plan
from liger_export.kernels.plans import batched_step_plan
from liger_export.kernels.shapes import AttentionShape
shape, targets = json.loads(sys.argv[1])
shape = AttentionShape(**shape)
for target in targets:
    for ring in (True, False):
        compiled = compile_plan(batched_step_plan(shape, ring=ring), shape, target)
        counts = [compiled.ptx.count(name) for name in ("prefetch.global.L2", "griddepcontrol.wait")]
        print(compiled.shared_bytes, *counts)
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that all builds of this module share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def built(cache: Path) -> Path:
    return build(cache, ["sm_90"])[0]


def test_two_processes_may_build_the_same_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second build begins and ends while the first one runs."""

    def write(folder: Path, *_: object) -> None:
        (folder / "kernel.cubin").write_bytes(b"")
        if not begun:
            begun.append(folder)
            build_kernels(BUILT_SHAPE, "sm_90", tmp_path)

    begun, loaded = list[Path](), list[Path]()
    monkeypatch.setattr("liger_export.kernels.build._write", write)
    monkeypatch.setattr("liger_export.kernels.build.load_build", loaded.append)
    build_kernels(BUILT_SHAPE, "sm_90", tmp_path)
    assert [*tmp_path.iterdir()] == [loaded[0]]
    assert loaded[0] == loaded[1]


@pytest.mark.slow
def test_every_target_compiles(cache: Path) -> None:
    folders = build(cache, TARGETS)
    assert len(folders) == len(TARGETS) == 7
    for target, folder in zip(TARGETS, folders, strict=True):
        found = load_build(folder)
        assert found.target == target
        for name in found.kernels:
            assert f".target {target}" in (folder / f"{name}.ptx").read_text()
            assert (folder / f"{name}.cubin").read_bytes()[:4] == b"\x7fELF"


@pytest.mark.slow
def test_a_second_build_in_another_process_has_the_same_bytes(built: Path, tmp_path: Path) -> None:
    again = build(tmp_path, ["sm_90"], fresh=True)[0]
    assert again.name == built.name
    files = sorted(path.name for path in built.iterdir())
    assert files == sorted(path.name for path in again.iterdir())
    assert all((built / name).read_bytes() == (again / name).read_bytes() for name in files)
    assert not any(str(Path(__file__).parents[2]).encode() in (built / name).read_bytes() for name in files)


@pytest.mark.slow
def test_metadata_says_how_to_launch(built: Path) -> None:
    kernels = load_build(built).kernels
    steps = ["step_kernel", "many_step_kernel"] if HAS_TRITON_3_9 else ["step_kernel"]
    chunkwise = ["prepare_kernel", "pass_kernel", "window_kernel", "output_kernel", "leave_kernel"]
    assert list(chunkwise_plans(BUILT_SHAPE)) == chunkwise
    assert list(kernels) == [*steps, *chunkwise, *(plan.name for plan in pointwise_plans().values())]
    step = kernels["step_kernel"]
    names = [argument["name"] for argument in step["arguments"]]
    assert names[0] == "query"
    assert names[-3:] == ["recurrent_weight", "global_scratch", "profile_scratch"]
    entry = (built / "step_kernel.ptx").read_text().split(".entry", 1)[1].split(")", 1)[0]
    assert entry.count(".param") == len(names)
    assert step["threads"] % 32 == 0
    assert step["grid"][1] == {"times": 2, "of": "one", "per": 1}


@pytest.mark.slow
def test_names_in_files_are_those_of_packages_written_earlier(built: Path) -> None:
    kernels = load_build(built).kernels
    assert kernels["most_likely_kernel"]["name"] == "most_likely_kernel"
    assert kernels["order_kernel"]["arguments"][3] == {"name": "candidates", "type": "*fp32"}
    assert kernels["step_kernel"]["shape"] == {
        "mixer": "gla", "groups": 2, "repeats": 2, "head_dim": 64, "window": 64, "activation": "float16",
    }  # fmt: skip
    if HAS_TRITON_3_9:
        assert kernels["many_step_kernel"]["name"] == "many_step_kernel"


@pytest.mark.slow
def test_a_build_is_taken_from_the_cache(built: Path) -> None:
    before = (built / "step_kernel.cubin").stat().st_mtime_ns
    assert build_kernels(BUILT_SHAPE, "sm_90", built.parent).directory == built
    assert (built / "step_kernel.cubin").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_damaged_build_is_refused(built: Path, tmp_path: Path) -> None:
    copy = tmp_path / built.name
    copy.mkdir()
    for path in built.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "step_kernel.ptx").write_text("")
    with pytest.raises(KernelError, match=r"step_kernel\.ptx is damaged"):
        load_build(copy)
    with pytest.raises(KernelError, match="not a complete build"):
        load_build(tmp_path)


def test_an_unknown_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="no target sm_75"):
        build_kernels(BUILT_SHAPE, "sm_75", tmp_path)


def batched_counts(shape: AttentionShape, targets: Iterable[str]) -> list[list[int]]:
    """Shared bytes, prefetches and waits of the batched step kernel, for each target with and without a ring."""
    lines = python(BATCHED, asdict(shape), list(targets)).splitlines()
    return [[int(number) for number in line.split()] for line in lines]


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON_3_9, reason=NEEDS_TRITON_3_9)
def test_batched_steps_keep_tiles_out_of_shared_memory_and_prefetch_with_dependent_launch() -> None:
    shape = AttentionShape(
        "gla", num_key_value_heads=8, num_queries_per_kv=4, head_dim=128, window=64, activation="bfloat16"
    )
    found = batched_counts(shape, ("sm_80", "sm_90"))
    assert len(found) == 4
    assert max(shared for shared, _, _ in found) < 16 * 128 * 4  # less than a tile of the state
    # keys before the wait, values after it, and then 32 rows of the state
    assert [rest for _, *rest in found] == [[0, 0], [0, 0], [3, 1], [3, 1]]
