"""Replicas of ethanol in TorchSim: all of them in one evaluation a step. Needs pip install '.[torch-sim]'.

    python md_examples/torch_sim_replicas.py
    python md_examples/torch_sim_replicas.py --replicas 64 --ps 5

Runs Langevin dynamics of the replicas, then relaxes them all, a batch at a time: the minima that they came to are the
conformers, trans and gauche.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import common
import numpy as np
import torch
from ase import Atoms
from ase.io import write

from ponita_ff.simulate.md import steps_of
from ponita_ff.structure.bonds import find_bonds

FORCE_TOLERANCE = 0.02  # eV/Å


def kinetic_temperatures(state: object, replicas: int) -> common.Array:
    """Of each replica, K; the thermostat acts on the centre of mass, too."""
    from ase import units
    from torch_sim.units import MetalUnits

    momenta, masses, owners = state.momenta, state.masses, state.system_idx
    twice = torch.zeros(replicas, dtype=momenta.dtype, device=momenta.device)
    twice.index_add_(0, owners, momenta.square().sum(1) / masses)
    assert abs(MetalUnits.temperature - units.kB) < 1e-8
    return (twice / (3 * len(masses) / replicas * units.kB)).cpu().numpy()


def plot(torsions: common.Array, energies: common.Array, path: Path) -> None:
    """Energy of each relaxed replica above the lowest, against its torsion."""
    with common.picture(path, size=(6, 4)) as (axes,):
        axes.plot(np.abs(torsions), 1e3 * (energies - energies.min()), "o", color="0.3")
        axes.set_xlabel("|H–O–C–C torsion| (degrees)")
        axes.set_ylabel("energy (meV)")
        axes.set_xlim(0, 190)


def main(argv: Sequence[str] | None = None) -> None:
    """Run, relax, report, plot."""
    parser = common.dynamics_options(__doc__, "torch-sim")
    parser.add_argument("--replicas", type=int, default=16, help="how many (16)")
    parser.add_argument("--ps", type=common.positive, default=1.0, help="length of each in ps (1)")
    parser.add_argument("--batch-atoms", type=int, default=500, help="atoms in a batch of the relaxation (500)")
    args = parser.parse_args(argv)
    try:
        import torch_sim
    except ImportError:
        raise SystemExit("this example needs TorchSim: pip install '.[torch-sim]'") from None
    from ponita_ff.hosts.torch_sim import PonitaModel

    replicas, ps, relax_steps = (4, 0.01, 20) if args.fast else (args.replicas, args.ps, 1000)
    common.make_calculator(args)  # says what is wrong with the options, and makes the folder
    model = PonitaModel(args.potential, device=args.device, backend=args.backend)
    systems = [common.ethanol() for _ in range(replicas)]
    for seed, atoms in enumerate(systems):
        atoms.rattle(0.01, seed=seed)
    torch.manual_seed(common.SEED)
    steps = steps_of(ps, args.timestep)
    print(f"Running {replicas} replicas at {args.temperature:g} K for {ps:g} ps each")
    began = time.perf_counter()
    state = torch_sim.integrate(
        systems,
        model,
        integrator=torch_sim.integrators.nvt_langevin,
        n_steps=steps,
        temperature=args.temperature,
        timestep=1e-3 * args.timestep,
        gamma=torch.tensor(1.0 / (1e-3 * common.TAU_FS) / torch_sim.units.MetalUnits.time, dtype=model.dtype),
    )
    seconds = time.perf_counter() - began
    whole = find_bonds(common.ethanol())
    change = max(whole.largest_change(atoms) for atoms in state.to_atoms())

    print(f"Relaxing them to {FORCE_TOLERANCE:g} eV/Å")
    batcher = torch_sim.InFlightAutoBatcher(model, memory_scales_with="n_atoms", max_memory_scaler=args.batch_atoms)
    relaxed = torch_sim.optimize(
        state.to_atoms(),
        model,
        optimizer=torch_sim.optimizers.fire,
        convergence_fn=torch_sim.generate_force_convergence_fn(FORCE_TOLERANCE, include_cell_forces=False),
        autobatcher=batcher,
        max_steps=relax_steps,
    )
    minima: list[Atoms] = relaxed.to_atoms()
    energies = relaxed.energy.cpu().numpy()
    torsions = np.array([common.torsion(atoms) for atoms in minima])
    write(args.out / "relaxed.xyz", minima)

    print("Results:")
    temperatures = kinetic_temperatures(state, replicas)
    common.say("temperature", f"{temperatures.mean():.1f} K, standard deviation {temperatures.std():.1f} K")
    common.say("largest bond change", f"{change:.2f} Å")
    common.say("speed", f"{replicas * steps / seconds:.1f} replica steps/s")
    trans = np.abs(torsions) > 120
    common.say("conformers", f"{trans.sum()} trans, {(~trans).sum()} gauche")
    common.say("lowest energy", f"{energies.min():.4f} eV, spread {1e3 * np.ptp(energies):.2f} meV")
    plot(torsions, energies, args.out / "torch_sim.png")
    common.require_intact(args, bool(change < 0.5))


if __name__ == "__main__":
    main()
