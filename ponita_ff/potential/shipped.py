"""What is shipped: a table of the potentials that come with the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ase.data import chemical_symbols

from ponita_ff.potential.header import fact, read_header, shipped_potentials

__all__ = ["ShippedPotential", "list_shipped"]

#: Levels of theory of data sets, by the protocol of their split: rMD17 (Christensen and von Lilienfeld 2020,
#: arXiv:2007.09593).
_LEVELS = {"rmd17": "PBE/def2-SVP"}


@dataclass(frozen=True)
class ShippedPotential:
    """One shipped potential.

    Attributes:
        name: That commands and the calculator take.
        elements: Chemical symbols that it knows.
        level: Level of theory of its labels; None where its file does not tell.
        training_frames: Frames that trained it; None where its file does not tell.
        force_mae: Mean absolute error of force components on test frames, eV/Å; None where its file holds none.
        cutoff: Å; None for none.
        num_ori: Orientations in its grid.
        size: Bytes of its file.
        file: Where it lies.
    """

    name: str
    elements: tuple[str, ...]
    level: str | None
    training_frames: int | None
    force_mae: float | None
    cutoff: float | None
    num_ori: int
    size: int
    file: Path


def list_shipped() -> list[ShippedPotential]:
    """The shipped potentials in the order of their names.

    Raises:
        PotentialFileError: For a damaged file.
    """
    return [_describe(name, path) for name, path in sorted(shipped_potentials().items())]


def _describe(name: str, path: Path) -> ShippedPotential:
    header = read_header(path)
    metadata = header["metadata"]
    return ShippedPotential(
        name=name,
        elements=tuple(chemical_symbols[z] for z in header["species"]),
        level=metadata.get("level_of_theory") or _LEVELS.get(fact(metadata, "data", "protocol")),
        # A later stage may have had fewer frames than what it started from.
        training_frames=max(
            [n for n in (fact(metadata, "data", "train"), fact(header, "domain", "frames")) if isinstance(n, int)],
            default=None,
        ),
        force_mae=fact(metadata, "errors", "test", "forces_mae"),
        cutoff=header["cutoff"],
        num_ori=header["network"].get("num_ori", 0),
        size=path.stat().st_size,
        file=path,
    )
