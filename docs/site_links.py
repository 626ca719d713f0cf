"""A MkDocs hook: pages link to files of the repository, which the site does not contain, so it names them instead."""

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(((?:\.\./)+[^)\s#]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace links that leave docs/ by the file's name. MkDocs checks all others."""
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def name_file(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        if target.startswith("docs/"):
            return link[0]
        if not (ROOT / target).exists():
            raise FileNotFoundError(f"{page.file.src_uri} links to {target}, which does not exist.")
        return f"{link[1]} (`{target}`)"

    return LINK.sub(name_file, markdown)
