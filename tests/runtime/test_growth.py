"""A measurement distinguishes memory that grows with the tokens from a page that is touched late."""

from collections.abc import Callable
from pathlib import Path

import pytest

from liger_export.runtime import Session, growth, load

PAGE = 4096


def measure(monkeypatch: pytest.MonkeyPatch, package: Path, held: Callable[[int, int], int]) -> growth.Growth:
    """Measure a package while ``held`` fakes the process's bytes, given the texts measured and the tokens read."""
    session: Session = load(package, threads=1)
    texts, reset = -1, session.reset  # the first text is read before anything counts

    def begin() -> None:
        nonlocal texts
        texts += 1
        reset()

    monkeypatch.setattr(session, "reset", begin)
    monkeypatch.setattr(growth, "load", lambda *_, **__: session)
    monkeypatch.setattr(growth.gc, "collect", lambda: 0)  # slow beside the objects of all tests
    monkeypatch.setattr(growth, "anonymous_bytes", lambda: held(texts, session.position))
    return growth.measure_growth(package, 200)


def test_memory_that_grows_with_the_tokens_is_found_in_every_text(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measure(monkeypatch, package, lambda texts, position: (200 * texts + position) * PAGE)
    assert (found.bytes_grown, found.texts) == ((200 - 64) * PAGE, growth.MAX_TEXTS)
    assert found.bytes_per_token == pytest.approx(PAGE)


def test_a_page_touched_once_is_not_growth(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = measure(monkeypatch, package, lambda texts, position: PAGE * (texts > 1 or position > 150))
    assert (found.bytes_grown, found.bytes_per_token, found.texts) == (0, 0, 2)
