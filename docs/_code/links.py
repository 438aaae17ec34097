"""Every link and every file that a built page asks for: is it there, and is nothing fetched from another host?"""

from __future__ import annotations

import posixpath
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: Attributes whose address a browser fetches by itself, by element; ``a href`` only leads somewhere.
_FETCHED = {
    "audio": ("src",),
    "iframe": ("src",),
    "img": ("src", "srcset"),
    "link": ("href",),
    "script": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
}

_CSS_ADDRESS = re.compile(r"(?:url\(|@import\s)\s*[\"']?(?!data:|#)([^\"')\s]+)")


class _Page(HTMLParser):
    """Collects anchors, links and fetched addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "link" and values.get("rel") in ("canonical", "prev", "next"):
            return
        self.fetched += [values[name].split()[0] for name in _FETCHED.get(tag, ()) if name in values]


def problems(site: Path) -> list[str]:
    """A line for each broken link, and each address that would be fetched from another host.

    Args:
        site: Folder of the built site.
    """
    site = site.absolute()
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        # The page of errors is shown at any address: its links are absolute.
        if path.name == "404.html":
            continue
        name = path.relative_to(site)
        found += [f"{name}: fetches {address}" for address in page.fetched if _is_elsewhere(address)]
        for address in [*page.links, *(address for address in page.fetched if not _is_elsewhere(address))]:
            problem = _problem(address, path, site, pages)
            if problem:
                found.append(f"{name}: {address} {problem}")
    for path in sorted(site.rglob("*.css")):
        for address in _CSS_ADDRESS.findall(path.read_text(encoding="utf-8")):
            if _is_elsewhere(address):
                found.append(f"{path.relative_to(site)}: fetches {address}")
    return found


def _is_elsewhere(address: str) -> bool:
    return bool(urlsplit(address).netloc)


def _problem(address: str, path: Path, site: Path, pages: dict[Path, _Page]) -> str | None:
    """What is wrong with a link from a page, in words."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return None
    target = path if not parts.path else Path(posixpath.normpath(path.parent / unquote(parts.path)))
    if not target.is_relative_to(site):
        return "leads out of the site"
    if target.is_dir():
        target = target / "index.html"
    if not target.is_file():
        return "does not exist"
    anchor = unquote(parts.fragment)
    if anchor and target in pages and anchor not in pages[target].anchors and not anchor.startswith(("only-", "__")):
        return f"has no place #{anchor}"
    return None


if __name__ == "__main__":
    lines = problems(Path(sys.argv[1]))
    print("\n".join(lines) or "all links lead somewhere, and nothing is fetched from another host")
    sys.exit(bool(lines))
