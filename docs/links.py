"""A hook of MkDocs: links from docs/ to other files of the repository work on the site, too.

On GitHub `../mnist_ray/pipeline.py` is a link to that file. The site has no such page, so each file that a page links
to is copied into it, as text that a browser shows.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()\.\./([^)#\s]+)(?:#[^)\s]*)?(?=\))")


def on_files(files: Files, *, config: Any) -> Files:
    """Add what the pages link to outside docs/. A file that does not exist is left to MkDocs to complain about."""
    pages = [file.content_string for file in files.documentation_pages()]
    for path in sorted({found for page in pages for found in LINK.findall(page)}):
        if (ROOT / path).is_file():
            files.append(File.generated(config, _copy(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Point links out of docs/ at the copies."""

    def moved(found: re.Match[str]) -> str:
        copy = _copy(found[1])
        if files.get_file_from_path(copy) is None:
            return found[0]
        return posixpath.relpath(copy, posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(moved, markdown)


def _copy(path: str) -> str:
    return f"source/{path}.txt"
