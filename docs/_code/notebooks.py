"""Notebooks as pages: their text and code; outputs are not kept in the repository."""

from __future__ import annotations

import json
from pathlib import Path

from repository import ROOT

_FOLDER = ROOT / "md_examples" / "notebooks"


def pages() -> dict[str, str]:
    """Path on the site of every notebook, by its path in the repository."""
    return {str(path.relative_to(ROOT)): f"notebooks/{path.stem}.md" for path in sorted(_FOLDER.glob("*.ipynb"))}


def cells(path: Path) -> list[tuple[str, str]]:
    """Kind (``markdown`` or ``code``) and text of each cell."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return [(cell["cell_type"], "".join(cell["source"])) for cell in content["cells"]]


def as_markdown(path: Path) -> str:
    """The notebook as a page."""
    parts = [text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells(path)]
    return "\n\n".join(parts) + "\n"


def listing() -> str:
    """A line for each notebook: its title, linked, and the first sentence below it."""
    lines = []
    for source in pages():
        title, _, rest = cells(ROOT / source)[0][1].partition("\n")
        first = " ".join(rest.strip().split("\n\n")[0].split())
        lines.append(f"- [{title.lstrip('# ')}](../{source}): {first}")
    return "\n".join(lines)
