"""Which graph and device ``load`` takes, and what it says where it cannot."""

from pathlib import Path

import pytest

from liger_export.errors import EnvironmentMismatchError, InputError, PackageError
from liger_export.package.build import convert
from liger_export.runtime import load, opening


@pytest.fixture(scope="module")
def fused(liger_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = tmp_path_factory.mktemp("fused") / "package"
    convert(liger_checkpoint, package, lowering="fused")
    return package


def test_a_stock_package_runs_on_the_cpu(package: Path) -> None:
    session = load(package)
    assert (session.lowering, session.device) == ("stock", "cpu")
    with pytest.raises(PackageError, match=r"no fused graph.*--lowering fused"):
        load(package, lowering="fused")


def test_without_the_library_a_fused_package_runs_by_its_stock_graph(
    fused: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "library_path", lambda: None)
    assert load(fused).lowering == "stock"
    with pytest.raises(EnvironmentMismatchError, match="for want of a C\\+\\+ compiler"):
        load(fused, lowering="fused")


def test_what_is_not_there_is_named(fused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no device 'tpu'.*cpu, cuda"):
        load(fused, device="tpu")
    with pytest.raises(InputError, match=r"no lowering 'other'.*stock, fused"):
        load(fused, lowering="other")
    monkeypatch.setattr(opening.ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EnvironmentMismatchError, match=r"no CUDA.*onnxruntime-gpu"):
        load(fused, device="cuda")
    monkeypatch.setattr(opening.ort, "get_available_providers", lambda: list(opening.PROVIDERS.values()))
    with pytest.raises(PackageError, match=r"kernels for the GPU.*--targets"):
        load(fused, device="cuda")
    assert load(fused).device == "cpu"


def test_sessions_on_one_model_capture_graphs_of_their_own(fused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A captured graph holds addresses: a fork that replayed another session's would write into its buffers."""
    numbers: list[int] = []

    def run_options(device: str, capture: int) -> None:
        numbers.append(capture)

    monkeypatch.setattr("liger_export.runtime.session._run_options", run_options)
    load(fused).fork()
    assert len(numbers) == len(set(numbers)) == 4
