"""Ethanol in water with OpenMM: the molecule by the potential, water by molecular mechanics. Needs '.[openmm]'.

    python md_examples/openmm_ligand.py
    python md_examples/openmm_ligand.py --ps 20

Mechanical embedding: the potential gives the energy of ethanol in itself; ethanol and TIP3P water act on each other by
charges and Lennard-Jones terms (those of OPLS-AA), water on itself as always.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence

import common
import numpy as np

from ponita_ff.progress import progress_bar
from ponita_ff.simulate.md import steps_of
from ponita_ff.structure.bonds import find_bonds

EDGE_NM = 2.0  # of the box
STRIDE = 20  # steps between looks at the molecule

#: OPLS-AA (Jorgensen et al., J. Am. Chem. Soc. 118, 11225 (1996)): charge, σ in nm, ε in kJ/mol.
PARAMETERS = {
    "CT3": ("C", 12.011, -0.18, 0.35, 0.276144),
    "CT2": ("C", 12.011, 0.145, 0.35, 0.276144),
    "OH": ("O", 15.999, -0.683, 0.312, 0.71128),
    "HO": ("H", 1.008, 0.418, 1.0, 0.0),
    "HC": ("H", 1.008, 0.06, 0.25, 0.12552),
}
#: In the order of ase.build.molecule("CH3CH2OH").
TYPES = ("CT3", "CT2", "OH", "HO", "HC", "HC", "HC", "HC", "HC")


def force_field(bonds: Sequence[tuple[int, int]]) -> str:
    """OpenMM's XML for ethanol: what acts between it and water."""
    types = [
        f'<Type name="{name}" class="{name}" element="{element}" mass="{mass}"/>'
        for name, (element, mass, *_) in PARAMETERS.items()
    ]
    atoms = [f'<Atom name="A{i}" type="{name}"/>' for i, name in enumerate(TYPES)]
    links = [f'<Bond from="{a}" to="{b}"/>' for a, b in bonds]
    terms = [
        f'<Atom type="{name}" charge="{charge}" sigma="{sigma}" epsilon="{epsilon}"/>'
        for name, (_, _, charge, sigma, epsilon) in PARAMETERS.items()
    ]
    return (
        f"<ForceField><AtomTypes>{''.join(types)}</AtomTypes>"
        f'<Residues><Residue name="EOH">{"".join(atoms + links)}</Residue></Residues>'
        f'<NonbondedForce coulomb14scale="0.833333" lj14scale="0.5">{"".join(terms)}</NonbondedForce></ForceField>'
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Solvate, minimise, run, report."""
    parser = common.dynamics_options(__doc__, "openmm")
    parser.add_argument("--ps", type=common.positive, default=1.0, help="length in ps (1)")
    args = parser.parse_args(argv)
    try:
        import openmm
        from openmm import app, unit
        from openmmml import MLPotential
    except ImportError:
        raise SystemExit("this example needs OpenMM: pip install '.[openmm]'") from None

    ps = 0.02 if args.fast else args.ps
    common.make_calculator(args)  # says what is wrong with the options, and makes the folder
    ethanol = common.ethanol()
    whole = find_bonds(ethanol)
    bonds = [(int(a), int(b)) for a, b in whole.pairs]
    topology = app.Topology()
    residue = topology.addResidue("EOH", topology.addChain())
    nodes = [topology.addAtom(f"A{i}", app.Element.getBySymbol(s), residue) for i, s in enumerate(ethanol.symbols)]
    for a, b in bonds:
        topology.addBond(nodes[a], nodes[b])
    fields = app.ForceField("tip3p.xml", io.StringIO(force_field(bonds)))
    modeller = app.Modeller(topology, (ethanol.positions - ethanol.positions.mean(0)) * unit.angstrom)
    modeller.addSolvent(fields, boxSize=openmm.Vec3(EDGE_NM, EDGE_NM, EDGE_NM) * unit.nanometer)
    mechanics = fields.createSystem(
        modeller.topology, nonbondedMethod=app.PME, nonbondedCutoff=0.9 * unit.nanometer, constraints=None
    )
    potential = MLPotential("ponita", potential=args.potential, device=args.device, backend=args.backend)
    system = potential.createMixedSystem(modeller.topology, mechanics, range(len(ethanol)))
    thermostat = openmm.LangevinMiddleIntegrator(
        args.temperature * unit.kelvin, 1 / (common.TAU_FS * unit.femtosecond), args.timestep * unit.femtosecond
    )
    thermostat.setRandomNumberSeed(common.SEED)
    simulation = app.Simulation(modeller.topology, system, thermostat)
    simulation.context.setPositions(modeller.positions)
    freedom = 3 * system.getNumParticles() - system.getNumConstraints() - 3  # the centre of mass is held
    waters = (system.getNumParticles() - len(ethanol)) // 3
    print(f"Minimising, then running {ps:g} ps at {args.temperature:g} K with {waters} water molecules")
    simulation.minimizeEnergy(maxIterations=5 if args.fast else 200)
    simulation.context.setVelocitiesToTemperature(args.temperature * unit.kelvin, common.SEED)
    simulation.reporters.append(app.DCDReporter(str(args.out / "openmm.dcd"), STRIDE))
    with (args.out / "openmm.pdb").open("w", encoding="utf-8") as out:
        app.PDBFile.writeFile(modeller.topology, modeller.positions, out)

    steps = steps_of(ps, args.timestep)
    distances, torsions, temperatures, changes = [], [], [], []
    began = time.perf_counter()
    with progress_bar(True, total=steps, desc="running", unit="step") as bar:
        for _ in range(max(1, steps // STRIDE)):
            simulation.step(STRIDE)
            state = simulation.context.getState(positions=True, energy=True)
            ethanol.positions = state.getPositions(asNumpy=True)[: len(ethanol)].value_in_unit(unit.angstrom)
            distances.append(ethanol.get_distance(common.OXYGEN, common.HYDROXYL_H))
            torsions.append(common.torsion(ethanol))
            changes.append(whole.largest_change(ethanol))
            temperatures.append(2 * state.getKineticEnergy() / (freedom * unit.MOLAR_GAS_CONSTANT_R))
            bar.update(STRIDE)
    seconds = time.perf_counter() - began
    print("Results:")
    kelvin = np.array([value.value_in_unit(unit.kelvin) for value in temperatures])
    common.say("temperature", f"{kelvin.mean():.1f} K, standard deviation {kelvin.std():.1f} K")
    common.say("O–H distance", f"{np.mean(distances):.3f} Å, standard deviation {np.std(distances):.3f} Å")
    common.say("torsion", f"{np.mean(np.abs(torsions)):.0f} degrees, mean of its size")
    common.say("largest bond change", f"{max(changes):.2f} Å")
    common.say("speed", f"{steps / seconds:.1f} steps/s")
    common.require_intact(args, bool(max(changes) < 0.5))


if __name__ == "__main__":
    main()
