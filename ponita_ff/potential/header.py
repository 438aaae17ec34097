"""Reads and checks potential files; without torch, so that what only shows them need not wait for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError, safe_open

from ponita_ff.files import is_file
from ponita_ff.network.config import FORM_CONFIGS, FormConfig, GridConfig
from ponita_ff.provenance import arrays_hash
from ponita_ff.published.config import PublishedConfig
from ponita_ff.settings import shown, wrong_fields

__all__ = [
    "DOMAIN",
    "FORMAT",
    "VERSION",
    "PotentialContent",
    "PotentialFileError",
    "content_hash",
    "fact",
    "find_potential",
    "name_before_version_3",
    "read_content",
    "read_header",
    "shipped_potentials",
]

FORMAT = "ponita_ff potential"
VERSION = 4

#: Names of the tensors of the statistics of the training data begin with this (domain.py).
DOMAIN = "domain."

Arrays = dict[str, NDArray[Any]]

#: Tensors of a network that are no weights: the grid, which may be another than the configuration's.
_GRID = frozenset({"network.orientations", "network.orientation_weights"})

#: Configs of networks by the form that a file names.
_CONFIGS: dict[str, type[FormConfig] | type[PublishedConfig]] = {**FORM_CONFIGS, "published": PublishedConfig}

#: How far a rotation in a file may be from orthogonal.
_ORTHOGONAL = 1e-6


class PotentialFileError(ValueError):
    """A file that is not a whole, unaltered potential of a version that this package reads."""


@dataclass(frozen=True)
class PotentialContent:
    """What a potential file holds, checked.

    Attributes:
        header: As it is in the file.
        config: The network's.
        arrays: Weights and buffers by their present names.
    """

    header: dict[str, Any]
    config: FormConfig | PublishedConfig
    arrays: Arrays


class _Header(BaseModel):
    """Types and ranges of a header's entries; what is not listed is for people to read."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    form: str
    species: Annotated[list[Annotated[int, Field(ge=1, le=118)]], Field(min_length=1)]
    cutoff: float | None
    network: dict[str, Any]
    scale: float
    zbl_cutoff: Annotated[float, Field(gt=0)] | None
    dtype: Literal["float16", "float32", "float64"]
    units: dict[str, str]
    versions: dict[str, str]
    metadata: dict[str, Any]
    domain: dict[str, Any] | None = None

    @field_validator("form")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in _CONFIGS:
            raise ValueError(f"must be one of {', '.join(_CONFIGS)}; a newer ponita_ff may know it")
        return value

    @field_validator("species")
    @classmethod
    def _ascending(cls, value: list[int]) -> list[int]:
        if value != sorted(set(value)):
            raise ValueError("must be distinct ascending atomic numbers")
        return value


# ------------------------------------------------------------------------------------------ older versions


def _add_self_weights(header: Mapping[str, Any], arrays: Arrays) -> None:
    """Version 1 to 2: the convolution in space counts the atom itself; before, it did not."""
    if header["form"] != "force-field":
        return
    for name, bias in list(arrays.items()):
        if name.endswith(".convolution.bias"):
            arrays[name.removesuffix("bias") + "own"] = np.zeros_like(bias)


#: Tensors that version 3 renamed, by the last part of their names: before, and now.
_RENAMED = {"own": "self_weight"}


def _rename_tensors(_: Mapping[str, Any], arrays: Arrays) -> None:
    """Version 2 to 3: the names of today."""
    for name in list(arrays):
        parents, dot, leaf = name.rpartition(".")
        if leaf in _RENAMED:
            arrays[parents + dot + _RENAMED[leaf]] = arrays.pop(name)


def name_before_version_3(name: str) -> str:
    """A tensor's name in files of version 1 and 2, which hashes made then were made of."""
    parents, dot, leaf = name.rpartition(".")
    return parents + dot + {now: before for before, now in _RENAMED.items()}.get(leaf, leaf)


def _without_domain(_: Mapping[str, Any], __: Arrays) -> None:
    """Version 3 to 4: statistics of the training data, of which earlier files had none."""


#: From a version to the next.
_MIGRATIONS: dict[int, Callable[[Mapping[str, Any], Arrays], None]] = {
    1: _add_self_weights,
    2: _rename_tensors,
    3: _without_domain,
}


# -------------------------------------------------------------------------------------------------- reading


def read_header(path: Path | str) -> dict[str, Any]:
    """Header of a potential file or shipped potential, checked as :func:`read_content` does.

    Raises:
        FileNotFoundError, PotentialFileError: As :func:`read_content`.
    """
    return read_content(path).header


def read_content(path: Path | str) -> PotentialContent:
    """Content of a potential file or shipped potential; hashes, types, and the sizes of the weights are checked.

    Raises:
        FileNotFoundError: When there is no such file.
        PotentialFileError: When it is empty, foreign, truncated, altered, of an unknown version, or describes another
            network than the one whose weights it has.
    """
    path = find_potential(path)
    raw, arrays = _read(path)
    header = _checked_header(raw, arrays, path)
    try:
        _Header.model_validate(header)
        config = _CONFIGS[header["form"]].model_validate(header["network"])
    except ValidationError as error:
        raise _unusable(path, f"its header is wrong:\n{wrong_fields(error)}") from None
    for version in range(header["version"], VERSION):
        _MIGRATIONS[version](header, arrays)
    content = PotentialContent(header, config, arrays)
    problem = next(_problems(content), None)
    if problem:
        raise _unusable(path, problem)
    return content


