"""ASE databases (SQLite ``.db`` files); ASE defines their units as eV and Å."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from ponita_ff.data.frames import DataError, Frame, FrameSequence, require_units, stress_matrix
from ponita_ff.units import EV_ANGSTROM, Units

__all__ = ["AseDbFrames"]

#: What ASE stores in the columns of a row: SQLite's type, and the size in bytes for a number of atoms; None: any.
#: SQLite itself takes anything in any column, and ASE anything that it finds.
_COLUMNS: dict[str, tuple[tuple[str, ...], Callable[[int], tuple[int, ...]] | None]] = {
    "numbers": (("blob",), lambda n: (4 * n,)),
    "positions": (("blob",), lambda n: (24 * n,)),
    "cell": (("blob",), lambda n: (72,)),
    "pbc": (("integer",), None),
    "energy": (("real", "integer"), None),
    "forces": (("blob",), lambda n: (24 * n,)),
    "stress": (("blob",), lambda n: (48, 72)),
}


class AseDbFrames(FrameSequence):
    """Rows of an ASE database in the order of their ids, each read when it is accessed.

    Args:
        path: The file; it is opened read-only.
        units: Optional; units other than eV and Å contradict the format and are an error.
        read_stress: Whether to read stresses.

    Raises:
        DataError: Not an ASE database; a row without energy, forces, cell or pbc, or with something else in these
            columns (found at once, for all rows); a stress in some rows only; contradictory units.
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
        ids: list[int] = []
        stresses: set[bool] = set()
        try:
            for row in self._stored_columns():
                where = f"{self.path}, frame {len(ids)} (id {row['id']})"
                ids.append(row["id"])
                stresses.add(row["stress"] != "null")
                _check_columns(row, where)
        except (sqlite3.Error, OverflowError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path}: not an ASE database, or damaged: {error}") from error
        return tuple(ids), None if len(stresses) == 2 else stresses == {True}

    def _stored_columns(self) -> Iterator[Mapping[str, Any]]:
        """For each row its id, number of atoms and pbc, and of each column the type, and the size in bytes."""
        types = ", ".join(f"typeof({name}) AS {name}, length({name}) AS {name}_size" for name in _COLUMNS)
        with closing(sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            yield from connection.execute(
                f"SELECT id, typeof(natoms) AS natoms_type, natoms, pbc AS directions, {types} FROM systems ORDER BY id"
            )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_db": None}

    def __len__(self) -> int:
        return len(self._ids)

    def _frame(self, index: int) -> Frame:
        if self._db is None:
            # ASE opens a new SQLite connection for every query, so that this is safe after a fork.
            import ase.db  # takes a second

            self._db = ase.db.connect(self.path, type="db", use_lock_file=False)
        where = f"{self.path.name}, frame {index} (id {self._ids[index]})"
        try:
            row = self._db.get(id=self._ids[index])
            values = {name: row[name] for name in ("numbers", "positions", "pbc", "energy", "forces")}
            cell, stress = row.cell, row.stress if self._has_stress else None
        except Exception as error:  # ASE raises many types of errors for a damaged row
            raise DataError(f"{where}: the row cannot be read ({type(error).__name__}: {error})") from error
        return Frame.in_units(
            EV_ANGSTROM,
            cell=cell if values["pbc"].any() else np.zeros((3, 3)),
            stress=None if stress is None else stress_matrix(stress, where),
            source=where,
            **values,
        )


def _check_columns(row: Mapping[str, Any], where: str) -> None:
    """Check types and sizes of the columns of a row."""
    n_atoms = row["natoms"]
    if row["natoms_type"] != "integer" or n_atoms < 1:
        raise DataError(f"{where}: the number of atoms is {n_atoms!r:.80}")
    for name, (kinds, sizes) in _COLUMNS.items():
        kind, size = row[name], row[f"{name}_size"]
        if kind == "null":
            if name == "stress":
                continue
            raise DataError(f"{where}: no {name}")
        if kind not in kinds:
            raise DataError(f"{where}: column {name} holds {kind}, expected {' or '.join(kinds)}")
        if sizes is not None and size not in sizes(n_atoms):
            raise DataError(f"{where}: {name} has {size} bytes, expected {sizes(n_atoms)[0]} for {n_atoms} atoms")
    if not 0 <= row["directions"] <= 7:
        raise DataError(f"{where}: pbc is {row['directions']}, expected 0 to 7")
