"""The ASE calculator."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, Parameters, all_changes
from ase.outputs import Properties, all_outputs
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray
from torch import Tensor

from ponita_ff.backends.device_step import DeviceStep, StepValues
from ponita_ff.energy.derivatives import hessian
from ponita_ff.files import is_file
from ponita_ff.potential.companions import CALIBRATION_FILE, committee_members, companions_of, shipped_calibration
from ponita_ff.potential.device import choose_device, choose_dtype
from ponita_ff.potential.domain import Familiarity
from ponita_ff.potential.domain_watch import DomainWatch, familiarity
from ponita_ff.potential.file import load_potential
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.graph import COINCIDENT, Graph, shortest_edge, squared_distances
from ponita_ff.structure.graph_cache import GraphCache
from ponita_ff.uncertainty import Calibration, Companions, hash_of_weights

__all__ = ["PonitaCalculator"]


class PonitaCalculator(Calculator):
    """Energies, forces and stress of a PONITA potential, or of a committee of several, in ASE's units.

    Args:
        potential: Name of a shipped potential, path of a potential file, or a :class:`Potential`; or a sequence of
            these, or names joined by commas: a committee, whose mean is returned. ``NAME@committee`` is a potential
            with the companions that lie beside its file.
        device: ``"auto"`` (a GPU when there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, …
        dtype: ``"float32"`` or ``"float64"``; None for the file's own. Float64 is for vibrations and tight relaxations.
        skin: Å added to the cutoff of the neighbour list, which is made again only after an atom has moved by half of
            it. It changes the speed, not the results; 0 makes a list every time.
        num_ori: Another orientation grid than the file's; only for networks trained on it too (see the model card:
            energies and forces change on any other). None for the file's own.
        rotations: Average over this many fixed rotations, at proportionally higher cost; None for the file's own.
        calibration: Of a committee, or the file of one (:func:`ponita_ff.uncertainty.calibrate`): its standard
            deviations then have the size of its errors. None for that of ``NAME@committee``, where there is one.
        backend: How to compute: ``"auto"`` (native for float32 on the CPU, else eager), ``"native"``, ``"compiled"`` or
            ``"eager"``; see :class:`ponita_ff.backends.predictor.Predictor`.
        strict: Refuse structures unlike anything that the potential was trained on; otherwise a warning is logged, once
            for each system. Strict calculators look at every structure, others now and then (see
            :class:`ponita_ff.potential.domain_watch.DomainWatch`).
        label: ASE's name for files of this calculator; unused.

    Results: ``energy`` and ``free_energy`` (total, eV), ``energies`` (n,), ``forces`` (n, 3) eV/Å, and ``stress`` (6,)
    eV/Å³ (Voigt order xx, yy, zz, yz, xz, xy; positive under tension) for cells periodic in all directions. Of a
    committee also ``energy_std`` (eV) and ``forces_std`` (n, 3), eV/Å: standard deviations over the members (of the
    population: the sum of squares is divided by their number), times the calibration's factors. Total energies of
    members with different reference energies differ by those too.

    ``parameters`` (``todict()``), which ASE's databases and trajectories keep, holds names and SHA-256 of the weights
    (in single precision), joined by commas for a committee, and the options that change results. ASE's writers drop a
    committee's spread; the commands' files keep it, and so does ``ponita_ff.simulate.frames.with_results``.

    It works on copies, read once: potentials given to it may change afterwards, ``calculator.potential`` may not.

    Threads may share it: one computes at a time, and each gets the values of its own atoms. ``results`` belongs to the
    last calculation of any thread. Several calculators compute at the same time. A process that is forked after a
    calculation with several threads goes on with one, as OpenMP cannot do more; spawned processes keep several.

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
        strict: bool = False,
        label: str | None = None,
    ) -> None:
        self._lock = threading.RLock()
        super().__init__(label=label)
        # The base class's way to keep a copy of the atoms is one more copy than is needed: see calculate.
        self.use_cache = False
        members = _members(potential)
        if not members:
            raise ValueError("a committee needs at least one potential")
        prepare = partial(_prepare, device=device, dtype=dtype, num_ori=num_ori, rotations=rotations)
        self.potentials = [prepare(member) for member in members]
        #: The potential, or the first of a committee.
        self.potential = self.potentials[0]
        if len(self.potentials) > 1:
            self.implemented_properties = [*self.implemented_properties, "energy_std", "forces_std"]
        if calibration is None and isinstance(potential, str):
            calibration = shipped_calibration(potential)
        self.calibration = Calibration.load(calibration) if isinstance(calibration, str | Path) else calibration
        if self.calibration is not None:
            self.calibration.check_members(self.potentials)
        companions = _companions(members, self.potential, prepare, backend)
        self._graphs = GraphCache(self._longest_cutoff(), skin, self.potential.device)
        #: Whether the potential knows what it is given.
        self.domain_watch = DomainWatch(self.potentials, strict, companions)
        self._want_stress = False
        self._backend = backend
        self._prepare_predictions()
        names = [_name(given, loaded) for given, loaded in zip(members, self.potentials, strict=True)]
        #: What ASE's databases and trajectories keep of a calculator; to change it changes nothing.
        self.parameters = Parameters(
            potential=",".join(names),
            sha256=",".join(hash_of_weights(member) for member in self.potentials),
            dtype=str(self.potential.dtype).removeprefix("torch."),
            num_ori=num_ori,
            rotations=rotations,
        )

    def __repr__(self) -> str:
        """Potential, first digits of the SHA-256 of its weights, number format and backend."""
        hashes = ",".join(value[:12] for value in self.parameters["sha256"].split(","))
        return (
            f"PonitaCalculator({self.parameters['potential']!r}, sha256={hashes}, dtype={self.parameters['dtype']}, "
            f"backend={self.backend})"
        )

    def _longest_cutoff(self) -> float | None:
        """Of all members: edges beyond a member's own cutoff add nothing to it, so that one list serves all."""
        cutoffs = [member.cutoff for member in self.potentials]
        return None if None in cutoffs else max(cutoff for cutoff in cutoffs if cutoff is not None)

    def discard_state(self) -> None:
        """Discard results and neighbour list, so that the next result depends on its structure alone, to the last bit.

        A neighbour list is kept while it holds, and the order of neighbours in it changes how sums are rounded.
        """
        with self._lock:
            self._graphs.reset()
            self.reset()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without the predictors, which belong to this calculator's own potentials."""
        with self._lock:
            # Even a shallow copy must not move atoms in this one's neighbour list: it has a lock of its own.
            graphs, watch = copy.deepcopy((self._graphs, self.domain_watch))
            made = {"_predictors": None, "_device_step": None, "_lock": None}
            return {**self.__dict__, **made, "_graphs": graphs, "domain_watch": watch}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()
        self._prepare_predictions()

    def _prepare_predictions(self) -> None:
        self._predictors = [member.predictor(self._backend) for member in self.potentials]
        #: On a GPU, in place of the predictors.
        self._device_step: DeviceStep | None = None
        if self.potential.device.type == "cuda":
            self._device_step = DeviceStep(self.potentials, compiled=self.backend == "compiled")

    @property
    def backend(self) -> str:
        """The backend that is used: ``"native"``, ``"compiled"`` or ``"eager"``."""
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
        """Compile, make neighbour lists and allocate memory now, as the first steps with a system of this size would.

        Leaves no results and no trace in the calculator's state.

        Args:
            atoms: A system of the size to come.
            stress: Whether stress will be wanted.

        Raises:
            ValueError: For atoms that cannot be calculated.
        """
        if stress:
            _refuse_not_periodic(atoms)
        with self._lock:
            kept, self._graphs = self._graphs, copy.copy(self._graphs)
            self._graphs.reset()
            try:
                self._evaluate(self._graph_of(atoms), stress)
            finally:
                self._graphs = kept

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """A result for these atoms, computed if need be; see ASE.

        The base class compares the atoms, computes and looks up the result in three steps: another thread must not come
        between them.
        """
        with self._lock:
            return super().get_property(name, atoms, allow_calculation)

    def calculate_properties(self, atoms: Atoms, properties: Sequence[str]) -> Properties:
        """Several results for these atoms; see ASE. As in :meth:`get_property`, no other thread comes between."""
        with self._lock:
            return super().calculate_properties(atoms, properties)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Compute energy and forces, and stress once it has been asked for, of ``atoms``.

        Structure and results are kept together, and only when both are there: after an error the old ones stay.
        """
        current = self.atoms if atoms is None else atoms.copy()
        if current is None:
            raise ValueError("give the atoms to calculate")
        if "stress" in properties:
            _refuse_not_periodic(current)
        # An NPT run or a cell relaxation asks for stress every step: from then on one pass gives all.
        with self._lock:
            stress = self._want_stress or "stress" in properties
            results = self._results_of(current, stress and bool(current.pbc.all()))
            self.atoms, self.results, self._want_stress = current, results, stress

    def _results_of(self, atoms: Atoms, stress: bool) -> dict[str, Any]:
        if self._device_step is not None and not self.domain_watch.strict:
            # The device tells with the results whether the list holds; if not, they are dropped.
            graph = self._graphs.assumed(atoms)
            values = None if graph is None else self._by_device(self._device_step, graph, stress)
            if graph is not None and values is not None and values.holds:
                self.domain_watch.see(graph)
                return self._checked(graph, values.closest, values.predictions)
        graph = self._graph_of(atoms)
        self.domain_watch.see(graph)
        return self._evaluate(graph, stress)

    def _by_device(self, step: DeviceStep, graph: Graph, stress: bool) -> StepValues:
        assert self._graphs.made_at is not None
        return step(graph, stress, self._graphs.made_at, self._graphs.max_move)

    def _evaluate(self, graph: Graph, stress: bool) -> dict[str, Any]:
        if self._device_step is not None:
            values = self._by_device(self._device_step, graph, stress)
            return self._checked(graph, values.closest, values.predictions)
        predictions = self._predict(graph, stress)
        closest = [squared_distances(graph).min().unsqueeze(0)] if self._graphs.atoms_may_coincide else []
        arrays = _to_host([*closest, *predictions])
        return self._checked(graph, float(arrays.pop(0)[0]) if closest else math.inf, arrays)

    def _checked(self, graph: Graph, closest: float, arrays: list[NDArray[np.float64]]) -> dict[str, Any]:
        """Results from the square of the shortest distance, Å², and all predictions on the host."""
        if closest < COINCIDENT**2:
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
        """Predictions of all members, one after the other."""
        if len(self._predictors) == 1:
            return list(self._predictors[0](graph, stress))
        # Copies: on a GPU a compiled member's results may lie where the next one's will.
        return [value.clone() for predict in self._predictors for value in predict(graph, stress)]

    def _graph_of(self, atoms: Atoms) -> Graph:
        return self._graphs.update(atoms, self._check_species)

    def _check_species(self, numbers: NDArray[np.integer[Any]]) -> None:
        for member in self.potentials:
            member.check_species(numbers)

    def familiarity(self, atoms: Atoms) -> Familiarity | None:
        """How well the training data cover a structure; None where the potential's file holds no statistics of them.

        Of a committee, for the member that knows the structure least. Leaves no trace in the calculator's state.

        Raises:
            ValueError: For atoms that cannot be calculated.
        """
        return familiarity(self.potentials, atoms)

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
        with self._lock:
            graph = self._graph_of(atoms).clone()
        _refuse_coincident(graph)
        matrix: NDArray[np.float64] = hessian(self.potentials, graph, chosen.tolist()).cpu().numpy()
        return matrix


def _name(given: str | Path | Potential, loaded: Potential) -> str:
    """A potential's name: that in its file, else that of the file."""
    name = loaded.metadata.get("name")
    return str(name) if name else "unnamed" if isinstance(given, Potential) else Path(given).stem