def _unusable(path: Path, problem: str) -> PotentialFileError:
    return PotentialFileError(f"{path} does not describe a potential that this package can build: {problem}")


def _read(path: Path) -> tuple[str | None, Arrays]:
    """Text of the header and the tensors."""
    if path.stat().st_size == 0:
        raise PotentialFileError(f"{path} is empty: copy or train it again")
    try:
        with safe_open(str(path), framework="np") as file:
            raw = (file.metadata() or {}).get("ponita_ff")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except Exception as error:  # SafetensorError, and whatever it raises for dtypes that numpy does not have
        reason = error if isinstance(error, SafetensorError | OSError) else f"{type(error).__name__}: {error}"
        raise PotentialFileError(
            f"{path} is not a whole potential file ({reason}). Potentials are .safetensors files made by "
            "'ponita-ff train' or 'ponita-ff import'; a pickled checkpoint (.pt, .model) is never loaded"
        ) from None
    return raw, arrays


def _checked_header(raw: str | None, arrays: Arrays, path: Path) -> dict[str, Any]:
    """The header, if it is one of a version that is known, and if it and the weights are what was written."""
    try:
        header = json.loads(raw) if raw is not None else None
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise PotentialFileError(f"{path} is a safetensors file, but not a ponita_ff potential")
        version = header.get("version")
        if type(version) is not int or (version != VERSION and version not in _MIGRATIONS):
            raise PotentialFileError(
                f"{path} has file version {shown(version)}, this package reads {VERSION}: update ponita_ff"
            )
        domain = {name.removeprefix(DOMAIN): array for name, array in arrays.items() if name.startswith(DOMAIN)}
        weights = arrays_hash({name: array for name, array in arrays.items() if not name.startswith(DOMAIN)})
        altered = header.get("weights_sha256") != weights or header.get("sha256") != content_hash(header, weights)
        if altered or fact(header, "domain", "sha256") != (arrays_hash(domain) if domain else None):
            raise PotentialFileError(f"{path} was altered after it was written (SHA-256 does not match): get it again")
    except PotentialFileError:
        raise
    except (ValueError, RecursionError):  # no JSON, or nested too deeply for Python's reader or writer of JSON
        raise PotentialFileError(f"{path} is a safetensors file, but not a ponita_ff potential") from None
    return header


def content_hash(header: Mapping[str, Any], weights: str) -> str:
    """SHA-256 of everything: the header without this hash, and the weights by theirs."""
    rest = {key: value for key, value in header.items() if key != "sha256"}
    return hashlib.sha256((json.dumps(rest, sort_keys=True) + weights).encode()).hexdigest()


def _problems(content: PotentialContent) -> Any:
    """What does not fit together, before any memory is taken for it."""
    header, config, arrays = content.header, content.config, content.arrays
    number = len(header["species"])
    for name in ("reference_energies", "rotations", *sorted(_GRID)):
        if name not in arrays:
            yield f"there is no tensor {name}"
            return
    for name, array in arrays.items():
        if not name.startswith(DOMAIN) and (array.dtype.kind != "f" or not np.isfinite(array).all()):
            yield f"{name} has values that are not finite numbers"
    weights = sum(a.size for name, a in arrays.items() if name.startswith("network.") and name not in _GRID)
    if weights != config.num_weights(number):
        yield f"a network of its settings has {config.num_weights(number)} weights, and {weights} are there"
    if header["cutoff"] != config.cutoff:
        yield f"cutoff is {header['cutoff']}, and of its network {config.cutoff}"
    if arrays["reference_energies"].shape != (number,):
        yield f"{number} species have {arrays['reference_energies'].size} reference energies"
    grid, quadrature, rotations = (arrays[name] for name in (*sorted(_GRID, reverse=True), "rotations"))
    yield from _grid_problems(config, grid, quadrature)
    if rotations.ndim != 3 or len(rotations) == 0 or rotations.shape[1:] != (3, 3):
        yield f"rotations have the shape {rotations.shape}, not (number, 3, 3)"
    elif np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max() > _ORTHOGONAL:
        yield "rotations has matrices that are no rotations"


def _grid_problems(config: FormConfig | PublishedConfig, grid: NDArray[Any], quadrature: NDArray[Any]) -> Any:
    size = config.grid_size
    any_grid = isinstance(config, GridConfig) and config.num_ori > 0
    if grid.ndim != 2 or grid.shape[1] != 3 or quadrature.shape != grid.shape[:1]:
        yield f"orientations and their weights have the shapes {grid.shape} and {quadrature.shape}"
    elif len(grid) == 0 or (len(grid) != size and not any_grid):
        yield f"a network of its settings has {size} orientations, and {len(grid)} are there"


def fact(metadata: Mapping[str, Any], *names: str) -> Any:
    """An entry of nested metadata, which anybody may have written; None where there is none."""
    value: Any = metadata
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


# --------------------------------------------------------------------------------------------------- places


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
    path = Path(name)
    if is_file(path):
        return path
    shipped = shipped_potentials()
    if str(name) in shipped:
        return shipped[str(name)]
    names = ", ".join(shipped) or "none"
    raise FileNotFoundError(f"{shown(str(name))} is neither a file nor a shipped potential; shipped are: {names}")
