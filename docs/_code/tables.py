"""Tables of Markdown pages: read a cell, or take a whole table."""

from __future__ import annotations

import re
from pathlib import Path


def tables(text: str) -> list[list[list[str]]]:
    """All tables of a page: rows of cells, the head first."""
    found: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not inside:
            found.append([])
            inside = True
        if not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
            found[-1].append(cells)
    return found


def part(text: str, section: str) -> str:
    """What follows the title of a section, to the next title; the whole text if the section is empty.

    Raises:
        KeyError: There is no such section.
    """
    if not section:
        return text
    _, found, after = text.partition(f"# {section}\n")
    if not found:
        raise KeyError(f"no section {section!r}")
    return re.split(r"^#", after, maxsplit=1, flags=re.MULTILINE)[0]


def cell(page: Path, row: str, column: str, section: str = "") -> str:
    """Text of a cell.

    Args:
        page: A Markdown file.
        row: Beginning of the first cell of its row.
        column: Beginning of the head of its column.
        section: Title of the section that the table is in; the whole page if empty.

    Raises:
        KeyError: There is none.
    """
    for head, *rows in tables(part(page.read_text(encoding="utf-8"), section)):
        columns = [index for index, name in enumerate(head) if name.startswith(column)]
        for cells in rows:
            if columns and cells[0].startswith(row):
                return cells[columns[0]]
    raise KeyError(f"{page.name}: no cell {row!r}, {column!r} in {section or 'the page'!r}")


def markdown(table: list[list[str]]) -> str:
    """A table as Markdown."""
    head, *rows = table
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
