"""ARCHITECTURE.md names folders, files, functions and classes: they must exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ponita_ff

PACKAGE = Path(ponita_ff.__file__).parent
PAGE = Path(__file__).parents[1] / "ARCHITECTURE.md"

if not PAGE.is_file():
    pytest.skip("ARCHITECTURE.md is not part of this copy", allow_module_level=True)

TEXT = PAGE.read_text(encoding="utf-8")
FILE = re.compile(r"[\w/]+\.(py|cpp|h)")


def section(title: str) -> str:
    """Text of a section."""
    return TEXT.split(f"\n## {title}")[1].split("\n## ")[0]


def find(file: str, folder: Path) -> Path:
    """A file named from the package's top, from a folder, or among the kernels."""
    places = [PACKAGE / file, folder / file, PACKAGE / "kernels" / file]
    found = next((path for path in places if path.is_file()), None)
    assert found is not None, f"ARCHITECTURE.md names {file}, which does not exist"
    return found


def equations() -> list[tuple[Path, str]]:
    """Every file and name of the table of equations; a name belongs to the file before it, or to the column's."""
    header, _, *rows = [line for line in section("Each equation").splitlines() if line.startswith("|")]
    columns = [FILE.search(cell) for cell in re.split(r"(?<!\\)\|", header)[1:-1]]
    found = []
    for row in rows:
        for column, cell in zip(columns, re.split(r"(?<!\\)\|", row)[1:-1], strict=True):
            path = None if column is None else find(column[0], PACKAGE)
            for code in re.findall(r"`([^`]+)`", cell):
                if FILE.fullmatch(code):
                    path = find(code, PACKAGE)
                else:
                    assert path is not None, f"no file for {code}"
                    found.append((path, code))
    return found


def test_every_folder_has_its_row() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"cli"}
    rows = [line for line in section("Folders").splitlines() if line.startswith("| ")]
    assert folders <= {name for row in rows for name in re.findall(r"`(\w+)/`", row.split("|")[1])}


@pytest.mark.parametrize(("path", "name"), equations(), ids=str)
def test_equations_are_where_the_table_says(path: Path, name: str) -> None:
    text = path.read_text(encoding="utf-8")
    for part in name.split("."):
        assert re.search(rf"\b{part}\b", text), f"{path.name} has no {part}"


def test_every_file_exists() -> None:
    for line in TEXT.splitlines():
        folder = re.match(r"\| `(\w+)/`", line)
        for file in re.finditer(r"`((?:[\w]+/)*\w+\.(?:py|cpp|h))`", line):
            if not file[1].startswith(("tests/", "docs/")):
                find(file[1], PACKAGE / folder[1] if folder else PACKAGE / "backends")
