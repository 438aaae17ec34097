"""Potential files: what goes in comes out, and nothing else is ever taken for one."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import molecule
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ponita_ff.files import write_atomically
from ponita_ff.potential import file as checkpoint
from ponita_ff.potential import header as header_module
from ponita_ff.potential.domain import TrainingDomain
from ponita_ff.potential.file import PotentialFileError, find_potential, load_potential, read_header, save_potential
from ponita_ff.potential.header import content_hash
from ponita_ff.potential.potential import Potential
from ponita_ff.provenance import weights_hash
from ponita_ff.structure.graph import batch_graphs, build_graph

FILES = Path(__file__).parents[1] / "files"

Edit = Callable[[dict[str, Any], dict[str, Tensor]], None]


@pytest.fixture
def path(tmp_path: Path, make_potential: Callable) -> Path:
    """A small potential file."""
    file = tmp_path / "potential.safetensors"
    save_potential(make_potential(channels=4, num_layers=1, l_max=1, num_ori=6), file, {"name": "small"})
    return file


def read_raw(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors, without any check."""
    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["ponita_ff"]), tensors


def rewrite(path: Path, edit: Edit, consistent: bool = True) -> None:
    """Change a file's content, and make its hashes match what they then cover."""
    header, tensors = read_raw(path)
    edit(header, tensors)
    if consistent:
        header["weights_sha256"] = weights_hash(tensors)
        header["sha256"] = content_hash(header, header["weights_sha256"])
    save_file(tensors, str(path), metadata={"ponita_ff": json.dumps(header)})


