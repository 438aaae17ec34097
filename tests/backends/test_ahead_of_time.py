"""Packages: machine code that equals the eager potential at any size, and that is refused where it does not belong."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from click.testing import CliRunner
from owners import pretend_owner
from torch import Tensor
from torch._inductor import config as inductor_config

import ponita_ff.backends.ahead_of_time
from ponita_ff import PonitaCalculator
from ponita_ff.backends.ahead_of_time import AheadOfTimeError, compile_ahead_of_time, load_compiled
from ponita_ff.cli import main
from ponita_ff.energy.derivatives import predict
from ponita_ff.kernels.build import compiler
from ponita_ff.potential.file import save_potential
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.graph import INPUT_FIELDS, Graph, batch_graphs, build_graph

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C++ compiler here")

#: One small shape of network for all tests: tracing and compiling take half a minute. ZBL is in the potential that
#: test_compiled.py compiles by the same trace.
SMALL: dict[str, Any] = {"dtype": torch.float32, "channels": 8, "num_layers": 1, "l_max": 1, "num_ori": 6}

#: For the compiler: what computes for milliseconds need not be fast, and headers that are used once are not prepared;
#: torch neither looks for operators to replace, whose patterns take seconds to load, nor tries out vector instructions.
#: Vectorised code, with replaced operators, is compiled in test_compiled.py.
QUICK = {
    "aot_inductor.compile_wrapper_opt_level": "O0",
    "aot_inductor.precompile_headers": False,
    "cpp.simdlen": 1,
    "cpp.vec_isa_ok": True,
    "pattern_matcher": False,
}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder for notes of packages that is not the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ponita_ff.backends.ahead_of_time, "cache_folder", lambda: folder)
        yield folder


@pytest.fixture(scope="module")
def potential(make_potential: Callable[..., Potential]) -> Potential:
    return make_potential(**SMALL)


@pytest.fixture(scope="module")
def package(potential: Potential, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real package of the potential, made by the command, beside the potential's file."""
    path = tmp_path_factory.mktemp("package") / "small.safetensors"
    save_potential(potential, path)
    with inductor_config.patch(QUICK):
        result = CliRunner().invoke(main, ["compile", str(path)])
    assert result.exit_code == 0, result.output
    assert result.output == f"compiled: {path.with_suffix('.pt2')}\n"
    return path.with_suffix(".pt2")


def note(package: Path) -> None:
    """As if this user had made the package."""
    ponita_ff.backends.ahead_of_time._write_record(package.read_bytes())


def record_of(package: Path) -> Path:
    """The note that this user made the package."""
    return ponita_ff.backends.ahead_of_time._record(package.read_bytes())


@pytest.fixture
def codeless(potential: Potential, tmp_path: Path) -> Path:
    """A file with the metadata of the potential's package and no code in it: what is to be refused before loading."""
    path = tmp_path / "codeless.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        facts = json.dumps(ponita_ff.backends.ahead_of_time._facts(potential))
        archive.writestr("codeless/data/aotinductor/model/a.wrapper_metadata.json", facts)
    note(path)
    return path


def graph_of(atoms: Atoms, potential: Potential) -> Graph:
    cell = np.asarray(atoms.cell) if atoms.pbc.any() else None
    return build_graph(atoms.numbers, atoms.positions, potential.cutoff, cell, atoms.pbc)


def inputs(graph: Graph) -> list[Tensor]:
    return [graph[name] for name in INPUT_FIELDS]


def rattled(atoms: Atoms, repeat: tuple[int, int, int] = (1, 1, 1)) -> Atoms:
    atoms = atoms.repeat(repeat)
    atoms.rattle(0.05, seed=2)
    return atoms


