"""Potentials from weights that were trained with the authors' code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ponita_ff.potential.file import PotentialFileError, read_header
from ponita_ff.potential.potential import Potential
from ponita_ff.published.checkpoint import inferred_hyper, read_grid, read_state
from ponita_ff.published.weights import build_published

__all__ = ["import_checkpoint", "is_imported", "load_published"]


def load_published(
    state: Mapping[str, Tensor],
    hyper: Mapping[str, Any],
    ori_grid: Tensor | None = None,
    *,
    species: Sequence[int] | None = None,
    scale: float = 1.0,
    energy_per_atom: float = 0.0,
) -> Potential:
    """Potential whose network is the authors' network with these weights.

    Args:
        state: Tensors under the published names, all float32 or all float64.
        hyper: Arguments of the authors' constructor: input_dim, hidden_dim, output_dim, num_layers, radius (Å or
            None), num_ori, basis_dim, degree, widening_factor, multiple_readouts.
        ori_grid: Grid of the training run, shape (num_ori, 3); None where num_ori is 0.
        species: Atomic numbers that the network was trained on; None for all that it has a place for, 1 to
            input_dim − 1, trained or not.
        scale: eV per unit of network output.
        energy_per_atom: eV added for every atom (see :func:`import_checkpoint`).

    Returns:
        Potential in the dtype of the weights, in eval mode, weights without gradients.

    Raises:
        ValueError: Naming the hyper-parameter, tensor or option that is missing, unknown, unsupported or misshapen.
    """
    network, numbers = build_published(state, hyper, ori_grid, species)
    origin = "none" if energy_per_atom == 0.0 else "one energy for every atom, given at import"
    metadata = {"origin": "weights from the published PONITA code", "reference_energies_from": origin}
    potential = Potential(network, numbers, dict.fromkeys(numbers, energy_per_atom), scale, metadata=metadata)
    return potential.eval().requires_grad_(False)


def is_imported(path: Path) -> bool:
    """Whether a file is a potential that was imported before."""
    try:
        return "imported_from" in read_header(path)["metadata"]
    except (PotentialFileError, OSError):
        return False


def import_checkpoint(
    path: Path | str,
    hyper: Mapping[str, Any] | None = None,
    *,
    ori_grid: Path | str | Tensor | None = None,
    species: Sequence[int] | None = None,
    scale: float = 1.0,
    energy_per_atom: float = 0.0,
) -> Potential:
    """Potential from a file with weights that were trained with the authors' code. No code in the file is ever run.

    The authors' rMD17 script predicts energy = scale · network + shift, in meV, and saves neither of the two with the
    weights, nor the grid: scale is the root mean square of the training forces, shift the mean training energy of the
    one molecule. Give ``scale`` in eV (theirs / 1000). A mean energy per molecule says nothing about another number
    of atoms, so it comes in as ``energy_per_atom`` (theirs / 1000 / number of atoms) and is right for that molecule.
    Weights are taken from the file's ``state_dict``; averaged weights that an optimiser keeps elsewhere are not.

    Args:
        path: ``.ckpt``, ``.pt`` or ``.pth`` with a state dict, bare or under ``state_dict``; ``.safetensors`` with the
            tensors; or ``.npz`` with ``state/<name>``, ``hyper`` (JSON) and ``ori_grid``.
        hyper: Arguments of the authors' constructor that win over those in the file and those inferred from the
            tensors' shapes. All can be inferred as a rule.
        ori_grid: Grid of the training run, shape (num_ori, 3): a ``.npy`` or ``.npz`` file (one array, or the one
            named ``ori_grid``) or a tensor; wins over one in the file.
        species: See :func:`load_published`.
        scale: See :func:`load_published`.
        energy_per_atom: eV added for every atom.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: For files that hold something else, and as :func:`load_published`; the message says what to do.
    """
    path = Path(path)
    state, grid, stated = read_state(path)
    if ori_grid is not None:
        grid = ori_grid if isinstance(ori_grid, Tensor) else read_grid(Path(ori_grid))
    options = {**inferred_hyper(state, grid), **stated, **(hyper or {})}
    if options["num_ori"] == 0 and ori_grid is None:
        grid = None
    potential = load_published(state, options, grid, species=species, scale=scale, energy_per_atom=energy_per_atom)
    potential.metadata |= {"name": path.stem, "imported_from": path.name}
    return potential
