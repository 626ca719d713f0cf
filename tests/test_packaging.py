"""The contents of the wheel and of the sdist."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.kernels.compiled import HAS_TRITON_3_9, NEEDS_TRITON_3_9, prebuilt
from tests.once import made_once
from tests.plugins.instructions import QUICK
from tests.tiny import Shape, write_liger

ROOT = Path(__file__).parents[1]
OURS = ("cli.py", "kernels", "liger_export", "plugins", "pyproject.toml", "LICENSE", "README.md", ".gitignore")
CONVERT = """
import sys
sys.modules["triton"] = None  # importing it fails, as if it were not installed
from pathlib import Path
import liger_export
from liger_export.convert import convert
assert Path(liger_export.__file__).parents[1] == Path(sys.argv[1])
convert(Path(sys.argv[2]), Path(sys.argv[3]), lowering="fused", targets=("sm_90",))
"""

QUICKSTART = """
import sys
from pathlib import Path
import liger_export
from liger_export.cli import app
assert Path(liger_export.__file__).parents[1] == Path("site").resolve()
example = Path(sys.argv[1])
for command in (
    ["linearize", f"{example}/base", "-o", "liger"],
    ["convert", "liger", "--adapter", f"{example}/adapter", "--lowering", "fused", "-o", "package"],
    ["inspect", "package"],
    ["run", "package", "def read_lines(path", "-n", "24"],
):
    app(command, standalone_mode=False)
"""


def without_the_repository(site: Path) -> dict[str, str]:
    """Environment in which Python finds the package in ``site``, and its libraries where the tests find them."""
    libraries = [path for path in sys.path if path and Path(path).resolve() != ROOT]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *libraries])}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an sdist and a wheel built from it, with compiled kernels of one shape if Triton has them."""

    def build(out: Path) -> None:
        source = tmp_path_factory.mktemp("source")
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "prebuilt")
        for name in OURS:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
            else:
                shutil.copy(ROOT / name, source / name)
        if HAS_TRITON_3_9:
            prebuilt(source / "kernels" / "prebuilt", "sm_90")
        builder = [sys.executable, "-m", "build", "--no-isolation", "-C", "cmake.define.LIGER_ALL_INSTRUCTIONS=OFF"]
        builder += ["-C", "cmake.define.CMAKE_CXX_FLAGS_RELEASE=" + " ".join(QUICK)]
        command = [*builder, "--outdir", str(out), str(source)]
        subprocess.run(command, check=True, capture_output=True)

    return made_once("distributions", build, tmp_path_factory)


@pytest.mark.slow
def test_the_wheel_contains_one_package_and_no_tests(distributions: Path) -> None:
    names = zipfile.ZipFile(next(distributions.glob("*.whl"))).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"liger_export"}
    required = {f"liger_export/{name}" for name in ("cli.py", "kernels/__init__.py", "plugins/__init__.py", "py.typed")}
    assert required <= set(names)
    has_library = "liger_export/plugins/ort/libliger_ort.so" in names
    assert has_library == (shutil.which("c++") is not None)
    assert not any("test" in name for name in names)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON_3_9, reason=NEEDS_TRITON_3_9)
def test_an_installed_wheel_converts_with_its_compiled_kernels(distributions: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(next(distributions.glob("*.whl"))).extractall(tmp_path / "site")
    folder = tmp_path / "site" / "liger_export" / "kernels" / "prebuilt"
    manifest = json.loads((folder / "manifest.json").read_text())
    hashes = {kernel["sha256"]["cubin"] for kernel in manifest["kernels"].values()}
    assert {path.stem for path in folder.glob("*.cubin")} == hashes
    checkpoint = write_liger(tmp_path / "liger", Shape(2, 1, head_dim=32, window=16))
    # -S disables the site module: the import hook of an editable install would find the repository first.
    command = [sys.executable, "-S", "-c", CONVERT, *map(str, (tmp_path / "site", checkpoint, tmp_path / "package"))]
    environment = without_the_repository(tmp_path / "site")
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    graph = (tmp_path / "package" / "model.cuda.onnx").read_bytes()
    assert b"kernel 90 step_kernel" in graph
    steps = {kernel["sha256"]["cubin"] for kernel in manifest["kernels"].values() if kernel["name"] == "step_kernel"}
    assert steps
    assert all((folder / f"{step}.cubin").read_bytes() in graph for step in steps)


@pytest.mark.slow
def test_the_quickstart_runs_with_the_installed_wheel_in_an_empty_folder(distributions: Path, tmp_path: Path) -> None:
    installer = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target"]
    wheel = next(distributions.glob("*.whl"))
    subprocess.run([*installer, str(tmp_path / "site"), str(wheel)], check=True, capture_output=True)
    command = [sys.executable, "-S", "-c", QUICKSTART, str(ROOT / "examples" / "pycode-7m")]
    environment = without_the_repository(tmp_path / "site")
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 'def read_lines(path):\n    """Read a' in done.stdout
    assert "24 tokens at" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["liger", "package", "site"]
    assert (tmp_path / "site" / "bin" / "liger-export").exists()


@pytest.mark.slow
def test_the_sdist_has_the_layout_of_the_repository(distributions: Path) -> None:
    with tarfile.open(next(distributions.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert "plugins/ort/library.cpp" in names
    assert {"pyproject.toml", "LICENSE", "README.md", "liger_export/cli.py", "liger_export/state.py"} <= names


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
def test_the_build_omits_the_library_without_a_compiler(tmp_path: Path) -> None:
    """Run CMake with a PATH that contains only cmake, make and uname."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("cmake", "make", "uname"):
        if found := shutil.which(name):
            (tools / name).symlink_to(Path(found).resolve())
    command = ["cmake", "-S", str(ROOT / "plugins" / "ort"), "-B", str(tmp_path / "build")]
    done = subprocess.run(command, env={"PATH": str(tools)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "No C++ compiler" in done.stderr