# ------------------------------------------------------------------------------------------ round trip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["plain", "PNITA", "finer grid", "rotations", "ZBL"])
def test_round_trip_is_bitwise(kind: str, dtype: torch.dtype, tmp_path: Path, make_potential, make_system) -> None:
    options: dict[str, dict[str, Any]] = {"PNITA": {"num_ori": 0}, "ZBL": {"zbl_cutoff": 1.3}}
    potential: Potential = make_potential(dtype=dtype, scale=0.7, **options.get(kind, {}))
    if kind == "finer grid":
        potential.set_grid(32)
    if kind == "rotations":
        potential.average_rotations(3)
    file = tmp_path / "a.safetensors"
    save_potential(potential, file)
    again = load_potential(file)

    before, after = potential.state_dict(), again.state_dict()
    assert list(before) == list(after)
    for name in before:
        assert before[name].dtype == after[name].dtype, name
        assert torch.equal(before[name], after[name]), name
    for name in ("species", "scale", "zbl_cutoff", "cutoff", "dtype"):
        assert getattr(potential, name) == getattr(again, name), name
    atoms = make_system("crystal")
    graph = build_graph(atoms.numbers, atoms.positions, 4.0, np.asarray(atoms.cell), atoms.pbc)
    one, other = potential(graph, stress=True), again(graph, stress=True)
    for name in ("energy", "energies", "forces", "stress"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_reading_does_not_depend_on_the_default_dtype(path: Path) -> None:
    graph = build_graph(np.array([6, 1]), np.array([[0, 0, 0], [0, 0, 1.1]]), 4.0)
    expected = load_potential(path)(graph).energy
    torch.set_default_dtype(torch.float64)
    try:
        energy = load_potential(path)(graph).energy
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(energy, expected)


def test_saving_twice_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    save_potential(load_potential(path), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_written(value: float, path: Path) -> None:
    before = path.read_bytes()
    potential = load_potential(path)
    with torch.no_grad():
        potential.network.embedding.weight[0, 0] = value
    with pytest.raises(ValueError, match=r"not written: network\.embedding\.weight has values that are not finite"):
        save_potential(potential, path)
    assert path.read_bytes() == before


def test_header_says_what_the_potential_is(path: Path) -> None:
    header = read_header(path)
    assert header["form"] == "force-field"
    assert header["species"] == [1, 6, 8]
    assert header["cutoff"] == 4.0
    assert header["network"]["num_ori"] == 6
    assert header["dtype"] == "float64"
    assert header["scale"] == 1.0
    assert header["zbl_cutoff"] is None
    assert header["units"] == {"energy": "eV", "length": "Angstrom", "stress": "eV/Angstrom^3"}
    assert header["metadata"] == {"name": "small"}
    assert {"python", "torch", "ase", "numpy"} <= set(header["versions"])
    assert all(re.fullmatch("[0-9a-f]{64}", header[name]) for name in ("sha256", "weights_sha256"))


def test_metadata_travels_with_the_potential(path: Path, tmp_path: Path) -> None:
    potential = load_potential(path)
    save_potential(potential, tmp_path / "b.safetensors", {"errors": {"forces": 0.01}, "of": "Ångström"})
    again = load_potential(tmp_path / "b.safetensors")
    assert again.metadata == {"name": "small", "errors": {"forces": 0.01}, "of": "Ångström"}


def test_weights_hash_is_stable_and_sensitive(path: Path) -> None:
    tensors = load_potential(path).state_dict()
    first = weights_hash(tensors)
    assert first == weights_hash(dict(reversed(tensors.items()))) == read_header(path)["weights_sha256"]
    name = "network.embedding.weight"
    nudged = tensors[name].clone()
    nudged[1, 2] = torch.nextafter(nudged[1, 2], torch.tensor(torch.inf, dtype=nudged.dtype))
    others: list[dict[str, Tensor]] = [
        {**tensors, name: nudged},
        {**tensors, name: tensors[name].float()},
        {**tensors, name: tensors[name].reshape(-1, 3)},
        {**tensors, "another": nudged},
        {key: value for key, value in tensors.items() if key != name},
        {("x" if key == name else key): value for key, value in tensors.items()},
    ]
    assert len({first, *map(weights_hash, others)}) == 1 + len(others)


# ------------------------------------------------------------------------------------ files to refuse


def refused(path: Path, match: str = "") -> None:
    """Both ways of reading refuse the file and name it."""
    for read in (read_header, load_potential):
        with pytest.raises(PotentialFileError, match=f"(?s){re.escape(path.name)}.*{match}"):
            read(path)


@pytest.mark.parametrize("keep", [1, 7, 8, 9, 100, 0.3, 0.6, 0.99, -8, -1])
def test_truncated(keep: float, path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else int(keep)])
    refused(path, "not a whole potential file")


def test_bytes_at_the_end(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")
    refused(path)


def test_every_flipped_byte_is_noticed(path: Path) -> None:
    content = path.read_bytes()
    header_end = 8 + int.from_bytes(content[:8], "little")
    generator = np.random.default_rng(0)
    # All over the file, and as many in its much shorter header.
    places = [*range(8), *generator.integers(8, header_end, 100), *generator.integers(header_end, len(content), 100)]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(flipped)
        try:
            read_header(path)
        except PotentialFileError as error:
            assert path.name in str(error)
            continue
        # JSON spells some things in two ways (1e-05 and 1E-05): unnoticed only where nothing has changed.
        now, (header, tensors) = load_potential(path), read_raw(path)
        path.write_bytes(content)
        before = read_raw(path)
        assert header == before[0], place
        assert all(torch.equal(tensors[name], before[1][name]) for name in before[1]), place
        assert now.scale == header["scale"]


def test_empty(path: Path) -> None:
    path.write_bytes(b"")
    refused(path, "is empty")


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes(seed: int, path: Path) -> None:
    path.write_bytes(np.random.default_rng(seed).bytes(10 ** (seed + 1)))
    refused(path)


def test_foreign_safetensors(path: Path) -> None:
    for metadata in (None, {"format": "pt"}, {"ponita_ff": "[1, 2]"}, {"ponita_ff": "{"}, {"ponita_ff": "[" * 10**5}):
        save_file({"x": torch.zeros(3)}, str(path), metadata=metadata)
        refused(path, "not a ponita_ff potential")


@pytest.mark.parametrize("kind", ["pickle", "torch", "torch, old"])
def test_pickle_is_never_executed(kind: str, path: Path, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "harmed",)

    if kind == "pickle":
        path.write_bytes(pickle.dumps(Harm()))
    else:
        torch.save({"state_dict": Harm()}, path, _use_new_zipfile_serialization=kind == "torch")
    refused(path, "pickle")
    assert not (tmp_path / "harmed").exists()
    if kind == "pickle":
        pickle.loads(path.read_bytes())  # the trap works
        assert (tmp_path / "harmed").exists()


@pytest.fixture
def path_with_domain(tmp_path: Path, make_potential: Callable) -> Path:
    """A small potential file with statistics of its training data."""
    potential = make_potential(channels=4, num_layers=1, l_max=1, num_ori=6)
    atoms = molecule("CH3CH2OH")
    graph = batch_graphs([build_graph(atoms.numbers, atoms.positions, potential.cutoff)] * 4)
    potential.domain = TrainingDomain.from_graphs([graph], potential.species, potential.cutoff)
    file = tmp_path / "with-domain.safetensors"
    save_potential(potential, file)
    return file


def test_statistics_of_the_training_data_come_back(path_with_domain: Path) -> None:
    potential = load_potential(path_with_domain)
    assert potential.domain is not None
    again = path_with_domain.with_name("again.safetensors")
    save_potential(potential, again)
    first, second = (read_header(each)["domain"] for each in (path_with_domain, again))
    assert first == second
    assert first["frames"] == 4
    assert load_potential(again).domain is not None


@pytest.mark.parametrize("name", ["domain.limits", "domain.whitening"])
def test_altered_statistics_are_refused(path_with_domain: Path, name: str) -> None:
    header, tensors = read_raw(path_with_domain)
    tensors[name] = tensors[name] + 1
    save_file(tensors, str(path_with_domain), metadata={"ponita_ff": json.dumps(header)})
    refused(path_with_domain, "altered")


def test_removed_statistics_are_refused(path_with_domain: Path) -> None:
    header, tensors = read_raw(path_with_domain)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("domain.")}
    save_file(kept, str(path_with_domain), metadata={"ponita_ff": json.dumps(header)})
    refused(path_with_domain, "altered")


def test_future_version_asks_for_an_update(path: Path) -> None:
    rewrite(path, lambda header, _: header.update(version=5))
    refused(path, "version 5.*update")


@pytest.mark.parametrize("version", [None, "1", 1.5, [1], {}])
def test_version_that_is_no_number_is_refused(path: Path, version: Any) -> None:
    rewrite(path, lambda header, _: header.update(version=version))
    refused(path, "version")


@pytest.mark.parametrize("version", [1, 2, 3])
def test_older_versions_give_what_they_gave(version: int, tmp_path: Path) -> None:
    """Each file was made by the package of that time, which wrote down the energy that it gave."""
    path = FILES / f"version{version}.safetensors"
    assert read_header(path)["version"] == version
    potential = load_potential(path)
    expected = potential.metadata["energy_of_ethanol"]
    atoms = molecule("CH3CH2OH")
    assert potential.evaluate([atoms]).energies[0] == pytest.approx(expected, rel=1e-12)
    assert potential.domain is None
    save_potential(potential, tmp_path / "now.safetensors")
    assert read_header(tmp_path / "now.safetensors")["version"] == 4
    again = load_potential(tmp_path / "now.safetensors").evaluate([atoms]).energies[0]
    assert again == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 2.0},
        {"species": [1, 6, 7]},
        {"cutoff": 3.0},
        {"zbl_cutoff": 1.0},
        {"units": {}},
        {"metadata": {"name": "better"}},
        {"sha256": "0" * 64},
        {"weights_sha256": None},
    ],
)
def test_altered_header(change: dict[str, Any], path: Path) -> None:
    rewrite(path, lambda header, _: header.update(change), consistent=False)
    refused(path, "was altered")


