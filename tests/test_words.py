"""Rules for the words that people read."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("liger_export", "kernels", "plugins", "benchmarks", "examples", "tests")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if not path.is_symlink())
CLAUSE = re.compile(r'^\s*r?"""(What|Whether|That|How|Where|When) ', re.MULTILINE)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_begin_with_a_noun_phrase_or_an_imperative(path: Path) -> None:
    assert CLAUSE.findall(path.read_text(encoding="utf-8")) == []
