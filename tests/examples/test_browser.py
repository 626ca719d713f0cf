"""The page in ``examples/browser``, in Chromium: it continues a text as the runtime in Python does."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from liger_export.convert import convert
from liger_export.linearize import linearize
from liger_export.precision import Precision
from liger_export.runtime import load
from tests.browser import CHROMIUM, Page, opened
from tests.once import made_once
from tests.runtime.chats import write_chat_package

EXAMPLES = Path(__file__).parents[2] / "examples"
UNREACHABLE = re.compile(
    r"npm (?:error|ERR!) (?:code|errno) (?:E(?:NOTFOUND|AI_AGAIN|CONN\w+|TIMEDOUT)|EAI_AGAIN|E403)"
)
PROMPT = "def read_lines(path"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed"),
]


def install(folder: Path) -> None:
    """Copy the page into an empty folder and install what it needs; skip the test if npm's registry is out of reach."""
    shutil.copytree(EXAMPLES / "browser", folder, ignore=shutil.ignore_patterns("node_modules"), dirs_exist_ok=True)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if UNREACHABLE.search(result.stderr):
        pytest.skip("npm's registry cannot be reached")
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once("browser-example", install, tmp_path_factory)


@pytest.fixture(scope="module")
def int4_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        linearize(EXAMPLES / "pycode-7m" / "base", folder / "liger")
        adapters = (EXAMPLES / "pycode-7m" / "adapter",)
        precision = Precision(weights="int4")
        convert(folder / "liger", folder / "package", adapters=adapters, precision=precision, targets=("web",))

    return made_once("pycode-7m-web", make, tmp_path_factory) / "package"


@contextmanager
def page_of(site: Path, package: Path, profile: Path, query: str = "", flags: tuple[str, ...] = ()) -> Iterator[Page]:
    """Serve the page with a package, open it, and wait until the model is ready."""
    assert CHROMIUM is not None
    command = ["node", str(site / "server.mjs"), str(package), "0"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
        opened(CHROMIUM, profile, *flags) as page,
    ):
        try:
            assert server.stdout is not None
            page.open(f"{server.stdout.readline().strip()}/{query}")
            page.wait_for("!document.getElementById('text').disabled || document.getElementById('progress').hidden")
            if "no WebGPU" in (reason := text_of(page, "#stage")):
                pytest.skip(f"{CHROMIUM}: {reason}")
            assert not page.run("document.getElementById('text').disabled"), text_of(page, "#stage")
            yield page
        finally:
            server.kill()


def text_of(page: Page, element: str) -> str:
    return str(page.run(f"document.querySelector('{element}').textContent"))


def send(page: Page, text: str, tokens: int) -> None:
    """Continue a text, and wait for the end."""
    page.run(f"document.getElementById('limit').value = {tokens}")
    page.type(text)
    page.wait_for("document.getElementById('stop').hidden && document.getElementById('text').value === ''")


def test_64_tokens_equal_pythons_and_memory_does_not_grow(site: Path, int4_package: Path, tmp_path: Path) -> None:
    expected = PROMPT + "".join(load(int4_package).generate(PROMPT, max_new_tokens=64))
    with page_of(site, int4_package, tmp_path / "profile") as page:
        assert "int4 wasm graph on WebAssembly SIMD" in text_of(page, "#runs")
        assert page.run("crossOriginIsolated"), "without it there are no threads"
        send(page, PROMPT, 64)
        assert text_of(page, ".text") == expected
        assert re.fullmatch(r"[\d.]+ tokens/s", text_of(page, "#speed"))
        wasm, heap = text_of(page, "#memory"), page.heap_bytes()
        page.save_picture(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 5000
        send(page, PROMPT, 256)
        assert text_of(page, "#state") == "328 kB at any length"
        assert text_of(page, "#memory") == wasm
        assert page.heap_bytes() - heap < 100_000


def test_a_second_visit_takes_the_package_from_the_cache(site: Path, int4_package: Path, tmp_path: Path) -> None:
    with page_of(site, int4_package, tmp_path / "profile") as page:
        page.open(page.run("location.href"))
        page.wait_for("!document.getElementById('text').disabled")
        fetched = page.run("performance.getEntriesByType('resource').map((entry) => entry.name).join('\\n')")
        assert "package/manifest.json" in fetched
        assert "model.onnx.data" not in fetched
        send(page, PROMPT, 8)
        assert text_of(page, ".text") == PROMPT + "".join(load(int4_package).generate(PROMPT, max_new_tokens=8))


def test_webgpu_continues_as_python_does(site: Path, int4_package: Path, tmp_path: Path) -> None:
    flags = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan")
    with page_of(site, int4_package, tmp_path / "profile", "?device=webgpu", flags) as page:
        assert "int4 webgpu graph on WebGPU" in text_of(page, "#runs")
        send(page, PROMPT, 4)  # in software: seconds per token
        assert text_of(page, ".text") == PROMPT + "".join(load(int4_package).generate(PROMPT, max_new_tokens=4))


def test_a_conversation_equals_pythons(site: Path, tmp_path: Path) -> None:
    package = write_chat_package(tmp_path, "chatml")
    session = load(package)
    messages = []
    with page_of(site, package, tmp_path / "profile") as page:
        assert "fp32 stock graph" in text_of(page, "#runs"), "the package has no other graph"
        for turn, text in enumerate(["Hello", "Again"]):
            messages.append({"role": "user", "content": text})
            answer = "".join(session.chat(messages, max_new_tokens=16))
            messages.append({"role": "assistant", "content": answer})
            send(page, text, 16)
            assert page.run(f"document.querySelectorAll('.assistant')[{turn}].textContent") == answer
