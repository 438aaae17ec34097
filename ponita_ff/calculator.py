"""The ASE calculator."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray
from torch import Tensor

from ponita_ff.checkpoint import find_potential, load_potential
from ponita_ff.compilation import Function, ShapeCompiler
from ponita_ff.graph import INPUT_FIELDS, Graph, build_graph, edge_vectors
from ponita_ff.neighbours import SkinCache
from ponita_ff.potential import Potential

__all__ = ["PonitaCalculator"]

#: Å under which two atoms count as being in one place: no bond is a tenth of this long.
_SAME_PLACE = 0.05


class PonitaCalculator(Calculator):
    """Energies, forces and stress of a PONITA potential, in ASE's units.

    Args:
        potential: Name of a shipped potential, path of a potential file, or a :class:`Potential`.
        device: ``"auto"`` (a GPU when there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, …
        dtype: ``"float32"`` or ``"float64"``; None for the file's own. Float64 is for vibrations and tight relaxations.
        skin: Å added to the cutoff of the neighbour list, which is made again only after an atom has moved by half of
            it. Changes speed, never results; 0 makes a list every time.
        num_ori: Another orientation grid than the file's; only for networks trained on it too (see the model card:
            energies and forces change on any other). None for the file's own.
        rotations: Average over this many fixed rotations, at proportional cost; None for the file's own.
        compile: Compile for the first few sizes of system that come by (up to a minute each, then faster).
        label: ASE's name for files of this calculator; unused.

    Results: ``energy`` and ``free_energy`` (total, eV), ``energies`` (n,), ``forces`` (n, 3) eV/Å, and ``stress`` (6,)
    eV/Å³ (Voigt order xx, yy, zz, yz, xz, xy; positive under tension) for cells periodic in all directions.

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
        potential: str | Path | Potential,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        skin: float = 0.5,
        num_ori: int | None = None,
        rotations: int | None = None,
        compile: bool = False,
        label: str | None = None,
    ) -> None:
        super().__init__(label=label)
        self.potential = _prepare(potential, device, dtype, num_ori, rotations)
        self._cache = SkinCache(self.potential.cutoff, skin)
        self._graph: Graph | None = None
        self._want_stress = False
        self._compile = compile
        self._functions: dict[bool, Function] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without the functions, which belong to this calculator's own potential."""
        return {**self.__dict__, "_functions": {}}

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Refuse parameters: this calculator's options are given when it is made."""
        if kwargs:
            raise TypeError(f"PonitaCalculator has no parameter {sorted(kwargs)}; give options when making it")
        return {}

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Compute energy and forces, and stress once it has been asked for, of ``atoms``."""
        super().calculate(atoms, properties, system_changes)
        current = self.atoms
        if current is None:
            raise ValueError("give the atoms to calculate")
        # An NPT run or a cell relaxation asks for it every step: then one pass gives all.
        self._want_stress = self._want_stress or "stress" in properties
        has_volume = bool(current.pbc.all())
        if "stress" in properties and not has_volume:
            raise ValueError(f"stress needs a cell that is periodic in all directions, but pbc is {current.pbc}")
        graph = self._update_graph(current)
        self.results = self._evaluate(graph, self._want_stress and has_volume)

    def _evaluate(self, graph: Graph, stress: bool) -> dict[str, Any]:
        tensors = [graph[name] for name in INPUT_FIELDS]
        energy, energies, forces, *rest = self._function(stress)([], tensors)
        results: dict[str, Any] = {
            "energy": float(energy),
            "free_energy": float(energy),
            "energies": energies.cpu().numpy(),
            "forces": forces.cpu().numpy(),
        }
        if stress:
            results["stress"] = full_3x3_to_voigt_6_stress(rest[0][0].cpu().numpy())
        if not np.isfinite(results["energy"]) or not np.isfinite(results["forces"]).all():
            raise ValueError(
                "energy or forces are not finite: the structure is far outside anything the potential was trained on "
                f"(shortest distance {self._shortest(graph)[0]:.3f} Å)"
            )
        return results

    def _function(self, stress: bool) -> Function:
        """The prediction as a function of tensors, compiled if so wished."""
        if stress not in self._functions:

            def predict(_: list[Tensor], tensors: list[Tensor], fused: bool) -> tuple[Tensor, ...]:
                graph = Graph(**dict(zip(INPUT_FIELDS, tensors, strict=True)))
                return self.potential.predict(graph, forces=True, stress=stress, fused=fused)

            function: Function = partial(predict, fused=False)
            if self._compile:
                function = ShapeCompiler(partial(predict, fused=True), function)
            self._functions[stress] = function
        return self._functions[stress]

    def _update_graph(self, atoms: Atoms) -> Graph:
        """The graph of these atoms; only its positions change while the neighbour list holds."""
        numbers, positions = atoms.numbers, atoms.positions
        if len(numbers) == 0:
            raise ValueError("there are no atoms to calculate: the structure is empty")
        self.potential.check_species(numbers)
        periodic = bool(atoms.pbc.any())
        cell = np.asarray(atoms.cell) if periodic else None
        edges, rebuilt = self._cache.update(positions, numbers, cell, atoms.pbc)
        if rebuilt or self._graph is None:
            graph = build_graph(numbers, positions, self.potential.cutoff, cell, atoms.pbc, edges)
            self._graph = graph.to(self.potential.device)
        else:
            self._graph.positions = torch.from_numpy(positions.copy()).to(self.potential.device)
        self._refuse_coincident(self._graph)
        return self._graph

    @staticmethod
    def _shortest(graph: Graph) -> tuple[float, int, int]:
        """Shortest distance in Å and the two atoms."""
        vectors = edge_vectors(graph.positions, graph.offsets, graph.neighbours, graph.reverse)
        squared = vectors.square().sum(-1).flatten()
        edge = int(squared.argmin())
        atom = edge // graph.neighbours.shape[1]
        return float(squared[edge].sqrt()), atom, int(graph.neighbours.flatten()[edge])

    def _refuse_coincident(self, graph: Graph) -> None:
        distance, first, second = self._shortest(graph)
        if distance < _SAME_PLACE:
            raise ValueError(
                f"atoms {first} and {second} are in one place ({distance:.2g} Å apart): remove one of them, or check "
                "the cell and the file that the structure came from"
            )

    def get_hessian(self, atoms: Atoms | None = None, indices: Sequence[int] | None = None) -> NDArray[np.float64]:
        """Second derivatives of the energy with respect to positions, by differentiating the forces.

        One row after the other, so that memory stays that of a single force evaluation.

        Args:
            atoms: The structure; None for the last one calculated.
            indices: Atoms of the block that is wanted; None for all.

        Returns:
            Symmetrised matrix, shape (3k, 3k) for k atoms, eV/Å², coordinates in the order x0, y0, z0, x1, …

        Raises:
            ValueError: For no atoms, or indices that do not exist.
        """
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise ValueError("give the atoms whose Hessian is wanted")
        chosen = np.arange(len(atoms)) if indices is None else np.asarray(indices, dtype=np.int64)
        if chosen.size == 0 or chosen.min() < 0 or chosen.max() >= len(atoms):
            raise ValueError(f"indices must be atoms 0 to {len(atoms) - 1}, got {indices}")
        graph = self._update_graph(atoms).clone()
        graph.positions = graph.positions.clone().requires_grad_(True)
        with torch.enable_grad():
            energy = self.potential.interaction_energies(graph, graph.positions, graph.offsets).sum()
            gradient = torch.autograd.grad(energy, graph.positions, create_graph=True)[0][chosen].flatten()
            rows = [torch.autograd.grad(g, graph.positions, retain_graph=True)[0][chosen].flatten() for g in gradient]
        hessian: NDArray[np.float64] = torch.stack(rows).cpu().numpy()
        return 0.5 * (hessian + hessian.T)


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
        loaded = load_potential(find_potential(potential))
    else:
        raise TypeError(f"potential must be a shipped name, a path or a Potential, got {type(potential).__name__}")
    if num_ori is not None:
        loaded.set_grid(num_ori)
    if rotations is not None:
        loaded.average_rotations(rotations)
    return loaded.to(device=_device(device), dtype=_dtype(dtype) or loaded.dtype)


def _dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    known = {"float32": torch.float32, "float64": torch.float64, torch.float32: torch.float32}
    known[torch.float64] = torch.float64
    if name is None:
        return None
    if name not in known:
        raise ValueError(f"dtype must be 'float32' or 'float64' (or None for the file's own), got {name!r}")
    return known[name]


def _device(name: str | torch.device) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here ({reason}): use 'auto' or 'cpu'") from None
    return device
