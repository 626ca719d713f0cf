"""What a wheel installs."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist, and a wheel built from it, as pip would."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return out


def test_wheel_holds_one_package_and_nothing_beside_it(distributions: Path) -> None:
    names = zipfile.ZipFile(next(distributions.glob("*.whl"))).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"liger_export"}
    wanted = {f"liger_export/{name}" for name in ("cli.py", "kernels/__init__.py", "plugins/__init__.py", "py.typed")}
    assert wanted <= set(names)
    has_library = "liger_export/plugins/ort/libliger_ort.so" in names
    assert has_library == (shutil.which("c++") is not None)
    assert not any("test" in name for name in names)


def test_sdist_holds_the_source_as_it_lies_in_the_repository(distributions: Path) -> None:
    with tarfile.open(next(distributions.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert "plugins/ort/library.cpp" in names
    assert {"pyproject.toml", "LICENSE", "README.md", "liger_export/cli.py", "liger_export/state.py"} <= names


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
def test_without_a_compiler_the_library_is_left_out(tmp_path: Path) -> None:
    """CMake finds nothing but itself and a make."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("cmake", "make", "uname"):
        if found := shutil.which(name):
            (tools / name).symlink_to(Path(found).resolve())
    command = ["cmake", "-S", str(ROOT / "plugins" / "ort"), "-B", str(tmp_path / "build")]
    done = subprocess.run(command, env={"PATH": str(tools)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "No C++ compiler" in done.stderr
