"""Potential files: one safetensors file with tensors and JSON, versioned and hashed. Nothing in it can run code."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ponita_ff.files import write_atomically
from ponita_ff.network.config import PonitaConfig
from ponita_ff.network.ponita import Ponita
from ponita_ff.potential.domain import TrainingDomain
from ponita_ff.potential.potential import Potential
from ponita_ff.provenance import package_versions, weights_hash
from ponita_ff.published.network import PublishedConfig, PublishedPonita

__all__ = [
    "PotentialFileError",
    "find_potential",
    "load_potential",
    "name_before_version_3",
    "read_header",
    "save_potential",
    "shipped_potentials",
]

_FORMAT = "ponita_ff potential"
_VERSION = 4
_UNITS = {"energy": "eV", "length": "Angstrom", "stress": "eV/Angstrom^3"}


#: Network classes by the form that a file names.
_FORMS: dict[str, tuple[Any, Any]] = {
    "force-field": (PonitaConfig, Ponita),
    "published": (PublishedConfig, PublishedPonita),
}


def _add_self_weights(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Version 1 to 2: the convolution in space counts the atom itself; before, it did not."""
    if header["form"] != "force-field":
        return
    for name, bias in list(tensors.items()):
        if name.endswith(".convolution.bias"):
            tensors[name.removesuffix("bias") + "own"] = torch.zeros_like(bias)


#: Tensors that version 3 renamed, by the last part of their names: before, and now.
_RENAMED = {"own": "self_weight"}


def _rename_tensors(_: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Version 2 to 3: the names of today."""
    for name in list(tensors):
        parents, dot, leaf = name.rpartition(".")
        if leaf in _RENAMED:
            tensors[parents + dot + _RENAMED[leaf]] = tensors.pop(name)


def name_before_version_3(name: str) -> str:
    """A tensor's name in files of version 1 and 2, which hashes made then were made of."""
    parents, dot, leaf = name.rpartition(".")
    return parents + dot + {now: before for before, now in _RENAMED.items()}.get(leaf, leaf)


def _without_domain(header: dict[str, Any], _: dict[str, Tensor]) -> None:
    """Version 3 to 4: statistics of the training data, of which earlier files had none."""
    header["domain"] = None


#: From a version to the next.
_MIGRATIONS: dict[int, Callable[[dict[str, Any], dict[str, Tensor]], None]] = {
    1: _add_self_weights,
    2: _rename_tensors,
    3: _without_domain,
}

#: Names of the tensors of :class:`TrainingDomain` begin with this.
_DOMAIN = "domain."


class PotentialFileError(ValueError):
    """A file that is not a whole, unaltered potential of a version that this package reads."""


def _content_hash(header: Mapping[str, Any], weights: str) -> str:
    """SHA-256 of everything: the header without this hash, and the weights by theirs."""
    rest = {key: value for key, value in header.items() if key != "sha256"}
    return hashlib.sha256((json.dumps(rest, sort_keys=True) + weights).encode()).hexdigest()


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
        "format": _FORMAT,
        "version": _VERSION,
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
        tensors |= {_DOMAIN + name: tensor for name, tensor in potential.domain.tensors().items()}
    header["sha256"] = _content_hash(header, weights)
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


def read_header(path: Path | str) -> dict[str, Any]:
    """Header of a potential file or shipped potential, with the file's own hashes checked against its content.

    Raises:
        FileNotFoundError: When there is no such file.
        PotentialFileError: When it is empty, foreign, truncated, altered, or of an unknown version.
    """
    return _read(find_potential(path))[0]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no potential file {path}")
    if path.stat().st_size == 0:
        raise PotentialFileError(f"{path} is empty: copy or train it again")
    try:
        with safe_open(str(path), framework="pt") as file:
            raw = (file.metadata() or {}).get("ponita_ff")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise PotentialFileError(
            f"{path} is not a whole potential file ({error}). Potentials are .safetensors files made by "
            "'ponita-ff train' or 'ponita-ff import'; a pickled checkpoint (.pt, .model) is never loaded"
        ) from None
    try:
        header = json.loads(raw) if raw is not None else None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise PotentialFileError(f"{path} is a safetensors file, but not a ponita_ff potential")
    version = header.get("version")
    if type(version) is not int or (version != _VERSION and version not in _MIGRATIONS):
        raise PotentialFileError(f"{path} has file version {version}, this package reads {_VERSION}: update ponita_ff")
    domain = {name.removeprefix(_DOMAIN): t for name, t in tensors.items() if name.startswith(_DOMAIN)}
    weights = weights_hash({name: tensor for name, tensor in tensors.items() if not name.startswith(_DOMAIN)})
    facts = header.get("domain")
    altered = header.get("weights_sha256") != weights or header.get("sha256") != _content_hash(header, weights)
    altered |= (facts.get("sha256") if isinstance(facts, dict) else None) != (weights_hash(domain) if domain else None)
    if altered:
        raise PotentialFileError(f"{path} was altered after it was written (SHA-256 does not match): get it again")
    return header, tensors


def load_potential(path: Path | str) -> Potential:
    """Read a potential.

    Args:
        path: A potential file, or the name of a shipped potential.

    Returns:
        The potential in the dtype that it was saved with, on the CPU, in eval mode.

    Raises:
        FileNotFoundError, PotentialFileError: As :func:`read_header`.
    """
    path = find_potential(path)
    header, tensors = _read(path)
    try:
        for version in range(header["version"], _VERSION):
            _MIGRATIONS[version](header, tensors)
        domain = {name.removeprefix(_DOMAIN): tensors.pop(name) for name in list(tensors) if name.startswith(_DOMAIN)}
        config_class, network_class = _FORMS[header["form"]]
        species = [int(z) for z in header["species"]]
        with torch.random.fork_rng(devices=[]):  # first weights, soon overwritten, must not draw from the user's
            network = network_class(config_class.model_validate(header["network"]), len(species))
        potential = Potential(network, species, {}, header["scale"], header["zbl_cutoff"], metadata=header["metadata"])
        potential.to(getattr(torch, header["dtype"]))
        # The grid and the rotations are part of the file, and may be more than the configuration's.
        for name in ("orientations", "orientation_weights"):
            if f"network.{name}" in tensors:
                potential.network.register_buffer(name, tensors[f"network.{name}"])
        potential.register_buffer("rotations", tensors["rotations"])
        potential.load_state_dict(tensors)
        potential.file = path
        if header["domain"] is not None:
            potential.domain = TrainingDomain.from_parts(species, header["domain"], domain)
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise PotentialFileError(f"{path} does not describe a potential that this package can build: {error}") from None
    return potential.eval().requires_grad_(False)


def shipped_potentials() -> dict[str, Path]:
    """Shipped potentials by name: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    found: dict[str, Path] = {}
    for folder in (package.parent / "potentials", package / "potentials"):
        for path in sorted(folder.glob("*/potential.safetensors")):
            found[path.parent.name] = path
    return found


def find_potential(name: str | Path) -> Path:
    """Path of a potential file, given as such or as the name of a shipped potential.

    Raises:
        FileNotFoundError: When it is neither; the message lists the shipped names.
    """
    path, shipped = Path(name), shipped_potentials()
    if str(name) in shipped and not path.is_file():
        return shipped[str(name)]
    if not path.is_file():
        names = ", ".join(shipped) or "none"
        raise FileNotFoundError(f"{str(name)!r} is neither a file nor a shipped potential; shipped are: {names}")
    return path
