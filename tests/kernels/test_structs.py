"""Structures of Python against their declarations in the C++ sources, name by name."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from ponita_ff.kernels import structs
from ponita_ff.kernels.build import LIBRARIES
from ponita_ff.kernels.structs import STRUCTS

FOLDER = Path(structs.__file__).parent

ALL = {struct.__name__: struct for kinds in STRUCTS.values() for struct in kinds}


def declared_fields(name: str) -> list[str]:
    """Names of the fields in the declaration of a structure, in order."""
    sources = [path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.[ch]*"))]
    bodies = [body for source in sources for body in re.findall(rf"\nstruct {name} {{\n(.*?)\n}};", source, re.S)]
    (body,) = bodies
    code = re.sub(r"//[^\n]*", "", body)
    return [
        re.split(r"[\s*]+", part.strip())[-1] for line in code.split(";") for part in line.split(",") if part.strip()
    ]


@pytest.mark.parametrize("name", ALL)
def test_same_fields_in_the_same_order(name: str) -> None:
    assert [field[0] for field in ALL[name]._fields_] == declared_fields(name)


def test_every_library_is_listed() -> None:
    assert set(STRUCTS) == set(LIBRARIES)


@pytest.mark.parametrize("name", ALL)
def test_no_padding(name: str) -> None:
    sizes = [ctypes.sizeof(field[1]) for field in ALL[name]._fields_]
    assert all(size % 8 == 0 for size in sizes)
    assert ctypes.sizeof(ALL[name]) == sum(sizes)
