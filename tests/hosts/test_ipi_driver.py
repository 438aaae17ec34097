"""i-PI: the calculator's numbers in atomic units, one batch for all beads, a run of i-PI, what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.io import write

from ponita_ff.calculator import PonitaCalculator
from ponita_ff.potential.file import PotentialFileError, save_potential
from ponita_ff.potential.potential import Potential

pytest.importorskip("ipi", reason="needs pip install 'ponita-ff[ipi]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from ipi.utils.units import unit_to_user

    from ponita_ff.hosts import ipi_driver
    from ponita_ff.hosts.batched import BatchedPotential
    from ponita_ff.hosts.ipi_driver import PonitaDriver, ffdirect

MakePotential = Callable[..., Potential]
MakeSystem = Callable[[str], Atoms]

#: By i-PI's constants, which differ from ASE's in the eighth digit: 0.3 meV of ethanol's total energy.
HARTREE, BOHR = unit_to_user("energy", "electronvolt", 1.0), unit_to_user("length", "angstrom", 1.0)


@pytest.fixture
def potential_file(tiny_potential: Potential, tmp_path: Path) -> Path:
    """In float64."""
    path = tmp_path / "tiny.safetensors"
    save_potential(tiny_potential, path, {"name": "tiny"})
    return path


def template_of(atoms: Atoms, folder: Path) -> str:
    path = folder / "template.xyz"
    write(path, atoms)
    return str(path)


def in_ipi_units(systems: list[Atoms]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Cells (columns) and positions in bohr; molecules in a box, as i-PI has them."""
    cells = [np.asarray(atoms.cell).T / BOHR if atoms.pbc.any() else 40.0 * np.eye(3) for atoms in systems]
    return cells, [atoms.positions / BOHR for atoms in systems]


@pytest.mark.parametrize(("dtype", "energy_error", "force_error"), [("float32", 1e-6, 1e-5), ("float64", 1e-9, 1e-9)])
@pytest.mark.parametrize("name", ["molecule", "crystal"])
def test_the_calculators_numbers(
    name: str,
    dtype: str,
    energy_error: float,
    force_error: float,
    potential_file: Path,
    tmp_path: Path,
    make_system: MakeSystem,
) -> None:
    beads = [make_system(name) for _ in range(3)]
    for seed, atoms in enumerate(beads):
        atoms.rattle(0.03, seed=seed)
    driver = PonitaDriver(template_of(beads[0], tmp_path), str(potential_file), device="cpu", dtype=dtype)
    found = driver(*in_ipi_units(beads))
    assert len(found) == 3
    calculator = PonitaCalculator(potential_file, device="cpu", dtype=dtype)
    for atoms, (energy, forces, virial, extras) in zip(beads, found, strict=True):
        atoms.calc = calculator
        assert energy * HARTREE == pytest.approx(atoms.get_potential_energy(), rel=0, abs=energy_error)
        np.testing.assert_allclose(forces * HARTREE / BOHR, atoms.get_forces(), rtol=0, atol=force_error)
        assert extras == ""
        if name == "crystal":
            expected = -atoms.get_stress(voigt=False) * atoms.get_volume()
            np.testing.assert_allclose(virial * HARTREE, expected, rtol=0, atol=1e-5 if dtype == "float32" else 1e-8)
    cells, positions = in_ipi_units(beads)
    single = driver(cells[1], positions[1])
    assert single[0] == pytest.approx(found[1][0], abs=1e-10)
    np.testing.assert_allclose(single[1], found[1][1], atol=1e-7)


def test_constants_are_those_of_ase() -> None:
    assert pytest.approx(units.Hartree, rel=1e-6) == HARTREE
    assert pytest.approx(units.Bohr, rel=1e-6) == BOHR


def test_the_virial_of_a_molecule(potential_file: Path, tmp_path: Path, make_system: MakeSystem) -> None:
    """By differences of the energy: in a box that means nothing, it is still −dE/dε."""
    atoms = make_system("molecule")
    driver = PonitaDriver(template_of(atoms, tmp_path), str(potential_file), device="cpu")
    virial = driver(*in_ipi_units([atoms]))[0][2] * HARTREE
    calculator, step = PonitaCalculator(potential_file, device="cpu"), 1e-5
    energies = []
    for sign in (1, -1):
        strained = atoms.copy()
        strained.positions[:, 0] *= 1 + sign * step
        energies.append(calculator.get_potential_energy(strained))
    assert virial[0, 0] == pytest.approx(-(energies[0] - energies[1]) / (2 * step), abs=1e-4)


def test_a_committee_tells_its_spread(make_potential: MakePotential, tmp_path: Path, make_system: MakeSystem) -> None:
    files = [tmp_path / f"{seed}.safetensors" for seed in range(2)]
    for seed, file in enumerate(files):
        save_potential(make_potential(seed=seed), file, {"name": str(seed)})
    atoms = make_system("molecule")
    driver = PonitaDriver(template_of(atoms, tmp_path), "+".join(map(str, files)), device="cpu")
    extras = json.loads(driver(*in_ipi_units([atoms]))[0][3])
    atoms.calc = PonitaCalculator(files, device="cpu")
    atoms.get_forces()
    assert extras["energy_std"] == pytest.approx(atoms.calc.results["energy_std"], abs=1e-6)
    np.testing.assert_allclose(extras["forces_std"], atoms.calc.results["forces_std"], rtol=0, atol=1e-6)


