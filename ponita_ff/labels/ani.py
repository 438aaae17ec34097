"""ANI-2x through torchani: an ensemble of eight networks (Devereux et al. 2020, doi:10.1021/acs.jctc.0c00121).

The networks are computed in single precision and added to the energies of the free atoms in double precision: a total
of −15,000 eV has an error of 1 meV in single precision.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes
from ase.data import atomic_numbers
from ase.units import Hartree
from numpy.typing import NDArray

__all__ = ["ELEMENTS", "Ani", "AniNetworks", "files_sha256", "load"]

ELEMENTS = ("H", "C", "N", "O", "F", "S", "Cl")

#: Names in a folder of NeuroChem's format, and the number of networks.
_SELF_ENERGIES, _PARAMETERS, _MEMBERS = "sae_linfit.dat", "rHCNOSFCl-5.1R_16-3.5A_a8-4.params", 8

#: Å: where padding is put, far from all molecules. torchani leaves it out by its element, −1.
_FAR_AWAY, _APART = 1000.0, 10.0


class AniNetworks:
    """The networks, in single precision, and the energies of free atoms.

    Args:
        model: torchani's ensemble, with atomic numbers as its species.
        self_energies: Hartree, by atomic number.
        sha256: Of the weights.
    """

    def __init__(self, model: Any, self_energies: dict[int, float], sha256: str) -> None:
        self.sha256 = sha256
        self._model = model.float().requires_grad_(False)
        self._model.set_enabled("energy_shifter", False)
        self._self_energies = np.zeros(max(self_energies) + 1)
        for number, energy in self_energies.items():
            self._self_energies[number] = energy * Hartree

    def members(self, frames: Sequence[Atoms]) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Energies (eV, shape (members,)) and forces (eV/Å, shape (members, n, 3)) of each molecule."""
        import torch

        species, positions = _padded(frames)
        energies = self._model((species, positions), ensemble_values=True).energies
        gradients = [torch.autograd.grad(one.sum(), positions, retain_graph=True)[0] for one in energies]
        values = energies.detach().double().numpy() * Hartree
        forces = -torch.stack(gradients).double().numpy() * Hartree
        return [
            (values[:, index] + self._free_atoms(atoms), forces[:, index, : len(atoms)])
            for index, atoms in enumerate(frames)
        ]

    def mean(self, atoms: Atoms) -> tuple[float, NDArray[np.float64]]:
        """The members' mean energy (eV) and forces (eV/Å, shape (n, 3)) of a molecule."""
        import torch

        species, positions = _padded([atoms])
        energy = self._model((species, positions)).energies
        (gradient,) = torch.autograd.grad(energy.sum(), positions)
        total = float(energy.detach().double()) * Hartree + self._free_atoms(atoms)
        return total, -gradient[0].double().numpy() * Hartree

    def _free_atoms(self, atoms: Atoms) -> float:
        return float(self._self_energies[atoms.numbers].sum())


class Ani(Calculator):
    """Mean energies (eV) and forces (eV/Å) of the ensemble, for neutral closed-shell molecules.

    Args:
        networks: The ensemble.

    Raises:
        CalculationFailed: From a calculation: periodic atoms, or an element that the networks do not know.
    """

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012 - declared like this in the base class

    def __init__(self, networks: AniNetworks) -> None:
        super().__init__()
        self._networks = networks

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Calculate energy and forces, whatever is asked for: the other would otherwise take a second calculation."""
        super().calculate(atoms, properties, system_changes)
        assert isinstance(self.atoms, Atoms)
        unknown = sorted(set(self.atoms.get_chemical_symbols()) - set(ELEMENTS))
        if unknown or self.atoms.pbc.any():
            raise CalculationFailed(
                f"ANI-2x calculates molecules of {', '.join(ELEMENTS)} only; these atoms "
                + (f"have {', '.join(unknown)}" if unknown else "are periodic")
            )
        energy, forces = self._networks.mean(self.atoms)
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}


def _padded(frames: Sequence[Atoms]) -> tuple[Any, Any]:
    """Atomic numbers, −1 for padding, shape (b, n); positions that keep gradients, Å, shape (b, n, 3)."""
    import torch

    size = max(map(len, frames))
    numbers = np.full((len(frames), size), -1)
    positions = np.broadcast_to(_FAR_AWAY + _APART * np.arange(size)[:, None], (len(frames), size, 3)).copy()
    for index, atoms in enumerate(frames):
        numbers[index, : len(atoms)] = atoms.numbers
        # Numbers of single precision have seven digits: those of small coordinates are the better ones.
        positions[index, : len(atoms)] = atoms.positions - atoms.positions.mean(axis=0)
    return torch.tensor(numbers), torch.tensor(positions, dtype=torch.float32, requires_grad=True)


@cache  # once per process: a worker labels many frames
def load(folder: str | None, sha256: str) -> AniNetworks:
    """Load the networks.

    Args:
        folder: Of weights in NeuroChem's format; None: what torchani downloads. torchani evaluates text of the ``.nnf``
            files as Python, so that the folder must be from somebody whom you trust.
        sha256: Of the files, as `files_sha256` gives it; empty for what torchani downloads.

    Raises:
        OSError: A file is missing, or cannot be downloaded.
        ValueError: The files have another hash.
    """
    import torch

    with torch.random.fork_rng(devices=[]):  # networks begin with random numbers
        return _downloaded() if folder is None else _read(Path(folder), sha256)


def _read(folder: Path, sha256: str) -> AniNetworks:
    found = files_sha256(str(folder))
    if found != sha256:
        raise ValueError(f"the weights in {folder} have the SHA-256 {found}, expected {sha256}")
    torchani = _torchani()
    reader = torchani.neurochem
    info = reader.NeurochemInfo(folder / _SELF_ENERGIES, folder / _PARAMETERS, folder / "train", _MEMBERS)
    aev, networks, shifts, symbols = reader.modules_from_info(info)
    model = torchani.arch.ANI(symbols, aev, networks, shifts, periodic_table_index=True)
    return AniNetworks(model, _self_energies(folder / _SELF_ENERGIES), sha256)


def _downloaded() -> AniNetworks:
    model = _torchani().models.ANI2x()
    energies = model.energy_shifter.self_energies.double().tolist()
    self_energies = dict(zip(model.atomic_numbers.tolist(), energies, strict=True))
    digest = hashlib.sha256()
    for name, values in sorted(model.state_dict().items()):
        digest.update(name.encode() + values.cpu().contiguous().numpy().tobytes())
    return AniNetworks(model, self_energies, digest.hexdigest())


def _torchani() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of extensions for GPUs that are not there
        import torchani.arch
        import torchani.models
        import torchani.neurochem
    return torchani


def _self_energies(path: Path) -> dict[int, float]:
    """Hartree, by atomic number, of lines such as ``H,0=-0.5978583943827134``; torchani keeps single precision."""
    lines = (line.partition("=") for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return {atomic_numbers[name.split(",")[0].strip()]: float(value) for name, _, value in lines}


def files_sha256(folder: str) -> str:
    """SHA-256 of the files of weights in a folder of NeuroChem's format.

    Raises:
        OSError: A file is missing or cannot be read.
    """
    paths = [Path(folder) / _SELF_ENERGIES, Path(folder) / _PARAMETERS]
    for member in range(_MEMBERS):
        networks = Path(folder) / f"train{member}" / "networks"
        paths += sorted({networks / f"ANN-{symbol}.nnf" for symbol in ELEMENTS} | set(networks.glob("ANN-*")))
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()
