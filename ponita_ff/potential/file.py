"""Potential files: one safetensors file with tensors and JSON, versioned and hashed. Nothing in it can run code."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ponita_ff.files import write_atomically
from ponita_ff.network.forms import FORMS
from ponita_ff.potential.domain import TrainingDomain
from ponita_ff.potential.header import (
    DOMAIN,
    FORMAT,
    VERSION,
    PotentialFileError,
    content_hash,
    find_potential,
    read_content,
    read_header,
    shipped_potentials,
)
from ponita_ff.potential.potential import Potential
from ponita_ff.provenance import package_versions, weights_hash
from ponita_ff.published.network import PublishedPonita

__all__ = [
    "PotentialFileError",
    "find_potential",
    "load_potential",
    "read_header",
    "save_potential",
    "shipped_potentials",
]

_UNITS = {"energy": "eV", "length": "Angstrom", "stress": "eV/Angstrom^3"}

#: Network classes by the form that a file names.
_NETWORKS: dict[str, Any] = {**FORMS, "published": PublishedPonita}


def save_potential(potential: Potential, path: Path | str, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a potential file.

    Args:
        potential: What to write, with its metadata.
        path: Ends in ``.safetensors``.
        metadata: Further facts for the file's header; JSON-able.

    Raises:
        ValueError: When a weight or the scale is not finite, naming it; a file that was there is intact.
        OSError: When it cannot be written; a file that was there is intact.
    """
    _check_finite(potential)
    # Copies: weights in training are views of one tensor, which the format refuses.
    state = potential.state_dict()
    tensors = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in state.items()}
    weights = weights_hash(tensors)
    header: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "form": potential.network.config.form,
        "species": list(potential.species),
        "cutoff": potential.cutoff,
        "network": potential.network.config.model_dump(),
        "scale": potential.scale,
        "zbl_cutoff": potential.zbl_cutoff,
        "dtype": str(potential.dtype).removeprefix("torch."),
        "units": _UNITS,
        "versions": package_versions(),
        "metadata": {**potential.metadata, **(metadata or {})},
        "domain": _domain_header(potential),
        "weights_sha256": weights,
    }
    if potential.domain is not None:
        tensors |= {DOMAIN + name: tensor for name, tensor in potential.domain.tensors().items()}
    header["sha256"] = content_hash(header, weights)
    text = {"ponita_ff": json.dumps(header, sort_keys=True)}
    write_atomically(Path(path), lambda temporary: save_file(tensors, str(temporary), metadata=text))


def _domain_header(potential: Potential) -> dict[str, Any] | None:
    """Facts of the statistics of the training data, and the hash of their tensors."""
    if potential.domain is None:
        return None
    return {**potential.domain.facts(), "sha256": weights_hash(potential.domain.tensors())}


def _check_finite(potential: Potential) -> None:
    """Refuse to write what a training that diverged leaves."""
    broken = [name for name, tensor in potential.named_parameters() if not bool(torch.isfinite(tensor).all())]
    if not math.isfinite(potential.scale):
        broken.append("scale")
    if not bool(torch.isfinite(potential.reference_energies).all()):
        broken.append("reference_energies")
    if broken:
        raise ValueError(
            f"the potential is not written: {broken[0]} has values that are not finite"
            + (f", and so have {len(broken) - 1} more" if len(broken) > 1 else "")
        )


def load_potential(path: Path | str) -> Potential:
    """Read a potential.

    Args:
        path: A potential file, or the name of a shipped potential.

    Returns:
        The potential in the dtype that it was saved with, on the CPU, in eval mode.

    Raises:
        FileNotFoundError, PotentialFileError: As :func:`ponita_ff.potential.header.read_content`.
    """
    path = find_potential(path)
    content = read_content(path)
    header = content.header
    try:
        tensors = {name: torch.from_numpy(array) for name, array in content.arrays.items()}
        domain = {name.removeprefix(DOMAIN): tensors.pop(name) for name in list(tensors) if name.startswith(DOMAIN)}
        with torch.random.fork_rng(devices=[]):  # first weights, soon overwritten, must not draw from the user's
            network = _NETWORKS[header["form"]](content.config, len(header["species"]))
        potential = Potential(
            network, header["species"], {}, header["scale"], header["zbl_cutoff"], metadata=header["metadata"]
        )
        potential.to(getattr(torch, header["dtype"]))
        # The grid and the rotations are part of the file, and may be more than the configuration's.
        for name in ("orientations", "orientation_weights"):
            potential.network.register_buffer(name, tensors[f"network.{name}"])
        potential.register_buffer("rotations", tensors["rotations"])
        potential.load_state_dict(tensors)
        if header.get("domain") is not None:
            potential.domain = TrainingDomain.from_parts(potential.species, header["domain"], domain)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise PotentialFileError(f"{path} does not describe a potential that this package can build: {error}") from None
    potential.file = path
    return potential.eval().requires_grad_(False)
