"""A calculator for the tests of exploration, where processes that label can import it."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT


class CountedEMT(EMT):
    """EMT that leaves a file in ``folder`` for every structure that it calculates."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder)

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        name = hashlib.sha256(atoms.positions.tobytes()).hexdigest()[:16]
        (self.folder / f"{name}-{uuid4().hex}").touch()


def calls(folder: Path) -> Counter[str]:
    """How often each structure was calculated."""
    return Counter(path.name.partition("-")[0] for path in folder.iterdir())
