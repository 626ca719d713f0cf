"""Prebuilt kernels."""

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from liger_export.errors import KernelError
from liger_export.kernels.bundle import pack
from liger_export.kernels.prebuilt import DEFAULTS, find_build
from liger_export.kernels.targets import TARGETS
from liger_export.publishing import RECORD_FILE
from tests.kernels.compiled import HAS_TRITON_3_9, NEEDS_TRITON_3_9, PREBUILT_SHAPE, prebuilt, python

pytest.importorskip("triton", reason="needs Triton, which is only available on Linux")

WITHOUT_TRITON = """
import hashlib, json, sys
sys.modules["triton"] = None  # as if it were not installed
from pathlib import Path
from liger_export.errors import LigerExportError
from liger_export.kernels.bundle import pack
from liger_export.kernels.prebuilt import find_or_build
from liger_export.kernels.shapes import AttentionShape
folder, shape, target = json.loads(sys.argv[1])
try:
    print(hashlib.sha256(pack([find_or_build(AttentionShape(**shape), target, folder=Path(folder))])).hexdigest())
except LigerExportError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not HAS_TRITON_3_9:
        pytest.skip(NEEDS_TRITON_3_9)
    return prebuilt(tmp_path_factory.mktemp("kernels") / "prebuilt", "sm_90")


@pytest.mark.slow
def test_the_manifest_has_the_hash_of_every_file(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    kernels = manifest["kernels"]
    named = {f"{kernel['sha256']['cubin']}.cubin" for kernel in kernels.values()}
    assert {path.name for path in folder.iterdir()} == named | {"manifest.json", RECORD_FILE}
    for path in folder.glob("*.cubin"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
    assert {kernel["name"] for kernel in kernels.values()} >= {"step_kernel", "linear_kernel", "list_kernel"}
    assert all(key.startswith("sm_90-") for key in kernels)


@pytest.mark.slow
def test_a_second_folder_has_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = prebuilt(tmp_path / "prebuilt", "sm_90", fresh=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in again.iterdir()
    }


@pytest.mark.slow
def test_without_triton_they_are_found_and_others_refused(folder: Path) -> None:
    found = find_build(PREBUILT_SHAPE, "sm_90", folder=folder)
    assert found is not None
    assert (found.shape, found.target) == (PREBUILT_SHAPE, "sm_90")
    bundle = hashlib.sha256(pack([found])).hexdigest()
    assert python(WITHOUT_TRITON, str(folder), asdict(PREBUILT_SHAPE), "sm_90") == bundle
    wide = python(WITHOUT_TRITON, str(folder), asdict(replace(PREBUILT_SHAPE, head_dim=64)), "sm_90")
    assert (
        "no compiled kernels for sm_90 of mixer gla, num_key_value_heads 1, num_queries_per_kv 2, head_dim 64" in wide
    )
    assert "pip install triton" in wide
    assert "no compiled kernels for sm_80" in python(WITHOUT_TRITON, str(folder), asdict(PREBUILT_SHAPE), "sm_80")
    assert "no target sm_1" in python(WITHOUT_TRITON, str(folder), asdict(PREBUILT_SHAPE), "sm_1")


@pytest.mark.slow
def test_kernels_of_other_sources_are_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liger_export.kernels.build.MODULES", ("features", "plans"))
    assert find_build(PREBUILT_SHAPE, "sm_90", folder=folder) is None


@pytest.mark.slow
def test_damaged_and_missing_files_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "prebuilt"))
    path = next(copy.glob("*.cubin"))
    path.write_bytes(b"")
    with pytest.raises(KernelError, match=r"damaged.*Reinstall"):
        find_build(PREBUILT_SHAPE, "sm_90", folder=copy)
    path.unlink()
    with pytest.raises(KernelError, match="incomplete"):
        find_build(PREBUILT_SHAPE, "sm_90", folder=copy)
    assert find_build(PREBUILT_SHAPE, "sm_90", folder=tmp_path / "nowhere") is None


def test_the_default_shapes_are_those_of_the_models_named() -> None:
    heads = {(shape.num_key_value_heads, shape.num_queries_per_kv, shape.head_dim) for shape, _ in DEFAULTS}
    assert {(8, 4, 64), (8, 4, 128), (4, 7, 128)} < heads
    config = json.loads((Path(__file__).parents[2] / "examples" / "pycode-7m" / "base" / "config.json").read_text())
    kv_heads = config["num_key_value_heads"]
    assert (kv_heads, config["num_attention_heads"] // kv_heads, config["head_dim"]) in heads
    assert len({shape for shape, _ in DEFAULTS}) == len(DEFAULTS)
    assert len(TARGETS) == 7