def test_altered_weight(path: Path) -> None:
    rewrite(path, lambda _, tensors: tensors["reference_energies"].add_(1e-9), consistent=False)
    refused(path, "was altered")


@pytest.mark.parametrize(
    "name", ["reference_energies", "rotations", "network.orientations", "network.embedding.weight"]
)
def test_missing_tensor(name: str, path: Path) -> None:
    rewrite(path, lambda _, tensors: tensors.__delitem__(name), consistent=False)
    refused(path, "was altered")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("reference_energies", "there is no tensor reference_energies"),
        ("rotations", "there is no tensor rotations"),
        ("network.orientations", r"there is no tensor network\.orientations"),
        ("network.embedding.weight", "a network of its settings has [0-9]+ weights, and [0-9]+ are there"),
    ],
)
def test_missing_tensor_in_a_consistent_file(name: str, said: str, path: Path) -> None:
    rewrite(path, lambda _, tensors: tensors.__delitem__(name))
    refused(path, said)


@pytest.mark.parametrize(
    "change",
    [
        {"form": "another"},
        {"species": [6, 1, 8]},
        {"species": None},
        {"species": [1, 6]},
        {"scale": "much"},
        {"zbl_cutoff": "short"},
        {"dtype": "int64"},
        {"dtype": "no_such"},
        {"dtype": "save"},
        {"metadata": 3},
        {"network": {"form": "force-field", "layers": 3}},
        {"network": {"num_ori": 7}},
    ],
)
def test_consistent_file_that_describes_no_potential(change: dict[str, Any], path: Path) -> None:
    rewrite(path, lambda header, _: header.update(change))
    with pytest.raises(PotentialFileError, match=path.name):
        load_potential(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"network": {"num_layers": 10**9}}, "num_layers.*less than or equal to 1000"),
        ({"network": {"channels": 10**15}}, r"the network would have .* weights"),
        ({"network": {"channels": 8, "num_layers": 900}}, "a network of its settings has [0-9]+ weights, and 3101 are"),
        ({"network": {"cutoff": 3.0}}, "cutoff is 4.0, and of its network 3.0"),
        ({"species": [1, 6]}, "weights"),
        ({"species": [1, 6, "8"]}, r"species\.2"),
        ({"species": [1, 8, 6]}, "species.*ascending"),
        ({"species": [1, 6, 119]}, r"species\.2"),
        ({"scale": True}, "scale"),
        ({"scale": float("inf")}, "scale"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"units": ["eV"]}, "units"),
        ({"versions": {"torch": 2}}, "versions"),
        ({"metadata": None}, "metadata"),
        ({"domain": 5}, "altered|domain"),
    ],
)
def test_a_forged_header_is_refused_by_name_before_memory_is_taken(
    change: dict[str, Any], said: str, path: Path
) -> None:
    def forge(header: dict[str, Any], _: Any) -> None:
        network = {**header["network"], **change.get("network", {})}
        header.update({**change, "network": network})

    rewrite(path, forge)
    refused(path, said)


