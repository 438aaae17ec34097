"""Pages and pictures of the repository that the site includes, and links to them.

Pages link to files as they lie in the repository, so that they can be read there, too. On the site such a link leads to
the page made of the file; where there is none, its text stays without a link.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]\[]*(?:\[[^\]]*\][^\]\[]*)?)\]\((?P<target>[^)\s]+)\)")
_FENCE = re.compile(r"^(```|~~~).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)


def included() -> dict[str, str]:
    """Path on the site of every included file, by its path in the repository."""
    found = {"ARCHITECTURE.md": "architecture.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
    found |= {"md_examples/README.md": "examples.md", "md_examples/data/README.md": "examples-data.md"}
    for card in sorted(ROOT.glob("potentials/*/README.md")):
        name = card.parent.name
        found[f"potentials/{name}/README.md"] = f"potentials/{name}.md"
        for picture in sorted(card.parent.glob("*.png")):
            found[f"potentials/{name}/{picture.name}"] = f"potentials/{name}/{picture.name}"
    for pattern in ("benchmarks/results/*.md", "benchmarks/results/*.png"):
        for path in sorted(ROOT.glob(pattern)):
            found[f"benchmarks/results/{path.name}"] = f"benchmarks/{path.name}"
    found["benchmarks/recipe.md"] = "benchmarks/recipe.md"
    for page in sorted(ROOT.glob("benchmarks/*/README.md")):
        found[f"benchmarks/{page.parent.name}/README.md"] = f"benchmarks/{page.parent.name}.md"
    return found


def site_path(path: str, pages: Mapping[str, str]) -> str | None:
    """Where a file of the repository is on the site; None if it is not there."""
    return pages.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)


def with_site_links(text: str, source: str, pages: Mapping[str, str]) -> str:
    """Markdown whose links to files of the repository lead to their pages.

    Args:
        text: Markdown.
        source: Path of its file in the repository.
        pages: From `included`.
    """
    here = site_path(source, pages)
    assert here is not None

    def replace(match: re.Match[str]) -> str:
        target, hash_sign, anchor = match["target"].partition("#")
        if not target or ":" in target:
            return match[0]
        found = site_path(posixpath.normpath(posixpath.join(posixpath.dirname(source), target)), pages)
        text = _LINK.sub(replace, match["text"])  # a picture may be the text of a link
        if found is None:
            return text
        there = posixpath.relpath(found, posixpath.dirname(here) or ".")
        return f"{match['image']}[{text}]({there}{hash_sign}{anchor})"

    return _outside_code(text, lambda part: _LINK.sub(replace, part))


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    """Change what is not in a block of code."""
    parts, end = [], 0
    for fence in _FENCE.finditer(text):
        parts += [change(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(text[end:])])
