"""The chat page in Chromium."""

from pathlib import Path

import pytest

from liger_export.runtime import load
from tests.browser import CHROMIUM, opened
from tests.serve.servers import Running

RUNNING = "!document.getElementById('stop').hidden"


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_page_answers_stops_and_shows_the_constant_state(
    server: Running, chat_package: Path, tmp_path: Path
) -> None:
    assert CHROMIUM is not None
    with opened(CHROMIUM, tmp_path / "profile") as page:
        page.open(server.address)
        page.wait_for("document.getElementById('model').value === 'tiny'")
        assert "3 kB" in page.run("document.getElementById('state').textContent")
        page.type("Hello")
        page.wait_for("document.querySelector('.assistant')?.textContent.length > 20")
        page.run("document.getElementById('stop').click()")
        page.wait_for(f"!({RUNNING})")
        said = page.run("document.querySelector('.assistant').textContent")
        pieces = load(chat_package).chat([{"role": "user", "content": "Hello"}], max_new_tokens=1000)
        expected = ""
        while len(expected) < len(said):
            expected += next(pieces)
        assert expected.startswith(said)
        assert "tokens/s" in page.run("document.getElementById('speed').textContent")
        assert "3 kB" in page.run("document.getElementById('state').textContent")
        page.save_picture(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 5000
