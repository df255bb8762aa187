"""A check that built pages fetch no script, style, font or image from other hosts."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

#: What a browser fetches by itself: tags, and their attributes that hold an address.
_FETCHED = {
    "script": ("src",), "link": ("href",), "img": ("src", "srcset"), "source": ("src", "srcset"), "iframe": ("src",),
    "video": ("src", "poster"), "audio": ("src",), "object": ("data",), "embed": ("src",), "use": ("href",),
}  # fmt: skip
#: Links to other pages of the same site, which are not fetched.
_NOT_FETCHED = {"canonical", "next", "prev", "index", "search", "alternate", "author"}
_ELSEWHERE = re.compile(r"\s*(?:https?:)?//", re.I)
_IN_STYLE = re.compile(r"""(?:url\(\s*['"]?|@import\s+['"])\s*((?:https?:)?//[^'")\s]+)""", re.I)
_IN_SCRIPT = re.compile(r"""(?:import\s*\(?|from|fetch\(|importScripts\()\s*['"]((?:https?:)?//[^'"]+)""", re.I)


class _Requests(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self._inside = tag
        if tag == "link" and given.get("rel", "").lower() in _NOT_FETCHED:
            return
        for name in _FETCHED.get(tag, ()):
            self.found += [part.strip() for part in given.get(name, "").split(",") if _ELSEWHERE.match(part)]
        self.found += _IN_STYLE.findall(given.get("style", ""))

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.found += _IN_STYLE.findall(data)
        elif self._inside == "script":
            self.found += _IN_SCRIPT.findall(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""


def requests_of(text: str, suffix: str) -> list[str]:
    """Return the addresses on other hosts that a browser would fetch for a file of this suffix."""
    if suffix == ".css":
        return _IN_STYLE.findall(text)
    if suffix == ".js":
        return _IN_SCRIPT.findall(text)
    page = _Requests()
    page.feed(text)
    return page.found


def requests_under(folder: Path) -> list[str]:
    """Return ``FILE: ADDRESS`` for every such address in the pages, styles and scripts of a folder."""
    files = sorted(f for f in folder.rglob("*") if f.suffix in (".html", ".css", ".js"))
    return [f"{f.relative_to(folder)}: {url}" for f in files for url in requests_of(f.read_text("utf-8"), f.suffix)]


def _check(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html" and (found := requests_under(Path(app.outdir))):
        raise ExtensionError(f"{len(found)} requests leave the pages: " + "; ".join(found[:10]))


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("build-finished", _check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