@pytest.mark.parametrize("missing", ["form", "species", "network", "scale", "units", "versions", "metadata", "dtype"])
def test_a_header_without_an_entry(missing: str, path: Path) -> None:
    rewrite(path, lambda header, _: header.__delitem__(missing))
    refused(path, f"{missing}: Field required")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("rotations", torch.ones(1, 3, 3, dtype=torch.float64), "rotations has .* no rotations"),
        ("rotations", torch.ones(3, dtype=torch.float64), "shape"),
        ("rotations", torch.ones(0, 3, 3, dtype=torch.float64), "shape"),
        ("reference_energies", torch.ones(2, dtype=torch.float64), "3 species have 2 reference energies"),
        (
            "reference_energies",
            torch.full((3,), torch.nan, dtype=torch.float64),
            "reference_energies has .* not finite",
        ),
        ("network.orientations", torch.ones(6, dtype=torch.float64), "shapes"),
        ("network.orientation_weights", torch.ones(5, dtype=torch.float64), "shapes"),
        (
            "network.embedding.weight",
            torch.full((3, 4), torch.inf, dtype=torch.float64),
            "embedding.weight has .* not finite",
        ),
        ("network.embedding.weight", torch.ones(3, 4, dtype=torch.int64), "embedding.weight has .* not finite numbers"),
    ],
)
def test_a_forged_tensor_is_refused_by_name(name: str, value: Tensor, said: str, path: Path) -> None:
    rewrite(path, lambda _, tensors: tensors.update({name: value}))
    refused(path, said)


