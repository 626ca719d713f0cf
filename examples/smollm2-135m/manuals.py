"""Collect English manuals from documentation packages of Debian 12: text to train on, and other books to measure on.

    python examples/smollm2-135m/manuals.py TEXTS

Downloads the packages with apt-get, unpacks them, and reads their plain text, reStructuredText and HTML. Each page is
one document; lines that a book repeats on every tenth page, duplicates, and pages of less than 500 characters are
omitted. No book is in both files.

Output:

    TEXTS/manuals.jsonl            pages of the books in TRAINING, in the order of their hash
    TEXTS/manuals-heldout.jsonl    pages of the books in HELD_OUT
"""

import argparse
import hashlib
import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path

TRAINING = {
    "python3.11-doc": "usr/share/doc/python3.11/html/_sources",
    "git-doc": "usr/share/doc/git/html",
    "cmake-doc": "usr/share/doc/cmake-data/html/_sources",
    "sqlite3-doc": "usr/share/doc/sqlite3",
    "apache2-doc": "usr/share/doc/apache2-doc/manual/en",
    "debian-handbook": "usr/share/doc/debian-handbook/html/en-US",
    "developers-reference": "usr/share/developers-reference/_sources",
    "debian-reference-en": "usr/share/debian-reference",
}
HELD_OUT = {
    "postgresql-doc-15": "usr/share/doc/postgresql-doc-15/html",
    "debian-policy": "usr/share/doc/debian-policy",
    "postfix-doc": "usr/share/doc/postfix/html",
}
SUFFIXES = {".txt", ".html"}
OTHER_LANGUAGE = re.compile(r"\.(?!en\b)[a-z]{2}(-[a-z]{2})?\.(html|txt)$|_(ja|de|fr|es|it|pt|zh|ko|ru)\b")
LEAST_CHARACTERS = 500
MOST_REPEATED = 0.1  # of a book's pages; navigation and notices are on more
MOST_CHARACTERS = 40_000  # a longer page is cut at the end of a paragraph
SKIPPED = {"head", "script", "style", "nav", "header", "footer", "title"}
BLOCKS = {"p", "div", "li", "tr", "h1", "h2", "h3", "h4", "h5", "pre", "dt", "dd", "br", "table", "ul", "ol", "dl"}


class PageText(HTMLParser):
    """The text of an HTML page, one line per block, without navigation."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._skipped = 0
        self._preformatted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a block, or a part to skip."""
        self._skipped += tag in SKIPPED
        self._preformatted += tag == "pre"
        if tag in BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        """End a block, or a part to skip."""
        self._skipped -= tag in SKIPPED and self._skipped > 0
        self._preformatted -= tag == "pre" and self._preformatted > 0
        if tag in BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        """Keep text, with white space as a browser shows it."""
        if not self._skipped:
            self.parts.append(data if self._preformatted else re.sub(r"\s+", " ", data))


def page_text(path: Path) -> str:
    """Return a page's text."""
    text = path.read_text(encoding="utf-8", errors="strict")
    if path.suffix == ".html":
        parser = PageText()
        parser.feed(text)
        text = "".join(parser.parts)
    return re.sub(r"[ \t]+\n", "\n", text)


def shortened(text: str) -> str:
    """Return a text without runs of empty lines, cut to ``MOST_CHARACTERS``."""
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    return text if len(text) <= MOST_CHARACTERS else text[: text.rfind("\n\n", 0, MOST_CHARACTERS)]


def pages(packages: dict[str, str], downloads: Path) -> Iterator[dict[str, str]]:
    """Yield the pages of packages, without duplicates."""
    seen: set[str] = set()
    for package, folder in packages.items():
        root = unpacked(package, downloads)
        texts = dict(book(root / folder))
        lines = Counter(line for text in texts.values() for line in set(text.split("\n")) if line.strip())
        repeated = {line for line, count in lines.items() if count > max(2, MOST_REPEATED * len(texts))}
        for path, text in texts.items():
            kept = shortened("\n".join(line for line in text.split("\n") if line not in repeated))
            if len(kept) >= LEAST_CHARACTERS and kept not in seen:
                seen.add(kept)
                yield {"path": f"{package}/{path.relative_to(root)}", "text": kept}


def book(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield path and text of a book's pages that are UTF-8 and not marked as another language."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in SUFFIXES and path.is_file() and not OTHER_LANGUAGE.search(path.name):
            with suppress(UnicodeDecodeError):
                yield path, page_text(path)


def unpacked(package: str, downloads: Path) -> Path:
    """Download a package and unpack it, unless that was done before. Returns the directory of its files."""
    root = downloads / package
    if not root.is_dir():
        downloads.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-qq", package], cwd=downloads, check=True)
        (archive,) = downloads.glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, root], check=True)
    return root


def write(path: Path, found: Iterator[dict[str, str]]) -> None:
    """Write pages in the order of their hash, which mixes the books."""
    ordered = sorted(found, key=lambda page: hashlib.sha256(page["path"].encode()).digest())
    path.write_text("".join(json.dumps(page) + "\n" for page in ordered), encoding="utf-8")
    print(f"{path}: {len(ordered):,} pages, {sum(len(page['text']) for page in ordered):,} characters")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, metavar="TEXTS", help="directory to write")
    texts = parser.parse_args().texts
    texts.mkdir(parents=True, exist_ok=True)
    write(texts / "manuals.jsonl", pages(TRAINING, texts / "packages"))
    write(texts / "manuals-heldout.jsonl", pages(HELD_OUT, texts / "packages"))


if __name__ == "__main__":
    main()