def _members(potential: Any) -> list[Any]:
    if isinstance(potential, str):
        return [*committee_members(potential)]
    if isinstance(potential, Path | Potential):
        return [potential]
    if not isinstance(potential, Sequence):
        raise TypeError(
            f"potential must be a shipped name, a path, a Potential, or a list of these, got {type(potential).__name__}"
        )
    return list(potential)


def _companions(
    members: Sequence[Any], potential: Potential, prepare: Callable[[Path], Potential], backend: str
) -> Companions | None:
    """Those that lie beside the file of a single potential, with their calibration."""
    if len(members) > 1 or isinstance(members[0], Potential) or potential.file is None:
        return None
    calibration, others = potential.file.with_name(CALIBRATION_FILE), companions_of(potential.file)
    if not others or not is_file(calibration):
        return None
    try:
        return Companions(potential, [prepare(other) for other in others], Calibration.load(calibration), backend)
    except ValueError as error:
        raise ValueError(f"{calibration}, beside {potential.file.name}: {error}") from None


def _refuse_not_periodic(atoms: Atoms) -> None:
    if not atoms.pbc.all():
        raise ValueError(f"stress needs a cell that is periodic in all directions, but pbc is {atoms.pbc}")


def _refuse_coincident(graph: Graph) -> None:
    distance, first, second = shortest_edge(graph)
    if distance < COINCIDENT:
        raise ValueError(
            f"atoms {first} and {second} are in one place ({distance:.2g} Å apart): remove one of them, or check "
            "the cell and the file that the structure came from"
        )


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
