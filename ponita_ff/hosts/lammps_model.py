"""What the LAMMPS plugin (pair_ponita.cpp) runs at ``pair_coeff``, once: a potential's image on standard output.

    python -m ponita_ff.hosts.lammps_model VECTOR_BYTES DTYPE ROTATIONS POTENTIAL ELEMENT …

All that reading a potential involves, hashes, older versions, the comparison of the native engine with torch, stays in
one place that way. Instead of an image there may be a sentence that says what is wrong.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from ase.data import atomic_numbers, chemical_symbols

from ponita_ff.backends.native.image import potential_image
from ponita_ff.kernels.build import KernelError
from ponita_ff.potential.device import choose_dtype
from ponita_ff.potential.file import load_potential
from ponita_ff.potential.potential import Potential

__all__ = ["image_for_lammps", "load_member", "species_of_types"]


def image_for_lammps(
    potential: str, elements: Sequence[str], vector_bytes: int, dtype: str = "", rotations: int = 0
) -> bytes:
    """The image of a potential for a LAMMPS input.

    Args:
        potential: A shipped name or a file.
        elements: Of each of LAMMPS' atom types.
        vector_bytes: As for :func:`ponita_ff.backends.native.image.potential_image`.
        dtype: ``"float32"``, ``"float64"``, or empty for the file's own.
        rotations: To average over; 0 for the file's own.

    Raises:
        FileNotFoundError, PotentialFileError, ValueError: As :func:`load_member` and :func:`species_of_types`.
        KernelError: Where the native engine does not implement the network.
    """
    loaded = load_member(potential)
    if rotations:
        loaded.average_rotations(rotations)
    loaded.to(dtype=choose_dtype(dtype or None) or loaded.dtype)
    return potential_image(loaded, vector_bytes, species_of_types(loaded, elements))


def load_member(potential: str) -> Potential:
    """One potential: committees have no place in LAMMPS.

    Raises:
        FileNotFoundError, PotentialFileError: As :func:`ponita_ff.potential.file.load_potential`.
        ValueError: For a committee.
    """
    if "," in potential and not Path(potential).exists():
        raise ValueError(f"{potential} is a committee, which LAMMPS cannot run: name one potential")
    return load_potential(potential)


def species_of_types(potential: Potential, elements: Sequence[str]) -> list[int]:
    """Index among the potential's species of each atom type.

    Raises:
        ValueError: Naming an atom type that has no element, or one that the potential does not know.
    """
    known = ", ".join(chemical_symbols[z] for z in potential.species)
    species = []
    for number, symbol in enumerate(elements, start=1):
        z = atomic_numbers.get(symbol, 0)
        if z == 0:
            raise ValueError(f"atom type {number} is given as {symbol!r}, which is no chemical element; known: {known}")
        if z not in potential.species:
            raise ValueError(f"atom type {number} is {symbol}, which this potential does not know; it knows {known}")
        species.append(potential.species.index(z))
    return species


def _main(arguments: Sequence[str]) -> None:
    # Whatever libraries print must not get between: it goes where errors go.
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        try:
            vector_bytes, dtype, rotations, potential, *elements = arguments
            answer = image_for_lammps(potential, elements, int(vector_bytes), dtype, int(rotations))
        except (ValueError, OSError, KernelError) as error:
            answer = str(error).encode()
        except Exception as error:
            traceback.print_exc()
            answer = f"this is a bug in ponita_ff, please report it: {type(error).__name__}: {error}".encode()
        out.write(answer)


if __name__ == "__main__":
    _main(sys.argv[1:])
