"""The example in C gives the Python runtime's tokens, on both graphs and over saved states."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from liger_export.convert import convert
from liger_export.package import MODEL_FILES
from liger_export.runtime import load
from tests.examples.conftest import EXAMPLES
from tests.once import made_once
from tests.plugins.sessions import LIBRARY, needs_library

EXAMPLE = EXAMPLES / "c"
PROMPTS = {
    "short": [0, 532, 1084, 63, 876, 8],
    "long": np.random.default_rng(0).integers(1, 4096, 300).tolist(),  # several calls
}
GRAPHS = ["stock", pytest.param("fused", marks=needs_library)]

pytestmark = pytest.mark.slow


def missing() -> str | None:
    """Name what the example needs and this machine lacks."""
    for program in ("cmake", "cc"):
        if shutil.which(program) is None:
            return f"needs {program}"
    return None if libraries() else "needs libonnxruntime.so, which this onnxruntime does not bring"


def libraries() -> list[Path]:
    """List the shared libraries of Python's ONNX Runtime."""
    return list((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))


def build(folder: Path) -> None:
    """Build the example as with a release of ONNX Runtime that has ``lib/`` and no ``include/``."""
    release = folder / "onnxruntime" / "lib"
    release.mkdir(parents=True)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (release / name).symlink_to(libraries()[0])
    configure = [
        "cmake",
        "-S",
        EXAMPLE,
        "-B",
        folder,
        f"-DCMAKE_PREFIX_PATH={release.parent}",
        "-DCMAKE_C_FLAGS=-Werror",
    ]
    for command in (configure, ["cmake", "--build", folder]):
        subprocess.run(command, check=True, capture_output=True)
    shutil.copy(folder / "generate", release)  # the folder is renamed; the library is found beside the program


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lacks = missing()
    if lacks:
        pytest.skip(lacks)
    return made_once("c-example", build, tmp_path_factory) / "onnxruntime" / "lib" / "generate"


def command(program: Path, package: Path, tokens: list[int], lowering: str, *options: object) -> list[str]:
    library = ["-l", LIBRARY] if lowering == "fused" else []
    return [str(part) for part in (program, *library, *options, package / MODEL_FILES[lowering], *tokens)]


def run(program: Path, package: Path, tokens: list[int], lowering: str, *options: object) -> list[int]:
    environment = {"LD_LIBRARY_PATH": str(program.parent)}
    arguments = command(program, package, tokens, lowering, *options)
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")  # nothing is logged
    return [int(line) for line in done.stdout.split()]


def refusal(program: Path, package: Path, tokens: list[int], *options: object) -> str:
    environment = {"LD_LIBRARY_PATH": str(program.parent)}
    arguments = command(program, package, tokens, "stock", *options)
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


@pytest.mark.parametrize("lowering", GRAPHS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_tokens_are_those_of_the_python_runtime(
    prompt: str, lowering: str, program: Path, shipped_package: Path
) -> None:
    pieces = load(shipped_package, lowering=lowering).generate(PROMPTS[prompt], max_new_tokens=48)
    expected = [token.id for piece in pieces for token in piece.tokens]
    assert len(expected) == 48
    assert run(program, shipped_package, PROMPTS[prompt], lowering, "-n", 48) == expected


@pytest.mark.parametrize("lowering", GRAPHS)
def test_a_restored_state_continues_exactly_on_either_graph(
    lowering: str, program: Path, shipped_package: Path, tmp_path: Path
) -> None:
    prompt, file = PROMPTS["short"], tmp_path / "state"
    whole = run(program, shipped_package, prompt, "stock", "-n", 30)
    first = run(program, shipped_package, prompt, "stock", "-n", 11, "-s", file)
    assert first + run(program, shipped_package, [], lowering, "-n", 19, "-r", file) == whole


def test_it_ends_at_an_end_of_text_token(program: Path, shipped_package: Path) -> None:
    whole = run(program, shipped_package, PROMPTS["short"], "stock", "-n", 10)
    ended = run(program, shipped_package, PROMPTS["short"], "stock", "-n", 10, "-e", whole[4])
    assert ended == whole[: whole.index(whole[4])]


def test_what_it_cannot_read_is_refused(program: Path, package: Path, shipped_package: Path, tmp_path: Path) -> None:
    file, prompt = tmp_path / "state", PROMPTS["short"]
    assert "4096 is not a token" in refusal(program, shipped_package, [4096])
    assert "There are no tokens to read" in refusal(program, shipped_package, [])
    run(program, shipped_package, prompt, "stock", "-n", 1, "-s", file)
    assert "not a state of this model" in refusal(program, package, [], "-r", file)
    file.write_bytes(file.read_bytes()[:-1])
    assert "cut off" in refusal(program, shipped_package, [], "-r", file)
    file.write_bytes(b"something else")
    assert "not a state of this model" in refusal(program, shipped_package, [], "-r", file)


@pytest.fixture(scope="module")
def small_package(liger_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that valgrind opens sooner than the shipped model's."""
    package = tmp_path_factory.mktemp("small") / "package"
    convert(liger_checkpoint, package, lowering="fused")
    return package


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind")
@pytest.mark.parametrize("lowering", GRAPHS)
def test_it_touches_no_foreign_memory_and_leaks_none(
    lowering: str, program: Path, small_package: Path, tmp_path: Path
) -> None:
    file = tmp_path / "state"
    run(program, small_package, [3, 4, 5], lowering, "-n", 2, "-s", file)
    tool = ["valgrind", "--quiet", "--leak-check=full", "--error-exitcode=9", f"--suppressions={EXAMPLE}/valgrind.supp"]
    arguments = command(program, small_package, [5, 6], lowering, "-n", 2, "-r", file, "-s", tmp_path / "next")
    environment = {"LD_LIBRARY_PATH": str(program.parent)}
    done = subprocess.run(
        [*tool, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=500
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_declared_function_is_used() -> None:
    header = (EXAMPLE / "declarations" / "onnxruntime_c_api.h").read_text()
    declared = re.findall(r"\(\*(\w+)\)\(.*?\);", header, re.DOTALL)
    assert "Run" in declared
    used = (EXAMPLE / "generate.c").read_text()
    assert {name for name in declared if f"{name}(" not in used} == set()