def test_dtypes_that_numpy_does_not_have(path: Path) -> None:
    header, tensors = read_raw(path)
    tensors["network.embedding.weight"] = tensors["network.embedding.weight"].bfloat16()
    save_file(tensors, str(path), metadata={"ponita_ff": json.dumps(header)})
    refused(path)


@pytest.mark.parametrize("name", ["x" * 5000, "a/" * 3000, "a\0b"])
def test_a_name_that_no_file_can_have(name: str) -> None:
    for read in (read_header, load_potential):
        with pytest.raises(FileNotFoundError, match="neither a file nor a shipped potential") as caught:
            read(name)
        assert len(str(caught.value)) < 1000


def test_reading_a_header_loads_no_torch(path: Path) -> None:
    program = (
        "import sys; from ponita_ff.potential.header import read_header; read_header(sys.argv[1]);"
        " print({'torch', 'torch_geometric', 'scipy', 'h5py'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_no_such_file_and_a_folder(tmp_path: Path) -> None:
    for name in (tmp_path / "nothing.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match=re.escape(str(name))):
            load_potential(name)


# --------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("enforce fail")])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(error: Exception, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise error

    with pytest.raises(OSError, match=re.escape(str(file))) as caught:
        write_atomically(file, write)
    assert caught.value.errno == (errno.ENOSPC if isinstance(error, OSError) else errno.EIO)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")

    def write(temporary: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, write)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_while_saving(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()
    potential = load_potential(path)

    def full(tensors: dict[str, Tensor], name: str, metadata: dict[str, str]) -> None:
        Path(name).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match=f"{path.name}.*No space left"):
        save_potential(potential, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_written(path: Path) -> None:
    # Below a regular file: permissions do not stop root, this does.
    with pytest.raises(OSError, match=r"cannot write .*sub/x\.safetensors"):
        save_potential(load_potential(path), path / "sub" / "x.safetensors")


def test_a_path_that_is_a_folder(path: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"cannot write .*folder"):
        save_potential(load_potential(path), tmp_path / "folder")
    assert list((tmp_path / "folder").iterdir()) == []


def test_missing_folders_are_made(path: Path, tmp_path: Path) -> None:
    save_potential(load_potential(path), tmp_path / "a" / "b" / "c.safetensors")
    assert read_header(tmp_path / "a" / "b" / "c.safetensors") == read_header(path)


# --------------------------------------------------------------------------------------------- finding


def test_unknown_name_lists_the_shipped_ones(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_module, "shipped_potentials", lambda: {"water-one": path, "silica": path})
    with pytest.raises(FileNotFoundError, match=r"'etanol'.*water-one, silica"):
        find_potential("etanol")
    assert find_potential("silica") == path
    assert find_potential(str(path)) == path


def test_shipped_potentials_are_found_by_the_name_of_their_folder() -> None:
    folder = Path(checkpoint.__file__).parents[2] / "potentials"
    present = sorted(file.parent.name for file in folder.glob("*/potential.safetensors"))
    if not present:
        pytest.skip("no potential is shipped with this copy")
    for name in present:
        assert find_potential(name).parent.name == name
        assert read_header(find_potential(name))["format"] == "ponita_ff potential"
    with pytest.raises(FileNotFoundError, match=present[0]):
        find_potential("no-such-potential")
