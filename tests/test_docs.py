"""The documentation: links lead somewhere, and the architecture page describes this tree."""

import re
from pathlib import Path

import pytest

from tests.test_imports import EXPORTER, RUNTIME

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/**/*.md"))]
PAGES += sorted(ROOT.glob("examples/*/README.md")) + sorted(ROOT.glob("benchmarks/**/*.md"))
ARCHITECTURE = ROOT / "docs" / "contributing" / "architecture.md"
FOLDERS = ("benchmarks/", "docs/", "examples/", "kernels/", "liger_export/", "plugins/", "tests/")
FILE = re.compile(r"[\w/-]+/\w+\.(py|cpp|h)$")  # such as export/fuse.py, in liger_export


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_named_in_the_text_exist(page: Path) -> None:
    names = {
        name for name in re.findall(r"`([\w./-]+)`", page.read_text()) if name.startswith(FOLDERS) or FILE.match(name)
    }
    missing = {name for name in names if not any((folder / name).exists() for folder in (ROOT, ROOT / "liger_export"))}
    assert missing == set()


def test_the_import_order_is_drawn_as_it_is_checked() -> None:
    text = ARCHITECTURE.read_text()
    drawn = re.findall(r"[\w]+", text[text.index("    runtime    errors") : text.index("`kernels/`, `plugins/` and")])
    assert [name for name in drawn if name not in ("runtime", "exporter")] == [
        name for name in [*RUNTIME, *EXPORTER] if name not in ("runtime", "__main__")
    ]


def test_every_part_is_described() -> None:
    described = re.findall(r"^\| `(\w+)(?:\.py|/)` \|", ARCHITECTURE.read_text(), re.MULTILINE)
    assert described == [name for name in [*RUNTIME, *EXPORTER] if name != "__main__"]
