"""The documentation: links lead somewhere, and the architecture page describes this tree."""

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

import liger_export
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


def test_the_command_reference_is_what_the_commands_print() -> None:
    generated = runpy.run_path(str(ROOT / "docs" / "cli_reference.py"))["page"]()
    assert (ROOT / "docs" / "reference" / "cli.md").read_text() == generated, "python docs/cli_reference.py writes it"


def test_every_page_is_in_the_menu_of_the_site() -> None:
    menu = re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(menu) == sorted(pages)


def test_the_site_names_files_that_it_does_not_contain() -> None:
    rewrite = runpy.run_path(str(ROOT / "docs" / "site_links.py"))["on_page_markdown"]
    page = SimpleNamespace(file=SimpleNamespace(src_uri="results/quality.md"))
    assert rewrite("[card](../../examples/pycode-7m/README.md#a) [b](../index.md)", page=page) == (
        "card (`examples/pycode-7m/README.md`) [b](../index.md)"
    )
    with pytest.raises(FileNotFoundError, match=r"results/quality\.md links to examples/none\.md"):
        rewrite("[none](../../examples/none.md)", page=page)


def test_the_page_on_python_lists_what_the_package_exports() -> None:
    members = re.search(r"members: \[(.+)\]", (ROOT / "docs" / "reference" / "api.md").read_text())
    assert members is not None
    assert sorted(members[1].split(", ")) == sorted(liger_export.__all__)