def test_what_is_refused(potential_file: Path, tmp_path: Path) -> None:
    ethanol = molecule("CH3CH2OH")
    template = template_of(ethanol, tmp_path)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"not a potential")
    with pytest.raises(PotentialFileError, match=r"damaged\.safetensors"):
        PonitaDriver(template, str(damaged))
    with pytest.raises(ValueError, match=r"cannot read the template .*missing\.xyz"):
        PonitaDriver(str(tmp_path / "missing.xyz"), str(potential_file))
    with pytest.raises(TypeError, match="divice"):
        PonitaDriver(template, str(potential_file), divice="cpu")
    driver = PonitaDriver(template, str(potential_file), device="cpu")
    with pytest.raises(ValueError, match="i-PI has 8 atoms, the template 9"):
        driver(*in_ipi_units([ethanol[:8]]))
    wrong = ethanol.copy()
    wrong.positions *= BOHR  # Å taken for bohr
    with pytest.raises(ValueError, match=r"0\.529 times as large as the template: check the units"):
        driver(*in_ipi_units([wrong]))
    ethanol.numbers[0] = 14
    with pytest.raises(ValueError, match="atom 0 is Si"):
        PonitaDriver(template_of(ethanol, tmp_path), str(potential_file))


INPUT = """<simulation verbosity='quiet'>
  <output prefix='run'> <properties filename='out'> [ step, conserved, kinetic_cv ] </properties> </output>
  <prng><seed>1</seed></prng>
  {driver}
  <system>
    <initialize nbeads='{beads}'>
      <file mode='xyz' units='angstrom'>start.xyz</file>
      <velocities mode='thermal' units='kelvin'>300</velocities>
      <cell mode='abc' units='angstrom'>[30, 30, 30]</cell>
    </initialize>
    <forces><force forcefield='ponita'/></forces>
    <ensemble><temperature units='kelvin'>300</temperature></ensemble>
    <motion mode='dynamics'>
      <fixcom>True</fixcom>
      <dynamics mode='nve'><timestep units='femtosecond'>0.5</timestep></dynamics>
    </motion>
  </system>
</simulation>
"""


@pytest.mark.filterwarnings("ignore")  # of i-PI's making
@pytest.mark.parametrize(("beads", "steps"), [(1, 400), (4, 20)])
def test_a_run_of_ipi_conserves_energy(beads: int, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ipi.scripting import InteractiveSimulation

    monkeypatch.chdir(tmp_path)
    write("start.xyz", molecule("CH3CH2OH"), format="xyz")
    seen = []
    evaluate = BatchedPotential.__call__

    def counted(self: BatchedPotential, positions: Any, *args: Any, **options: Any) -> Any:
        seen.append(len(positions))
        return evaluate(self, positions, *args, **options)

    monkeypatch.setattr(BatchedPotential, "__call__", counted)
    driver = ffdirect("start.xyz", "ethanol-rmd17", beads, device="cpu")
    modules = set(sys.modules)
    simulation = InteractiveSimulation(INPUT.format(driver=driver, beads=beads))
    simulation.run(steps)
    simulation.stop()
    for name in set(sys.modules) - modules:  # i-PI leaves the driver there under a name of its own
        if name == "ipi_driver":
            del sys.modules[name]
    conserved = np.loadtxt("run.out")[:, 1] * HARTREE
    assert len(conserved) == steps + 1
    assert set(seen) == {9 * beads} and len(seen) == steps + 1
    assert np.ptp(conserved) < 0.02
    if beads == 1:  # 0.2 ps
        assert abs(conserved[-100:].mean() - conserved[:100].mean()) < 2e-3


@pytest.mark.filterwarnings("ignore")  # of i-PI's making
def test_the_socket_route_of_ase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ase.calculators.socketio import SocketClient
    from ipi.scripting import InteractiveSimulation

    monkeypatch.chdir(tmp_path)
    atoms = molecule("CH3CH2OH")
    write("start.xyz", atoms, format="xyz")
    name = f"ponita_test_{os.getpid()}"
    socket = f"<ffsocket mode='unix' name='ponita' pbc='false'> <address>{name}</address> </ffsocket>"
    simulation = InteractiveSimulation(INPUT.format(driver=socket, beads=2))

    def serve() -> None:
        atoms.calc = PonitaCalculator("ethanol-rmd17", device="cpu")
        with contextlib.suppress(OSError):  # i-PI hangs up in the end
            SocketClient(unixsocket=name).run(atoms)

    client = threading.Thread(target=serve, daemon=True)
    client.start()
    simulation.run(5)
    by_socket = np.array([float(simulation.properties(name)) for name in ("potential", "kinetic_md")])
    simulation.stop()
    client.join(timeout=20)
    assert not client.is_alive()

    direct = InteractiveSimulation(
        INPUT.format(driver=ffdirect("start.xyz", "ethanol-rmd17", 2, device="cpu"), beads=2)
    )
    direct.run(5)
    direct.stop()
    sys.modules.pop("ipi_driver", None)
    expected = [float(direct.properties(name)) for name in ("potential", "kinetic_md")]
    # ASE's constants are others than i-PI's, in the eighth digit of a total energy of thousands of eV.
    np.testing.assert_allclose(by_socket, expected, rtol=2e-7)


def test_it_says_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is loaded already
        runpy.run_module("ponita_ff.hosts.ipi_driver", run_name="__main__")
    assert capsys.readouterr().out.strip() == str(Path(ipi_driver.__file__).resolve())