def never(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("this must not be called")


def assert_equal(values: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Energies to 1e-6 of their size, forces to 1e-5 eV/Å, stress to 1e-6 eV/Å³."""
    assert len(values) == len(expected)
    for value, right, (rtol, atol) in zip(values, expected, [(1e-6, 0), (1e-6, 0), (0, 1e-5), (0, 1e-6)], strict=False):
        torch.testing.assert_close(value, right, rtol=rtol, atol=atol)


@needs_compiler
@pytest.mark.parametrize(
    ("name", "repeat"), [("crystal", (1, 1, 1)), ("crystal", (3, 2, 1)), ("two atoms in a tiny cell", (1, 1, 2))]
)
def test_periodic_systems_of_several_sizes_equal_the_eager_potential(
    name: str,
    repeat: tuple[int, int, int],
    potential: Potential,
    package: Path,
    make_system: Callable[[str], Atoms],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    function = load_compiled(potential, package)
    graph = graph_of(rattled(make_system(name), repeat), potential)
    expected = predict(potential, graph, forces=True, stress=True)
    monkeypatch.setattr(ponita_ff.backends.ahead_of_time, "predict", never)
    assert_equal(function(inputs(graph)), expected)
    # Large enough that the comparison means something.
    assert expected[2].abs().max() > 0.01
    assert expected[3].abs().max() > 1e-3


@needs_compiler
@pytest.mark.parametrize("name", ["H2O", "CH3CH2OH", "C6H6"])
def test_molecules_equal_the_eager_potential(
    name: str, potential: Potential, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = load_compiled(potential, package)
    atoms = rattled(molecule(name))
    graph = graph_of(atoms, potential)
    expected = predict(potential, graph, forces=True, stress=False)
    monkeypatch.setattr(ponita_ff.backends.ahead_of_time, "predict", never)
    # A molecule has no volume, and so no stress.
    assert_equal(function(inputs(graph))[:3], expected)
    assert expected[2].abs().max() > 0.01
    # Inputs need not lie in one piece.
    tensors = inputs(graph)
    tensors[0] = tensors[0].T.contiguous().T
    tensors[2] = tensors[2].T.contiguous().T
    assert not tensors[0].is_contiguous()
    assert_equal(function(tensors)[:3], expected)


@needs_compiler
def test_what_code_was_not_compiled_for_runs_eagerly(
    potential: Potential, package: Path, make_system: Callable[[str], Atoms], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    eager = predict

    def counted(self: Potential, graph: Graph, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        calls.append(graph.num_nodes)
        return eager(self, graph, *args, **kwargs)

    monkeypatch.setattr(ponita_ff.backends.ahead_of_time, "predict", counted)
    function = load_compiled(potential, package)
    crystal = graph_of(make_system("crystal"), potential)
    one = graph_of(make_system("one atom in a tiny cell"), potential)
    # Two atoms with a slot each; a single atom; two structures; a batch that has the wrong dtype.
    pair = graph_of(Atoms("CO", positions=[[0, 0, 0], [0.1, 0.2, 1.1]], cell=[9, 9, 9], pbc=True), potential)
    assert pair.neighbours.shape == (2, 1)
    other = crystal.clone()
    other.batch = other.batch.int()
    for graph in (pair, one, batch_graphs([crystal, one]), other):
        assert_equal(function(inputs(graph)), eager(potential, graph, True, True))
    assert calls == [2, 1, 5, 4]
    function(inputs(crystal))
    assert len(calls) == 4


@needs_compiler
def test_a_package_knows_what_it_was_made_for(potential: Potential, package: Path) -> None:
    facts = ponita_ff.backends.ahead_of_time._read_facts(package.read_bytes(), package)
    assert facts.items() >= ponita_ff.backends.ahead_of_time._facts(potential).items()
    assert facts["torch"] == torch.__version__


@needs_compiler
@pytest.mark.parametrize("stress", [False, True])
def test_the_compiled_backend_takes_the_package_beside_the_file(
    stress: bool, package: Path, make_system: Callable[[str], Atoms], monkeypatch: pytest.MonkeyPatch
) -> None:
    atoms = make_system("crystal")
    names = ["energy", "energies", "forces", *(["stress"] if stress else [])]
    eager = PonitaCalculator(package.with_suffix(".safetensors"), device="cpu", backend="eager")
    expected = [torch.as_tensor(eager.get_property(name, atoms)) for name in names]
    monkeypatch.setattr(ponita_ff.backends.ahead_of_time, "predict", never)
    compiled = PonitaCalculator(package.with_suffix(".safetensors"), device="cpu", backend="compiled")
    assert_equal(tuple(torch.as_tensor(compiled.get_property(name, atoms)) for name in names), tuple(expected))


@pytest.mark.parametrize(
    "reason", ["not compiled by this user", "dtype 'float32' instead of 'float64'", "damaged or not compiled code"]
)
def test_the_compiled_backend_goes_on_without_a_package_that_does_not_fit(
    reason: str,
    potential: Potential,
    codeless: Path,
    make_system: Callable[[str], Atoms],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr("ponita_ff.backends.compiled.make_fx", lambda function, **options: lambda *example: function)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", never)
    save_potential(potential, codeless.with_suffix(".safetensors"))
    if reason == "not compiled by this user":
        record_of(codeless).unlink()
    elif reason == "damaged or not compiled code":
        codeless.write_bytes(b"")
    file, dtype = codeless.with_suffix(".safetensors"), "float64" if "float64" in reason else None
    calculator = PonitaCalculator(file, device="cpu", dtype=dtype, backend="compiled")
    (record,) = caplog.records
    assert record.getMessage().startswith(f"the code compiled ahead of time is not used: {codeless}")
    assert reason in record.getMessage()
    eager = PonitaCalculator(file, device="cpu", dtype=dtype, backend="eager")
    assert calculator.get_forces(make_system("crystal")) == pytest.approx(
        eager.get_forces(make_system("crystal")), abs=1e-5
    )


def other_weights(potential: Potential) -> Potential:
    other = potential.clone()
    with torch.no_grad():
        next(other.network.parameters()).add_(1e-6)
    return other


def other_scale(potential: Potential) -> Potential:
    other = potential.clone()
    other.scale *= 2.0
    return other


def other_rotations(potential: Potential) -> Potential:
    other = potential.clone()
    other.average_rotations(2)
    return other


def assert_refused(
    potential: Potential,
    package: Path,
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    way_out: str = "make it again with 'ponita-ff compile'",
) -> None:
    """Refused before any of its code is loaded, with the reason and the way out."""
    monkeypatch.setattr(torch._inductor, "aoti_load_package", never)
    with pytest.raises(AheadOfTimeError, match=f"{named}.*{way_out}"):
        load_compiled(potential, package)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_weights, "made for potential '"),
        (other_scale, "made for potential '"),
        (other_rotations, "made for potential '"),
        (lambda potential: potential.clone().double(), "dtype 'float32' instead of 'float64'"),
    ],
)
def test_packages_of_other_potentials_are_refused(
    change: Callable[[Potential], Potential],
    named: str,
    potential: Potential,
    codeless: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert_refused(change(potential), codeless, named, monkeypatch)


@pytest.mark.parametrize(
    ("module", "name", "value", "named"),
    [
        (torch, "__version__", "1.0", "torch '.*' instead of '1.0'"),
        (ponita_ff.backends.ahead_of_time, "_processor", lambda: "abacus", "processor '.*' instead of 'abacus'"),
        (ponita_ff.backends.ahead_of_time, "_FORMAT", "papyrus", "format '.*' instead of 'papyrus'"),
        (Potential, "device", torch.device("cuda"), "device 'cpu' instead of 'cuda'"),
    ],
)
def test_packages_of_other_machines_are_refused(
    module: Any,
    name: str,
    value: Any,
    named: str,
    potential: Potential,
    codeless: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, name, value)
    assert_refused(potential, codeless, named, monkeypatch)


def test_packages_of_other_people_are_refused(
    potential: Potential, codeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_of(codeless).unlink()
    assert_refused(potential, codeless, "not compiled by this user", monkeypatch)


@pytest.mark.parametrize("place", ["cache", "packages", "record"])
@pytest.mark.parametrize("fault", ["writable", "foreign"])
def test_records_that_others_could_have_written_count_for_nothing(
    place: str, fault: str, potential: Potential, codeless: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = record_of(codeless)
    path = {"cache": own_cache, "packages": record.parent, "record": record}[place]
    mode = stat.S_IMODE(path.stat().st_mode)
    if fault == "writable":
        path.chmod(0o777)
    else:
        pretend_owner(monkeypatch, path, os.getuid() + 1)
    try:
        assert_refused(potential, codeless, f"{path.name} .*PONITA_FF_CACHE", monkeypatch, way_out="")
        with pytest.raises(AheadOfTimeError, match=f"{path.name} .*PONITA_FF_CACHE"):
            ponita_ff.backends.ahead_of_time._write_record(codeless.read_bytes())
    finally:
        path.chmod(mode)


@needs_compiler
def test_what_is_loaded_is_what_was_checked(
    potential: Potential, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file in its place, in the moment between, is not run."""
    path = tmp_path / "swapped.pt2"
    path.write_bytes(package.read_bytes())
    check = ponita_ff.backends.ahead_of_time._check_record

    def check_and_swap(content: bytes, where: Path) -> None:
        check(content, where)
        path.write_bytes(b"something else")

    monkeypatch.setattr(ponita_ff.backends.ahead_of_time, "_check_record", check_and_swap)
    load_compiled(potential, path)


def test_metadata_without_code_is_no_package(potential: Potential, codeless: Path) -> None:
    with pytest.raises(AheadOfTimeError, match="cannot be loaded"):
        load_compiled(potential, codeless)


def spoil(content: bytes) -> bytes:
    """One bit in the middle, which is machine code, is another."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@needs_compiler
@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], spoil], ids=["truncated", "spoilt"])
def test_damaged_packages_are_refused(
    damage: Callable[[bytes], bytes],
    potential: Potential,
    package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch._inductor, "aoti_load_package", never)
    path = tmp_path / "damaged.pt2"
    path.write_bytes(damage(package.read_bytes()))
    with pytest.raises(AheadOfTimeError, match="damaged or not compiled code"):
        load_compiled(potential, path)


def test_files_that_are_no_packages_are_refused(potential: Potential, tmp_path: Path) -> None:
    path = tmp_path / "foreign.pt2"
    with pytest.raises(FileNotFoundError, match=r"no compiled code .*foreign\.pt2"):
        load_compiled(potential, path)
    for content in (b"", b"PK and nothing else"):
        path.write_bytes(content)
        with pytest.raises(AheadOfTimeError, match="damaged or not compiled code"):
            load_compiled(potential, path)
    for name, text in (("holiday.txt", "sun"), ("a_metadata.json", "sun"), ("a_metadata.json", "[]")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, text)
        with pytest.raises(AheadOfTimeError, match="damaged or not compiled code"):
            load_compiled(potential, path)


def test_where_compiling_fails_the_old_file_stays(
    potential: Potential, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no C++ compiler\nand a long story")

    path = tmp_path / "old.pt2"
    path.write_text("old")
    monkeypatch.setattr(ponita_ff.backends.ahead_of_time, "make_fx", failing)
    with pytest.raises(AheadOfTimeError, match=r"^could not compile the potential: no C\+\+ compiler$"):
        compile_ahead_of_time(potential, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_only_a_cpu_potential_and_a_pt2_path_will_do(potential: Potential, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.pt2"):
        compile_ahead_of_time(potential, tmp_path / "package.zip")
    with pytest.raises(ValueError, match="for the CPU, but the potential is on meta"):
        compile_ahead_of_time(potential.clone().to("meta"), tmp_path / "package.pt2")
