"""The ASE calculator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.outputs import Properties, all_outputs
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray
from torch import Tensor

from ponita_ff.energy.derivatives import hessian
from ponita_ff.potential.device import choose_device, choose_dtype
from ponita_ff.potential.file import load_potential
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.device_neighbours import TableCache
from ponita_ff.structure.graph import COINCIDENT, Graph, build_graph, edge_vectors, shortest_edge
from ponita_ff.structure.neighbours import SkinCache
from ponita_ff.uncertainty import Calibration

__all__ = ["PonitaCalculator"]

#: Atoms from which on a GPU makes its own neighbour lists: below, the CPU's lists are there sooner.
_DEVICE_LIST = 500

#: Part of the skin that an atom may move before a GPU is asked whether its list still holds: half, less rounding.
_SURE = 0.49


class PonitaCalculator(Calculator):
    """Energies, forces and stress of a PONITA potential, or of a committee of several, in ASE's units.

    Args:
        potential: Name of a shipped potential, path of a potential file, or a :class:`Potential`; or a sequence of
            these: a committee, whose mean is returned.
        device: ``"auto"`` (a GPU when there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, …
        dtype: ``"float32"`` or ``"float64"``; None for the file's own. Float64 is for vibrations and tight relaxations.
        skin: Å added to the cutoff of the neighbour list, which is made again only after an atom has moved by half of
            it. Changes speed, never results; 0 makes a list every time.
        num_ori: Another orientation grid than the file's; only for networks trained on it too (see the model card:
            energies and forces change on any other). None for the file's own.
        rotations: Average over this many fixed rotations, at proportional cost; None for the file's own.
        calibration: Of a committee, or the file of one (:func:`ponita_ff.uncertainty.calibrate`): its standard
            deviations then have the size of its errors.
        backend: How to compute: ``"auto"`` (native for float32 on the CPU, else eager), ``"native"``, ``"compiled"`` or
            ``"eager"``; see :class:`ponita_ff.backends.predictor.Predictor`.
        label: ASE's name for files of this calculator; unused.

    Results: ``energy`` and ``free_energy`` (total, eV), ``energies`` (n,), ``forces`` (n, 3) eV/Å, and ``stress`` (6,)
    eV/Å³ (Voigt order xx, yy, zz, yz, xz, xy; positive under tension) for cells periodic in all directions. Of a
    committee also ``energy_std`` (eV) and ``forces_std`` (n, 3): standard deviations over the members, each member
    counting alike (the sum of squares is divided by their number), times the calibration's factors. Total energies of
    members with different reference energies differ by those too.

    It works on copies, read once: potentials given to it may change afterwards, ``calculator.potential`` may not.

    Raises:
        FileNotFoundError, PotentialFileError: When there is no such potential or its file is damaged.
        ValueError: For options or atoms that cannot be used; the message says what to do.
        TypeError: For a misspelt option.
    """

    implemented_properties = [  # noqa: RUF012 - as the base class declares it
        "energy",
        "free_energy",
        "energies",
        "forces",
        "stress",
    ]
    name = "ponita"

    def __init__(
        self,
        potential: str | Path | Potential | Sequence[str | Path | Potential],
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        skin: float = 0.5,
        num_ori: int | None = None,
        rotations: int | None = None,
        backend: str = "auto",
        calibration: Calibration | str | Path | None = None,
        label: str | None = None,
    ) -> None:
        super().__init__(label=label)
        # The base class's way to keep a copy of the atoms is one more copy than is needed: see calculate.
        self.use_cache = False
        members = [potential] if isinstance(potential, str | Path | Potential) else list(_sequence(potential))
        if not members:
            raise ValueError("a committee needs at least one potential")
        self.potentials = [_prepare(member, device, dtype, num_ori, rotations) for member in members]
        #: The potential, or the first of a committee.
        self.potential = self.potentials[0]
        if len(self.potentials) > 1:
            self.implemented_properties = [*self.implemented_properties, "energy_std", "forces_std"]
        self.calibration = Calibration.load(calibration) if isinstance(calibration, str | Path) else calibration
        if self.calibration is not None:
            self.calibration.check_members(self.potentials)
        # Edges beyond a member's own cutoff add nothing to it: one list serves all.
        cutoffs = [member.cutoff for member in self.potentials]
        self._cutoff = None if None in cutoffs else max(cutoff for cutoff in cutoffs if cutoff is not None)
        self._device = self.potential.device
        self._device_list = _DEVICE_LIST if self._device.type != "cpu" else math.inf
        self._want_stress = False
        self._backend = backend
        self._predictors = [member.predictor(backend) for member in self.potentials]
        self._forget(skin)

    def _forget(self, skin: float) -> None:
        """Start with no neighbour list."""
        self._cache = SkinCache(self._cutoff, skin)
        self._device_cache = TableCache(self._cutoff, skin)
        #: What the device's list was made for: positions, numbers, cell, pbc.
        self._listed: tuple[Any, ...] | None = None
        self._graph: Graph | None = None
        #: Whether no two atoms can have come into one place since the list was made.
        self._apart = False

    def discard_state(self) -> None:
        """Discard results and neighbour list: what comes next depends on its structure alone, to the last bit.

        A neighbour list is kept while it holds, and the order of neighbours in it changes how sums are rounded.
        """
        self._forget(self._cache.skin)
        self.reset()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without the predictors, which belong to this calculator's own potentials."""
        return {**self.__dict__, "_predictors": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._predictors = [member.predictor(self._backend) for member in self.potentials]

    @property
    def backend(self) -> str:
        """What computes in the end: ``"native"``, ``"compiled"`` or ``"eager"``."""
        return self._predictors[0].backend

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Refuse parameters: this calculator's options are given when it is made."""
        if kwargs:
            raise TypeError(f"PonitaCalculator has no parameter {sorted(kwargs)}; give options when making it")
        return {}

    def export_properties(self) -> Properties:
        """ASE's own properties among the results: it knows no others, and a committee's spread is none."""
        return Properties({name: value for name, value in self.results.items() if name in all_outputs})

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation, of what the results depend on.

        Compares bits where the base class compares to within ``tol``: ten times faster, and it is asked several times a
        step.
        """
        last = self.atoms
        if last is None:
            return list(all_changes)
        pairs = {
            "positions": (last.positions, atoms.positions),
            "numbers": (last.numbers, atoms.numbers),
            "cell": (last.cell.array, atoms.cell.array),
            "pbc": (last.pbc, atoms.pbc),
        }
        return [name for name, (old, new) in pairs.items() if old.tobytes() != new.tobytes()]

    def warmup(self, atoms: Atoms, stress: bool = False) -> None:
        """Do now what the first steps with a system of this size would do: compile, make lists, get memory.

        Leaves no results and no trace in the calculator's state.

        Args:
            atoms: A system of the size to come.
            stress: Whether stress will be wanted.

        Raises:
            ValueError: For atoms that cannot be calculated.
        """
        if stress:
            _refuse_open(atoms)
        kept = (self._cache, self._device_cache, self._listed, self._graph, self._apart)
        self._forget(self._cache.skin)
        try:
            self._evaluate(self._update_graph(atoms), stress)
        finally:
            self._cache, self._device_cache, self._listed, self._graph, self._apart = kept

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Compute energy and forces, and stress once it has been asked for, of ``atoms``."""
        if atoms is not None:
            self.atoms = atoms.copy()
        current = self.atoms
        if current is None:
            raise ValueError("give the atoms to calculate")
        # An NPT run or a cell relaxation asks for it every step: then one pass gives all.
        if "stress" in properties:
            _refuse_open(current)
            self._want_stress = True
        graph = self._update_graph(current)
        self.results = self._evaluate(graph, self._want_stress and bool(current.pbc.all()))

    def _evaluate(self, graph: Graph, stress: bool) -> dict[str, Any]:
        values = self._predict(graph, stress)
        closest = [] if self._apart else [_squares(graph).min().unsqueeze(0)]
        arrays = _to_host([*closest, *values])
        if closest and arrays.pop(0) < COINCIDENT**2:
            _refuse_coincident(graph)
        number = len(self._predictors)
        results = _results(arrays) if number == 1 else _committee_results(arrays, number)
        if number > 1 and self.calibration is not None:
            results["energy_std"] *= self.calibration.energy
            results["forces_std"] *= self.calibration.forces
        if not math.isfinite(results["energy"]) or not np.isfinite(results["forces"]).all():
            raise ValueError(
                "energy or forces are not finite: the structure is far outside anything the potential was trained on "
                f"(shortest distance {shortest_edge(graph)[0]:.3f} Å)"
            )
        return results

    def _predict(self, graph: Graph, stress: bool) -> list[Tensor]:
        """What the members say, one after the other."""
        if len(self._predictors) == 1:
            return list(self._predictors[0](graph, stress))
        # Copies: on a GPU a compiled member's results may lie where the next one's will.
        return [value.clone() for predict in self._predictors for value in predict(graph, stress)]

    def _update_graph(self, atoms: Atoms) -> Graph:
        """The graph of these atoms; only its positions change while the neighbour list holds."""
        number = len(atoms)
        if number == 0:
            raise ValueError("there are no atoms to calculate: the structure is empty")
        # A copy that is the graph's own: ASE's integrators move atoms in place.
        positions = torch.from_numpy(atoms.positions.copy()).to(self._device)
        pbc = atoms.pbc
        cell = np.asarray(atoms.cell) if pbc.any() else None
        if self._graph is None or len(self._graph["positions"]) != number:
            self._forget(self._cache.skin)
        renew = self._renew_on_device if number >= self._device_list else self._renew_on_host
        graph = renew(atoms, positions, cell, pbc)
        if graph is not None:
            self._graph = None  # if these atoms are refused, they must be again the next time
            for member in self.potentials:
                member.check_species(atoms.numbers)
            # Two atoms may have come nearer to each other by the whole skin before the list is made again.
            reach = COINCIDENT + self._cache.skin
            self._apart = self._cutoff is not None and float(_squares(graph).min()) > reach**2
            self._graph = graph
        assert self._graph is not None
        self._graph["positions"] = positions
        return self._graph

    def _renew_on_host(self, atoms: Atoms, _: Tensor, cell: Any, pbc: NDArray[np.bool_]) -> Graph | None:
        """A graph from a new neighbour list; None where the old one holds."""
        edges, rebuilt = self._cache.update(atoms.positions, atoms.numbers, cell, pbc)
        if not rebuilt:
            return None
        return build_graph(atoms.numbers, atoms.positions, self._cutoff, cell, pbc, edges).to(self._device)

    def _renew_on_device(self, atoms: Atoms, positions: Tensor, cell: Any, pbc: NDArray[np.bool_]) -> Graph | None:
        """The same, from a list made where the positions are."""
        if self._surely_holds(atoms, cell, pbc):
            return None
        numbers = torch.from_numpy(atoms.numbers.astype(np.int64)).to(self._device)
        table, rebuilt = self._device_cache.update(positions, numbers, cell, pbc)
        if not rebuilt:
            return None
        self._listed = (atoms.positions.copy(), atoms.numbers.copy(), None if cell is None else cell.copy(), pbc.copy())
        return Graph(
            atomic_numbers=numbers,
            positions=positions,
            cell=torch.from_numpy(np.zeros((1, 3, 3)) if cell is None else cell[None].copy()).to(self._device),
            batch=torch.zeros(len(atoms), dtype=torch.int64, device=self._device),
            **table._asdict(),
        )

    def _surely_holds(self, atoms: Atoms, cell: Any, pbc: NDArray[np.bool_]) -> bool:
        """Whether the device's list holds, seen from here: asking the device would mean waiting for its answer."""
        if self._listed is None or not all(map(np.array_equal, self._listed[1:], (atoms.numbers, cell, pbc))):
            return False
        moved = atoms.positions - self._listed[0]
        return bool(np.einsum("ij,ij->i", moved, moved).max() <= (_SURE * self._cache.skin) ** 2)

    def get_hessian(self, atoms: Atoms | None = None, indices: Sequence[int] | None = None) -> NDArray[np.float64]:
        """Second derivatives of the (mean) energy with respect to positions, by differentiating the forces in torch.

        One row after the other, so that memory stays that of a single force evaluation.

        Args:
            atoms: The structure; None for the last one calculated.
            indices: Atoms of the block that is wanted; None for all.

        Returns:
            Symmetrised matrix, shape (3k, 3k) for k atoms, eV/Å², coordinates in the order x0, y0, z0, x1, …

        Raises:
            ValueError: For no atoms or atoms that cannot be calculated, or indices that do not exist.
        """
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise ValueError("give the atoms whose Hessian is wanted")
        chosen = np.arange(len(atoms)) if indices is None else np.asarray(indices)
        # A mask or fractions would be taken for atoms 0 and 1.
        whole = chosen.size > 0 and chosen.dtype.kind in "iu"
        if not whole or chosen.min() < 0 or chosen.max() >= len(atoms):
            raise ValueError(f"indices must be atoms 0 to {len(atoms) - 1}, got {indices}")
        graph = self._update_graph(atoms).clone()
        _refuse_coincident(graph)
        matrix: NDArray[np.float64] = hessian(self.potentials, graph, chosen.tolist()).cpu().numpy()
        return matrix


def _sequence(potentials: Any) -> Sequence[Any]:
    if not isinstance(potentials, Sequence):
        raise TypeError(
            "potential must be a shipped name, a path, a Potential, or a list of these, got "
            f"{type(potentials).__name__}"
        )
    return potentials


def _refuse_open(atoms: Atoms) -> None:
    if not atoms.pbc.all():
        raise ValueError(f"stress needs a cell that is periodic in all directions, but pbc is {atoms.pbc}")


def _refuse_coincident(graph: Graph) -> None:
    distance, first, second = shortest_edge(graph)
    if distance < COINCIDENT:
        raise ValueError(
            f"atoms {first} and {second} are in one place ({distance:.2g} Å apart): remove one of them, or check "
            "the cell and the file that the structure came from"
        )


def _squares(graph: Graph) -> Tensor:
    """Squares of all distances, shape (N, M), Å²."""
    vectors = edge_vectors(graph["positions"], graph["offsets"], graph["neighbours"], graph["reverse"])
    return vectors.square().sum(-1)


def _to_host(tensors: Sequence[Tensor]) -> list[NDArray[np.float64]]:
    """As numpy arrays in float64, in one transfer from the device: the only wait of a step."""
    packed = torch.cat([tensor.flatten() for tensor in tensors]).cpu().numpy()
    arrays, start = [], 0
    for tensor in tensors:
        end = start + tensor.numel()
        arrays.append(packed[start:end].reshape(tensor.shape))
        start = end
    return arrays


def _results(arrays: Sequence[NDArray[np.float64]]) -> dict[str, Any]:
    """ASE's results from energy (1,), energies (n,), forces (n, 3) and, where there is one, stress (1, 3, 3)."""
    energy, energies, forces, *stress = arrays
    total = float(energy[0])
    results: dict[str, Any] = {"energy": total, "free_energy": total, "energies": energies, "forces": forces}
    if stress:
        results["stress"] = full_3x3_to_voigt_6_stress(stress[0][0])
    return results


def _committee_results(arrays: Sequence[NDArray[np.float64]], number: int) -> dict[str, Any]:
    """The same from the arrays of so many members, one member's after the other's: means, and how far they differ."""
    each = len(arrays) // number
    stacked = [np.stack(arrays[kind::each]) for kind in range(each)]
    results = _results([values.mean(axis=0) for values in stacked])
    results["energy_std"] = float(stacked[0].std())
    results["forces_std"] = stacked[2].std(axis=0)
    return results


def _prepare(
    potential: str | Path | Potential,
    device: str | torch.device,
    dtype: str | torch.dtype | None,
    num_ori: int | None,
    rotations: int | None,
) -> Potential:
    """The calculator's own copy of a potential, on its device and in its dtype."""
    if isinstance(potential, Potential):
        loaded = potential.clone()
    elif isinstance(potential, str | Path):
        loaded = load_potential(potential)
    else:
        raise TypeError(f"potential must be a shipped name, a path or a Potential, got {type(potential).__name__}")
    if num_ori is not None:
        loaded.set_grid(num_ori)
    if rotations is not None:
        loaded.average_rotations(rotations)
    return loaded.to(device=choose_device(device), dtype=choose_dtype(dtype) or loaded.dtype)
