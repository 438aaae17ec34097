"""ASE databases (SQLite ``.db`` files); ASE defines their units as eV and Å."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import ase.db
import numpy as np

from ponita_ff.data.frames import DataError, Frame, FrameSequence, require_units, stress_matrix
from ponita_ff.units import EV_ANGSTROM, Units

__all__ = ["AseDbFrames"]


class AseDbFrames(FrameSequence):
    """Rows of an ASE database in the order of their ids, each read when it is accessed.

    Args:
        path: The file; it is opened read-only.
        units: Optional; units other than eV and Å contradict the format and are an error.
        read_stress: Whether to read stresses.

    Raises:
        DataError: Not an ASE database; a row without energy or forces (found at once, for all rows); a stress in some
            rows only; contradictory units.
    """

    def __init__(self, path: str | Path, *, units: Units | None = None, read_stress: bool = True) -> None:
        self.path = Path(path)
        require_units(self.path, units, EV_ANGSTROM, "an ASE database is in")
        self._ids, self._has_stress = self._scan()
        if not read_stress:
            self._has_stress = False
        elif self._has_stress is None:
            raise DataError(
                f"{self.path}: some rows have a stress and some have none; "
                "complete the file or read it without stresses (read_stress=False)"
            )
        self._db: Any = None

    def _scan(self) -> tuple[tuple[int, ...], bool | None]:
        """Ids of all rows, and whether all (True), none (False) or some (None) have a stress.

        ASE writes its tables into any SQLite file that it opens. So the file is checked through a read-only
        connection first.
        """
        uri = f"{self.path.resolve().as_uri()}?mode=ro"
        try:
            connection = sqlite3.connect(uri, uri=True)
            try:
                rows = connection.execute(
                    "SELECT id, energy IS NOT NULL, forces IS NOT NULL, stress IS NOT NULL FROM systems ORDER BY id"
                ).fetchall()
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise DataError(f"{self.path}: not an ASE database: {error}") from error
        for number, (row_id, energy, forces, _) in enumerate(rows):
            if not (energy and forces):
                missing = "energy" if not energy else "forces"
                raise DataError(f"{self.path}, frame {number} (id {row_id}): no {missing}")
        stresses = {bool(row[3]) for row in rows}
        has_stress = None if len(stresses) == 2 else stresses == {True}
        return tuple(row[0] for row in rows), has_stress

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_db": None}

    def __len__(self) -> int:
        return len(self._ids)

    def _frame(self, index: int) -> Frame:
        if self._db is None:
            # ASE opens a new SQLite connection for every query, so that this is safe after a fork.
            self._db = ase.db.connect(self.path, type="db", use_lock_file=False)
        where = f"{self.path.name}, frame {index} (id {self._ids[index]})"
        try:
            row = self._db.get(id=self._ids[index])
            labels = (row.energy, row.forces, row.stress if self._has_stress else None)
        except (KeyError, AttributeError, ValueError, OSError, sqlite3.Error) as error:
            raise DataError(f"{where}: the row cannot be read: {error}") from error
        energy, forces, stress = labels
        periodic = bool(np.any(row.pbc))
        return Frame(
            numbers=row.numbers,
            positions=row.positions,
            cell=row.cell if periodic else np.zeros((3, 3)),
            pbc=row.pbc,
            energy=energy,
            forces=forces,
            stress=None if stress is None else stress_matrix(stress, where),
            source=where,
        )
