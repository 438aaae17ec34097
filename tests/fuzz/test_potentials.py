"""Potential files that are not as they were written: refused by name, or equal in all that they predict."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import molecule
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from ponita_ff.cli.info import command as info
from ponita_ff.potential.domain import TrainingDomain
from ponita_ff.potential.file import PotentialFileError, load_potential, save_potential
from ponita_ff.potential.header import DOMAIN, content_hash
from ponita_ff.potential.potential import Potential
from ponita_ff.provenance import arrays_hash
from ponita_ff.structure.graph import build_graph

Count = Callable[[str], None]
Header, Arrays = dict[str, Any], dict[str, NDArray[Any]]

WATER = molecule("H2O")
GRAPH = build_graph(WATER.numbers, WATER.positions, 4.0)


class Original:
    """A small potential with statistics of its training data, its file's content, and what it predicts."""

    def __init__(self, potential: Potential, path: Path) -> None:
        potential.domain = TrainingDomain.from_graphs([GRAPH], potential.species, potential.cutoff)
        save_potential(potential, path, {"name": "small", "data": {"train": 5}})
        self.path, self.content = path, path.read_bytes()
        length = int.from_bytes(self.content[:8], "little")
        self.header: Header = json.loads(json.loads(self.content[8 : 8 + length])["__metadata__"]["ponita_ff"])
        self.arrays: Arrays = load_tensors(self.content)
        self.predicted = predicted(potential)


@pytest.fixture(scope="module")
def original(make_potential: Callable[..., Potential], tmp_path_factory: pytest.TempPathFactory) -> Original:
    path = tmp_path_factory.mktemp("fuzz") / "small.safetensors"
    return Original(make_potential(channels=2, num_layers=1, l_max=1, num_ori=6, radial_hidden=2, radial_basis=2), path)


def predicted(potential: Potential) -> NDArray[np.float64]:
    found = potential(GRAPH)
    assert found.forces is not None
    return np.append(found.forces.numpy(), found.energies.numpy())


def outcome(original: Original, content: bytes) -> str:
    """What loading and printing such a file gives; neither may end in another way."""
    original.path.write_bytes(content)
    printed = CliRunner().invoke(info, [str(original.path)])
    assert printed.exit_code in (0, 1), printed.output
    assert printed.exit_code == 0 or original.path.name in printed.output
    try:
        potential = load_potential(original.path)
    except PotentialFileError as error:
        assert original.path.name in str(error) and len(str(error)) < 5000
        return "refused"
    assert printed.exit_code == 0
    values = predicted(potential)
    if not np.isfinite(values).all():  # of weights that are finite, and huge
        with pytest.raises(ValueError, match="not finite"):
            potential.evaluate([WATER])
        return "accepted, its predictions refused"
    return "accepted, equal" if np.array_equal(values, original.predicted) else "accepted, different"


def forged(header: Header, arrays: Arrays) -> bytes:
    """A file of this content with the hashes that belong to it."""
    weights = {name: array for name, array in arrays.items() if not name.startswith(DOMAIN)}
    domain = {name.removeprefix(DOMAIN): array for name, array in arrays.items() if name.startswith(DOMAIN)}
    if isinstance(header.get("domain"), dict):
        header["domain"]["sha256"] = arrays_hash(domain) if domain else None
    header["weights_sha256"] = arrays_hash(weights)
    header["sha256"] = content_hash(header, header["weights_sha256"])
    return save_tensors(arrays, metadata={"ponita_ff": json.dumps(header)})


#: Anything that JSON can say, huge and odd numbers often.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 130),
    st.sampled_from(
        [10**9, -(10**18), 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "auto", "float32", "[", "\ud800"]
    ),
    st.floats(),
    st.text(max_size=5),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places in nested values."""
    inner = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [place for key, value in inner for place in ((*path, key), *places(value, (*path, key)))]


def change(header: Header, draw: Callable[..., Any]) -> None:
    """Replace, remove or add one entry somewhere in a header."""
    *parents, last = draw(st.sampled_from(places(header)))
    section: Any = header
    for key in parents:
        section = section[key]
    action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
    if action == "replace":
        section[last] = draw(VALUES)
    elif action == "remove":
        del section[last]
    elif isinstance(section, dict):
        section[draw(st.text(max_size=8))] = draw(VALUES)


@given(data=st.data())
def test_forged_headers(data: st.DataObject, original: Original, count: Count) -> None:
    header = copy.deepcopy(original.header)
    for _ in range(data.draw(st.integers(1, 3))):
        change(header, data.draw)
    header.setdefault("format", original.header["format"])
    # A forger may make another potential of it; what no entry of its own says is not altered.
    free = ("scale", "zbl_cutoff", "network", "species", "dtype", "cutoff", "form")
    same = all(header.get(name) == original.header[name] for name in free)
    found = outcome(original, forged(header, dict(original.arrays)))
    assert found != "accepted, different" or not same
    count(found)


ODD = [np.nan, np.inf, 0.0, -1.0, 1e30]


@given(data=st.data())
def test_forged_tensors(data: st.DataObject, original: Original, count: Count) -> None:
    arrays = dict(original.arrays)
    name = data.draw(st.sampled_from(sorted(arrays)))
    array, action = (
        arrays[name],
        data.draw(st.sampled_from(["drop", "cut", "flatten", "type", "value", "name", "empty"])),
    )
    if action in ("drop", "name"):
        del arrays[name]
    if action == "name":
        arrays[data.draw(st.text(min_size=1, max_size=8))] = array
    if action == "cut":
        arrays[name] = array[:-1].copy()
    if action == "flatten":
        arrays[name] = array.reshape(-1)
    if action == "empty":
        arrays[name] = array[:0].copy()
    if action == "type":
        dtype = data.draw(st.sampled_from(["float16", "float32", "float64", "int64", "uint8", "bool"]))
        with np.errstate(all="ignore"):
            arrays[name] = array.astype(dtype)
    if action == "value":
        arrays[name] = array.copy()
        arrays[name].flat[data.draw(st.integers(0, array.size - 1))] = data.draw(
            st.sampled_from(ODD if array.dtype.kind == "f" else [-1, 0, 2**30])
        )
    try:
        count(outcome(original, forged(copy.deepcopy(original.header), arrays)))
    except UnicodeEncodeError:  # a name that the format itself cannot hold
        count("no file")


@given(data=st.data())
def test_flipped_bytes(data: st.DataObject, original: Original, count: Count) -> None:
    content = bytearray(original.content)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    found = outcome(original, bytes(content))
    assert found != "accepted, different"
    count(found)


@given(data=st.data())
def test_truncated_and_extended(data: st.DataObject, original: Original, count: Count) -> None:
    end = data.draw(st.integers(0, len(original.content)))
    found = outcome(original, original.content[:end] + data.draw(st.binary(max_size=20)))
    assert found != "accepted, different"
    count(found)


@given(content=st.binary(max_size=200))
def test_any_bytes(content: bytes, original: Original, count: Count) -> None:
    count(outcome(original, content))
