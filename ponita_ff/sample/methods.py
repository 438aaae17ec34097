"""Methods that give the forces while frames are made: those of labels, and potentials of this package."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.data import chemical_symbols

from ponita_ff.files import is_file
from ponita_ff.labels.methods import CalculatorMethod, LabelError, Method, find_method
from ponita_ff.labels.results import Labels
from ponita_ff.potential.companions import committee_members
from ponita_ff.potential.header import find_potential, read_header, shipped_potentials
from ponita_ff.provenance import package_versions
from ponita_ff.sample.settings import SampleError

if TYPE_CHECKING:
    from ponita_ff.potential.potential import Potential

__all__ = ["PotentialMethod", "method_for", "method_of"]


@dataclass(frozen=True)
class PotentialMethod(Method):
    """A potential of this package, or a committee of several.

    Attributes:
        files: Of its members.
        hashes: Of their weights, SHA-256.
        species: Atomic numbers that all members know.
    """

    batch_atoms = 2000

    files: tuple[str, ...] = ()
    hashes: tuple[str, ...] = ()
    species: frozenset[int] = frozenset()

    @classmethod
    def read(cls, name: str, members: list[str]) -> PotentialMethod:
        """The method of potentials by name or file.

        Raises:
            FileNotFoundError: There is no such potential.
            PotentialFileError: A file that is none.
        """
        files = [find_potential(member) for member in members]
        headers = [read_header(file) for file in files]
        species = frozenset.intersection(*(frozenset(header["species"]) for header in headers))
        hashes = tuple(str(header["weights_sha256"]) for header in headers)
        return cls(name, files=tuple(str(file.resolve()) for file in files), hashes=hashes, species=species)

    def weights_sha256(self) -> tuple[str, ...]:
        return self.hashes

    def calculator(self) -> BaseCalculator:
        from ponita_ff.calculator import PonitaCalculator  # loads torch

        files = list(self.files)
        return PonitaCalculator(files if len(files) > 1 else files[0], device="cpu")

    def compute(self, frames: Sequence[Atoms]) -> list[Labels]:
        """The mean over the members, all frames in one pass."""
        stress = all(atoms.pbc.all() for atoms in frames)
        members = [_loaded(*member) for member in zip(self.files, self.hashes, strict=True)]
        found = [member.evaluate(frames, stress=stress) for member in members]
        labels = []
        for index in range(len(frames)):
            energy = float(np.mean([each.energies[index] for each in found]))
            forces = np.mean([each.forces[index] for each in found if each.forces is not None], axis=0)
            tensors = [each.stress[index] for each in found if each.stress is not None]
            labels.append(Labels(energy, forces, np.mean(tensors, axis=0) if tensors else None, self.program()))
        return labels

    def program(self) -> str:
        weights = ", ".join(digest[:12] for digest in self.hashes)
        return f"ponita-ff {package_versions().get('ponita-ff', '(no version)')} (weights {weights})"

    def check(self, frames: Iterable[tuple[str, Atoms]]) -> None:
        for source, atoms in frames:
            unknown = sorted(set(atoms.numbers.tolist()) - self.species)
            if unknown:
                known = ", ".join(chemical_symbols[number] for number in sorted(self.species))
                raise LabelError(f"{source}: it has {chemical_symbols[unknown[0]]}, and {self.name} knows {known} only")


@cache
def _loaded(file: str, weights_sha256: str) -> Potential:
    """A potential, once per process.

    Raises:
        ValueError: The file is another one by now.
    """
    from ponita_ff.potential.file import load_potential  # loads torch

    found = read_header(Path(file))["weights_sha256"]
    if found != weights_sha256:
        raise ValueError(f"{file} is another potential than when this began")
    return load_potential(file)


def method_for(text: str) -> Method:
    """The method of a given name, for neutral closed-shell structures.

    Args:
        text: As for `ponita_ff.labels.find_method`, or the name or file of a potential; several joined by commas are a
            committee.

    Raises:
        SampleError: An unknown method.
        PotentialFileError: A file that is no potential.
    """
    try:
        members = committee_members(text)
    except (FileNotFoundError, ValueError) as error:
        raise SampleError(f"method: {error}") from None
    # A potential first: a file in a folder could be read as FUNCTIONAL/BASIS.
    if text.endswith(".safetensors") or all(map(_is_potential, members)):
        try:
            return PotentialMethod.read(text, members)
        except FileNotFoundError as error:
            raise SampleError(f"method: {error}") from None
    try:
        return find_method(text)
    except LabelError as error:
        raise SampleError(
            f"{error}; or the name or file of a potential: shipped are {', '.join(shipped_potentials())}"
        ) from None


def _is_potential(name: str) -> bool:
    return is_file(Path(name)) or name in shipped_potentials()


def method_of(method: Method, charge: int, multiplicity: int) -> Method:
    """The same method for a structure of a charge (elementary charges) and multiplicity (2S + 1).

    Calculators by Python path have both set in themselves, if they know them.

    Raises:
        LabelError: A potential, for a structure that is charged or open-shell.
    """
    if isinstance(method, CalculatorMethod):
        return method
    if not isinstance(method, PotentialMethod):
        return method.with_spin(charge, multiplicity)
    if charge or multiplicity != 1:
        raise LabelError(f"{method.name} knows no charge ({charge}) and multiplicity ({multiplicity})")
    return method
