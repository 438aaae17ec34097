"""Write frames of small molecules and of their dimers, labelled by the eight networks of ANI-2x.

    python frames.py --molecules FOLDER --weights FOLDER --out FOLDER --chunks 20 [--plan labels] [--seed 1]

Plan ``labels`` makes frames of at most seven heavy atoms, which PySCF can label; plan ``teacher`` makes many more, of
at most twelve, whose labels by ANI-2x are trained on; plan ``hydrogen-bonds`` adds dimers that random orientations
seldom find; plan ``breadth`` makes few frames each of the molecules that follow those of plan ``teacher``; plan
``tests`` makes frames of molecules whose scaffolds are held out, to measure errors on.

Each chunk is one shard, ``shard_0007.npz``, written whole. Shards that exist are kept, so a run that was stopped goes
on when it is started again. What a chunk holds depends only on the plan, the seed and its number.

Kinds of frames of a molecule:

- ``min``: relaxed
- ``md``: Langevin dynamics at 300 to 1,200 K
- ``modes``: thermal displacements along normal modes, 300 to 2,000 K
- ``bond``: one bond stretched or compressed, and turned in half of them

Kinds of frames of a dimer:

- ``contact``: random orientations at 0.85 to 2 times the sum of van der Waals radii; with plan ``hydrogen-bonds`` a
  hydrogen bond of 1.6 to 2.5 Å, in half of them turned about it so that a second one is near
- ``dimer-min``: partly relaxed
- ``dimer-md``: Langevin dynamics from there at 100 to 500 K
- ``dimer-scan``: the relaxed dimer pulled apart or pushed together
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase.data import atomic_masses
from molecules import ODD, SMALL, forbidden_pair, pairs, read, usable
from rdkit import Chem
from rdkit.Chem import AllChem
from torchani.arch import ANI
from torchani.neurochem import NeurochemInfo, modules_from_info

#: eV; eV/K; fs in Å·√(u/eV).
HARTREE, KB, FS = 27.211386245988, 8.617333e-5, 0.09822694788
#: Van der Waals radii, Å.
VDW = {1: 1.10, 6: 1.70, 7: 1.55, 8: 1.52, 9: 1.47, 16: 1.80, 17: 1.75}
#: eV/Å. Frames with a larger component of a force are left out.
LARGEST_FORCE = 25.0


@dataclass(frozen=True)
class Plan:
    """Which molecules a data set is made of, and how many frames of each.

    Attributes:
        shares: Share of the molecules that is kept, by number of heavy atoms; larger molecules are not used.
        pair_heavy: Largest number of heavy atoms of a dimer.
        random_heavy: Largest number of heavy atoms of each molecule of a random dimer.
        molecules: Molecules in a chunk.
        pairs: Dimers in a chunk.
        conformers: Of each molecule.
        relax_steps: Of the molecules.
        md: Steps of dynamics, and steps between frames.
        mode_frames: Frames along normal modes of each conformer.
        mode_atoms: Larger molecules have no such frames: they take six forces an atom.
        batch: Structures that move at once.
        tests: Whether the molecules are those of held-out scaffolds, without dimers.
        hydrogen_bonds: Whether the dimers are of molecules with a donor and an acceptor, placed with a hydrogen bond.
        skip: Molecules at the start of the order that are left to another plan of the same seed.
    """

    shares: dict[int, float]
    pair_heavy: int
    random_heavy: int
    molecules: int
    pairs: int
    conformers: int
    relax_steps: int
    md: tuple[int, int]
    mode_frames: int
    mode_atoms: int
    batch: int
    tests: bool = False
    hydrogen_bonds: bool = False
    skip: int = 0

    @property
    def heavy(self) -> int:
        """Largest number of heavy atoms of a molecule."""
        return max(self.shares)


#: Of plans ``teacher`` and ``breadth``, whose molecules are one list: the second goes on where the first ends.
TEACHER_SHARES = dict.fromkeys(range(7), 1.0) | {7: 0.7, 8: 0.4, 9: 0.25, 10: 0.15, 11: 0.1, 12: 0.08}

PLANS = {
    # Labels of small molecules are cheaper.
    "labels": Plan(
        shares={0: 1.0, 1: 1.0, 2: 0.7, 3: 0.8, 4: 1.0, 5: 0.8, 6: 0.4, 7: 0.08},
        pair_heavy=6,
        random_heavy=4,
        molecules=40,
        pairs=60,
        conformers=2,
        relax_steps=80,
        md=(160, 32),
        mode_frames=3,
        mode_atoms=1000,
        batch=40,
    ),
    # Twelve heavy atoms hold all functional groups with their neighbours; many molecules, few frames of each.
    "teacher": Plan(
        shares=TEACHER_SHARES,
        pair_heavy=13,
        random_heavy=7,
        molecules=80,
        pairs=40,
        conformers=1,
        relax_steps=50,
        md=(120, 20),
        mode_frames=3,
        mode_atoms=14,
        batch=80,
    ),
    # The error on molecules that are not in the data depends on how many are. With the seed of plan ``teacher`` these
    # are the molecules after its first ten chunks.
    "breadth": Plan(
        shares=TEACHER_SHARES,
        pair_heavy=13,
        random_heavy=7,
        molecules=200,
        pairs=0,
        conformers=1,
        relax_steps=30,
        md=(60, 20),
        mode_frames=0,
        mode_atoms=0,
        batch=100,
        skip=800,
    ),
    "hydrogen-bonds": Plan(
        shares=dict.fromkeys(range(13), 1.0),
        pair_heavy=13,
        random_heavy=7,
        molecules=0,
        pairs=120,
        conformers=1,
        relax_steps=0,
        md=(0, 1),
        mode_frames=0,
        mode_atoms=0,
        batch=1,
        hydrogen_bonds=True,
    ),
    "tests": Plan(
        shares=dict.fromkeys(range(13), 1.0),
        pair_heavy=0,
        random_heavy=0,
        molecules=60,
        pairs=0,
        conformers=1,
        relax_steps=80,
        md=(200, 50),
        mode_frames=2,
        mode_atoms=14,
        batch=60,
        tests=True,
    ),
}


@dataclass
class Frame:
    """One geometry: atomic numbers, shape (n,), and positions (Å), shape (n, 3)."""

    smiles: str
    kind: str
    numbers: np.ndarray
    positions: np.ndarray


class Teacher:
    """The eight networks of ANI-2x, in single precision; eV and Å.

    Args:
        weights: Folder of the weights in NeuroChem's format.
    """

    def __init__(self, weights: Path) -> None:
        info = NeurochemInfo(
            weights / "sae_linfit.dat", weights / "rHCNOSFCl-5.1R_16-3.5A_a8-4.params", weights / "train", 8
        )
        aev, networks, shifts, symbols = modules_from_info(info)
        self.ensemble = ANI(symbols, aev, networks, shifts, periodic_table_index=True).float()
        self.first = self.ensemble[0]

    def forces(self, species: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return energies (eV, shape (b,)) and forces (eV/Å, shape (b, n, 3)) by the first network.

        Args:
            species: Atomic numbers, −1 where there is no atom, shape (b, n).
            positions: Å, shape (b, n, 3).
        """
        positions = positions.detach().requires_grad_(True)
        energy = self.first((species, positions)).energies
        return energy.detach() * HARTREE, -torch.autograd.grad(energy.sum(), positions)[0] * HARTREE

    def members(self, species: torch.Tensor, positions: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return energies (eV, shape (8, b)) and forces (eV/Å, shape (8, b, n, 3)) by all networks."""
        positions = positions.detach().requires_grad_(True)
        energies = self.ensemble((species, positions), ensemble_values=True).energies
        forces = [-torch.autograd.grad(one.sum(), positions, retain_graph=True)[0] for one in energies]
        return energies.detach().double().numpy() * HARTREE, torch.stack(forces).double().numpy() * HARTREE


def padded(frames: list[Frame]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a batch: species (b, n), −1 where there is no atom; positions (b, n, 3), Å; masses (b, n, 1), u.

    Absent atoms lie far away from each other and from the molecule.
    """
    size = max(len(frame.numbers) for frame in frames)
    species, masses = torch.full((len(frames), size), -1), torch.ones(len(frames), size, 1)
    positions = 50.0 + 3.0 * torch.arange(size)[None, :, None].expand(len(frames), size, 3).clone().float()
    for i, frame in enumerate(frames):
        n = len(frame.numbers)
        species[i, :n] = torch.tensor(frame.numbers)
        positions[i, :n] = torch.tensor(frame.positions, dtype=torch.float32)
        masses[i, :n, 0] = torch.tensor(atomic_masses[frame.numbers], dtype=torch.float32)
    return species, positions, masses


def unpadded(frames: list[Frame], positions: torch.Tensor, kind: str) -> list[Frame]:
    """Return the same molecules as frames of a kind at other positions (Å, shape (b, n, 3))."""
    return [
        Frame(frame.smiles, kind, frame.numbers, x[: len(frame.numbers)].numpy().astype(float))
        for frame, x in zip(frames, positions, strict=True)
    ]


def relaxed(teacher: Teacher, frames: list[Frame], kind: str, steps: int) -> list[Frame]:
    """Relax all frames at once by FIRE; each has its own time step.

    Args:
        teacher: Its first network gives the forces.
        frames: Where to start.
        kind: Kind of the new frames.
        steps: Number of steps.
    """
    species, x, _ = padded(frames)
    real = (species >= 0)[..., None].float()
    v, dt, mix = torch.zeros_like(x), torch.full((len(frames), 1, 1), 0.1), torch.full((len(frames), 1, 1), 0.1)
    for _ in range(steps):
        f = teacher.forces(species, x)[1] * real
        power = (f * v).sum((1, 2), keepdim=True)
        size = v.norm(dim=(1, 2), keepdim=True) / f.norm(dim=(1, 2), keepdim=True).clamp(min=1e-9)
        v = torch.where(power > 0, (1 - mix) * v + mix * f * size, torch.zeros_like(v))
        dt = torch.where(power > 0, (1.1 * dt).clamp(max=0.3), 0.5 * dt)
        mix = torch.where(power > 0, 0.99 * mix, torch.full_like(mix, 0.1))
        v = v + dt * f
        step = dt * v
        x = x + step * (0.1 / step.norm(dim=2).amax(1)[:, None, None].clamp(min=0.1))
    return unpadded(frames, x, kind)


def dynamics(
    teacher: Teacher, frames: list[Frame], kind: str, kelvin: np.ndarray, steps: int, every: int, seed: int
) -> list[Frame]:
    """Run Langevin dynamics of all frames at once (BAOAB, 1 fs a step, friction 0.02/fs).

    Args:
        teacher: Its first network gives the forces.
        frames: Where to start.
        kind: Kind of the new frames.
        kelvin: Temperature of each frame, K, shape (b,).
        steps: Number of steps.
        every: Steps from one frame that is kept to the next.
        seed: Of the noise.
    """
    species, x, mass = padded(frames)
    real = (species >= 0)[..., None]
    kt = KB * torch.tensor(kelvin, dtype=torch.float32)[:, None, None]
    dt, keep, noise, width = FS, np.exp(-0.02), torch.Generator().manual_seed(seed), torch.sqrt(kt / mass)
    v = torch.randn(x.shape, generator=noise) * width * real
    f, found = teacher.forces(species, x)[1], []
    for step in range(1, steps + 1):
        v = v + 0.5 * dt * f / mass
        x = x + 0.5 * dt * v * real
        v = keep * v + (1 - keep**2) ** 0.5 * width * torch.randn(x.shape, generator=noise) * real
        x = x + 0.5 * dt * v * real
        f = teacher.forces(species, x)[1]
        v = v + 0.5 * dt * f / mass
        if step % every == 0:
            found += unpadded(frames, x, kind)
    return found


def mode_frames(teacher: Teacher, frame: Frame, number: int, rng: np.random.Generator) -> list[Frame]:
    """Return classical thermal displacements along the normal modes of a relaxed molecule.

    Args:
        teacher: Its first network gives the Hessian, by central differences of forces.
        frame: The relaxed molecule, n atoms.
        number: How many frames; each has a random temperature of 300 to 2,000 K.
        rng: Random numbers.
    """
    n, step = len(frame.numbers), 0.01
    shifts = np.concatenate([np.eye(3 * n), -np.eye(3 * n)]).reshape(-1, n, 3) * step
    copies = [Frame("", "", frame.numbers, frame.positions + shift) for shift in shifts]
    f = teacher.forces(*padded(copies)[:2])[1].double().numpy().reshape(2, 3 * n, 3 * n)
    hessian = (f[1] - f[0]) / (2 * step)
    weights = np.repeat(atomic_masses[frame.numbers], 3) ** -0.5
    values, modes = np.linalg.eigh(0.5 * (hessian + hessian.T) * np.outer(weights, weights))
    keep = np.argsort(np.abs(values))[6 if n > 2 else 5 :]
    stiff = np.maximum(np.abs(values[keep]), 0.037)  # eV/Å²/u: 100 cm⁻¹
    found = []
    for kelvin in rng.choice([300.0, 600.0, 1000.0, 2000.0], number):
        amplitude = rng.normal(size=len(keep)) * np.sqrt(KB * kelvin / stiff)
        shift = (modes[:, keep] @ amplitude * weights).reshape(n, 3)
        found.append(Frame(frame.smiles, "modes", frame.numbers, frame.positions + shift))
    return found


def bond_frames(mol: Chem.Mol, frame: Frame, number: int, rng: np.random.Generator) -> list[Frame]:
    """Stretch or compress one bond outside rings to 0.85 to 1.35 times its length.

    In every second frame one side is turned about the bond as well, if it is a single bond.

    Args:
        mol: With hydrogen atoms.
        frame: The relaxed molecule.
        number: How many frames; there are none without such a bond.
        rng: Random numbers.
    """
    bonds = [bond for bond in mol.GetBonds() if not bond.IsInRing()]
    found = []
    for turn in range(number if bonds and mol.GetNumAtoms() > 2 else 0):
        bond = bonds[rng.integers(len(bonds))]
        first, second = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        x = frame.positions + rng.normal(size=frame.positions.shape) * 0.03
        axis = x[second] - x[first]
        side = side_of(mol, first, second)
        if turn % 2 and bond.GetBondType() == Chem.BondType.SINGLE:
            x[side] = x[first] + (x[side] - x[first]) @ rotation(axis, rng.uniform(0, 2 * np.pi)).T
        x[side] += axis * (rng.uniform(0.85, 1.35) - 1.0)
        found.append(Frame(frame.smiles, "bond", frame.numbers, x))
    return found


def side_of(mol: Chem.Mol, first: int, second: int) -> list[int]:
    """Return the indices of the atoms on the second atom's side of a bond outside rings, with that atom."""
    seen, todo = {first, second}, [second]
    while todo:
        for other in mol.GetAtomWithIdx(todo.pop()).GetNeighbors():
            if other.GetIdx() not in seen:
                seen.add(other.GetIdx())
                todo.append(other.GetIdx())
    return sorted(seen - {first})


def rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    """Return the matrix, shape (3, 3), of a rotation by an angle (radians) about an axis (Rodrigues)."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """Return a uniformly distributed rotation matrix, shape (3, 3)."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q


def placed(first: Frame, second: Frame, kind: str, contact: float, rng: np.random.Generator) -> Frame:
    """Return a dimer of two molecules at random orientations.

    Args:
        first: A molecule.
        second: Another one.
        kind: Kind of the new frame.
        contact: The closest pair of atoms is at this many times the sum of its van der Waals radii.
        rng: Random numbers.
    """
    a = (first.positions - first.positions.mean(0)) @ random_rotation(rng).T
    b = (second.positions - second.positions.mean(0)) @ random_rotation(rng).T
    radii = contact * (np.array([VDW[z] for z in first.numbers])[:, None] + [VDW[z] for z in second.numbers])
    gap = b[None] - a[:, None]
    lateral = (gap[..., :2] ** 2).sum(-1)
    touching = lateral < radii**2
    shift = np.max(np.sqrt(np.where(touching, radii**2 - lateral, 0.0)) - gap[..., 2], where=touching, initial=0.0)
    joined = np.concatenate([a, b + np.array([0.0, 0.0, shift])])
    return Frame(f"{first.smiles}.{second.smiles}", kind, np.concatenate([first.numbers, second.numbers]), joined)


def donors(frame: Frame) -> list[tuple[int, int]]:
    """Return pairs of a nitrogen or oxygen atom and a hydrogen atom bound to it."""
    heavy, light = np.flatnonzero(np.isin(frame.numbers, (7, 8))), np.flatnonzero(frame.numbers == 1)
    length = np.linalg.norm(frame.positions[heavy][:, None] - frame.positions[light], axis=-1)
    return [(int(heavy[i]), int(light[j])) for i, j in zip(*np.nonzero(length < 1.2), strict=True)]


def acceptors(frame: Frame) -> list[int]:
    """Return oxygen atoms, and nitrogen atoms with at most two neighbours or in a pyramid."""
    found = []
    for atom in np.flatnonzero(np.isin(frame.numbers, (7, 8))):
        bonds = bonds_of(frame, int(atom))
        flat = len(bonds) == 3 and np.linalg.norm(bonds.sum(0)) < 0.6
        if frame.numbers[atom] == 8 or (len(bonds) < 4 and not flat):
            found.append(int(atom))
    return found


def bonds_of(frame: Frame, atom: int) -> np.ndarray:
    """Return the vectors from an atom to those within 1.65 Å, shape (k, 3)."""
    vectors = np.delete(frame.positions - frame.positions[atom], atom, axis=0)
    return vectors[np.linalg.norm(vectors, axis=1) < 1.65]


def bonded(first: Frame, second: Frame, kind: str, length: float, rng: np.random.Generator) -> Frame | None:
    """Return a dimer with a hydrogen bond from the first molecule to the second; None where there is no room for it.

    Args:
        first: A molecule with a donor.
        second: One with an acceptor.
        kind: Kind of the new frame.
        length: From the hydrogen atom to the acceptor, Å.
        rng: Random numbers. In half of the cases the second molecule is turned about the bond to where one of its own
            donors is nearest to an acceptor of the first.
    """
    heavy, light = donors(first)[rng.integers(len(donors(first)))]
    acceptor = acceptors(second)[rng.integers(len(acceptors(second)))]
    a, b = first.positions - first.positions[light], second.positions - second.positions[acceptor]
    axis = -a[heavy] / np.linalg.norm(a[heavy])
    outward = -bonds_of(second, acceptor).sum(0)
    if np.linalg.norm(outward) < 0.1:
        outward = rng.normal(size=3)
    nearest = 0.75 * (np.array([VDW[z] for z in first.numbers])[:, None] + [VDW[z] for z in second.numbers])
    nearest[light, acceptor] = 0.0
    free = []
    for _ in range(60):
        # The lone pairs of O point some 50° away from the line that halves the angle of its bonds.
        tilted = aligned(rotation(rng.normal(size=3), rng.uniform(0, 1.1)) @ outward, -axis)
        turned = b @ (rotation(axis, rng.uniform(0, 2 * np.pi)) @ tilted).T + length * axis
        gap = np.linalg.norm(turned[None] - a[:, None], axis=-1)
        if (gap > nearest).all():
            back = min((gap[o, h] for _, h in donors(second) for o in acceptors(first)), default=0.0)
            free.append((back, turned))
    if not free:
        return None
    turned = min(free, key=lambda item: item[0])[1] if rng.random() < 0.5 else free[0][1]
    numbers = np.concatenate([first.numbers, second.numbers])
    return Frame(f"{first.smiles}.{second.smiles}", kind, numbers, np.concatenate([a, turned]))


def aligned(vector: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """Return a rotation matrix, shape (3, 3), that turns a vector into the direction of another."""
    u, v = vector / np.linalg.norm(vector), onto / np.linalg.norm(onto)
    axis = np.cross(u, v)
    if np.linalg.norm(axis) < 1e-6:
        axis = np.cross(u, np.eye(3)[np.abs(u).argmin()])
    return rotation(axis, np.arccos(np.clip(u @ v, -1, 1)))


def scanned(frame: Frame, size: int, rng: np.random.Generator) -> Frame:
    """Shift the second molecule of a dimer by −0.12 to 0.9 times the distance of the closest contact.

    It goes along that contact or along the line of the centres.

    Args:
        frame: The relaxed dimer.
        size: Number of atoms of the first molecule.
        rng: Random numbers.
    """
    x = frame.positions.copy()
    gap = x[None, size:] - x[:size, None]
    distance = np.linalg.norm(gap, axis=-1)
    i, j = np.unravel_index(np.argmin(distance), distance.shape)
    axis = gap[i, j] if rng.random() < 0.5 else x[size:].mean(0) - x[:size].mean(0)
    low, high = ((0.88, 1.0), (1.0, 1.3), (1.3, 1.9))[rng.integers(3)]
    x[size:] += (rng.uniform(low, high) - 1.0) * distance[i, j] * axis / np.linalg.norm(axis)
    return Frame(frame.smiles, "dimer-scan", frame.numbers, x)


def conformers(smiles: str, mol: Chem.Mol, number: int, seed: int) -> list[Frame]:
    """Return conformers by RDKit, optimised by MMFF94 where it has the parameters.

    Args:
        smiles: Name of the new frames.
        mol: Without hydrogen atoms.
        number: Largest number of conformers; there are none where the embedding fails.
        seed: Of the embedding.
    """
    mol = Chem.AddHs(mol)
    AllChem.EmbedMultipleConfs(mol, number, randomSeed=seed)
    if mol.GetNumConformers() and AllChem.MMFFHasAllMoleculeParams(mol):
        AllChem.MMFFOptimizeMoleculeConfs(mol)
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    return [Frame(smiles, "min", numbers, one.GetPositions()) for one in mol.GetConformers()]


def element_classes(mol: Chem.Mol) -> set[str]:
    """Return the hetero elements of a molecule, and "any"."""
    return {atom.GetSymbol() for atom in mol.GetAtoms()} & {"F", "S", "Cl", "N", "O"} | {"any"}


def balanced(mols: dict[str, Chem.Mol], shares: dict[int, float], rng: np.random.Generator) -> list[str]:
    """Return the names of molecules, thinned by size, in an order in which F, S, Cl, N and O take turns."""
    names = [name for name, mol in mols.items() if rng.random() < shares[mol.GetNumHeavyAtoms()]]
    rng.shuffle(names)
    queues = {key: [n for n in names if key in element_classes(mols[n])] for key in ("F", "S", "Cl", "N", "O", "any")}
    order: dict[str, None] = {}
    while any(queues.values()):
        for queue in queues.values():
            while queue and queue[0] in order:
                queue.pop(0)
            if queue:
                order[queue.pop(0)] = None
    return list(order)


def random_pairs(
    mols: dict[str, Chem.Mol], known: list[tuple[str, str]], number: int, plan: Plan, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """Choose dimers: two of five from known pairs, one of five with water, two random.

    The random ones are of small molecules that are not in ``ODD``.

    Args:
        mols: Molecules that may be used, by SMILES.
        known: Known pairs.
        number: How many; a larger number begins with the same pairs.
        plan: The sizes.
        rng: Random numbers.

    Returns:
        Sorted SMILES of each pair.
    """
    if plan.hydrogen_bonds:
        return bonding_pairs(mols, number, plan, rng)
    odd = usable(ODD, 7)
    small = [name for name, mol in mols.items() if mol.GetNumHeavyAtoms() <= plan.random_heavy and name not in odd]
    left = [known[i] for i in rng.permutation(len(known))]
    found: dict[tuple[str, str], None] = {}
    for attempt in range(20 * number):
        turn = attempt % 5
        if len(found) == number:
            break
        if turn < 2 and left:
            pair = left.pop()
        else:
            pair = (small[rng.integers(len(small))], "O" if turn == 2 else small[rng.integers(len(small))])
        both = [mols.get(name) for name in pair]
        if None in both or sum(mol.GetNumHeavyAtoms() for mol in both) > plan.pair_heavy or forbidden_pair(*both):
            continue
        found[tuple(sorted(pair))] = None
    return list(found)


def bonding_pairs(
    mols: dict[str, Chem.Mol], number: int, plan: Plan, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """Choose dimers of molecules with N–H or O–H, one of three of a molecule with itself."""
    polar, odd = Chem.MolFromSmarts("[#7,#8;!H0]"), usable(ODD, 7)
    names = [name for name, mol in mols.items() if mol.GetNumHeavyAtoms() <= plan.random_heavy and name not in odd]
    names = [name for name in names if mols[name].HasSubstructMatch(polar)]
    found: dict[tuple[str, str], None] = {}
    for attempt in range(20 * number):
        if len(found) == number:
            break
        first = names[rng.integers(len(names))]
        second = first if attempt % 3 == 0 else names[rng.integers(len(names))]
        both = [mols[first], mols[second]]
        if sum(mol.GetNumHeavyAtoms() for mol in both) <= plan.pair_heavy and not forbidden_pair(*both):
            found[tuple(sorted((first, second)))] = None
    return list(found)


def monomer_frames(teacher: Teacher, mols: dict[str, Chem.Mol], plan: Plan, rng: np.random.Generator) -> list[Frame]:
    """Return frames of all kinds of the conformers of each molecule."""
    number = plan.conformers
    starts = [one for name, mol in mols.items() for one in conformers(name, mol, number, int(rng.integers(1 << 30)))]
    starts.sort(key=lambda frame: len(frame.numbers))
    found = []
    for batch in (starts[i : i + plan.batch] for i in range(0, len(starts), plan.batch)):
        minima = relaxed(teacher, batch, "min", plan.relax_steps)
        kelvin = rng.choice([300.0, 500.0, 800.0, 1200.0], len(minima))
        found += dynamics(teacher, minima, "md", kelvin, *plan.md, int(rng.integers(1 << 30)))
        for frame in minima:
            found.append(frame)
            if len(frame.numbers) <= plan.mode_atoms:
                found += mode_frames(teacher, frame, plan.mode_frames, rng)
            found += bond_frames(Chem.AddHs(mols[frame.smiles]), frame, 2, rng)
    return found


def dimer_frames(
    teacher: Teacher, mols: dict[str, Chem.Mol], chosen: list[tuple[str, str]], plan: Plan, rng: np.random.Generator
) -> list[Frame]:
    """Return frames of all kinds: ten of each pair.

    Args:
        teacher: The networks.
        mols: Molecules by SMILES.
        chosen: The pairs; those with a molecule without conformers are left out.
        plan: How they are placed.
        rng: Random numbers.
    """
    names = sorted({name for pair in chosen for name in pair})
    starts = [one for name in names for one in conformers(name, mols[name], 1, int(rng.integers(1 << 30)))]
    monomers = {frame.smiles: frame for frame in relaxed(teacher, starts, "min", 60)}
    joined, found = [], []
    for first, second in (pair for pair in chosen if set(pair) <= set(monomers)):
        a, b = monomers[first], monomers[second]
        if plan.hydrogen_bonds:
            if not (donors(a) and acceptors(b)):
                a, b = b, a
            if not (donors(a) and acceptors(b)):
                continue
            both = [bonded(a, b, kind, rng.uniform(1.6, 2.5), rng) for kind in ("contact", "contact", "dimer-min")]
            found += [frame for frame in both[:2] if frame is not None]
            joined += [(both[2], len(a.numbers))] if both[2] is not None else []
            continue
        for low, high in ((0.85, 1.05), (1.05, 2.0)):
            moved = [m.positions + rng.normal(size=m.positions.shape) * 0.04 for m in (a, b)]
            noisy = [Frame(m.smiles, "", m.numbers, x) for m, x in zip((a, b), moved, strict=True)]
            found.append(placed(*noisy, "contact", rng.uniform(low, high), rng))
        joined.append((placed(a, b, "dimer-min", 1.0, rng), len(a.numbers)))
    joined.sort(key=lambda item: len(item[0].numbers))
    for part in (joined[i : i + 30] for i in range(0, len(joined), 30)):
        minima = relaxed(teacher, [frame for frame, _ in part], "dimer-min", 60)
        kelvin = rng.choice([100.0, 200.0, 300.0, 500.0], len(minima))
        found += minima + dynamics(teacher, minima, "dimer-md", kelvin, 120, 40, int(rng.integers(1 << 30)))
        found += [scanned(frame, size, rng) for frame, (_, size) in zip(minima, part, strict=True) for _ in range(4)]
    return found


def labelled(teacher: Teacher, frames: list[Frame]) -> dict[str, np.ndarray]:
    """Label frames by ANI-2x; broken frames are left out.

    Returns:
        Arrays of a shard. Over frames: ``smiles``, ``kind``, ``size`` (atoms), ``energy`` and ``energy_spread`` (mean
        and standard deviation over networks, eV). Over the atoms of all frames, one frame after the other: ``numbers``,
        ``positions`` (Å), ``forces`` (mean, eV/Å), ``force_spread`` (root mean square over networks of the norm of the
        difference from the mean, eV/Å, one value per atom).
    """
    frames = [frame for frame in frames if np.isfinite(frame.positions).all()]
    for frame in frames:
        frame.positions = np.round(frame.positions - frame.positions.mean(0), 4)
    frames.sort(key=lambda frame: len(frame.numbers))
    rows = []
    for batch in (frames[i : i + 100] for i in range(0, len(frames), 100)):
        energies, forces = teacher.members(*padded(batch)[:2])
        for i, frame in enumerate(batch):
            f = forces[:, i, : len(frame.numbers)]
            if np.isfinite(f).all() and np.abs(f.mean(0)).max() < LARGEST_FORCE:
                spread = np.sqrt(((f - f.mean(0)) ** 2).sum(-1).mean(0))
                rows.append((frame, energies[:, i].mean(), energies[:, i].std(), f.mean(0), spread))
    rows.sort(key=lambda row: (row[0].smiles, row[0].kind))
    return {
        "smiles": np.array([row[0].smiles for row in rows]),
        "kind": np.array([row[0].kind for row in rows]),
        "size": np.array([len(row[0].numbers) for row in rows]),
        "numbers": np.concatenate([row[0].numbers for row in rows]).astype(np.uint8),
        "positions": np.concatenate([row[0].positions for row in rows]).astype(np.float32),
        "energy": np.array([row[1] for row in rows]),
        "energy_spread": np.array([row[2] for row in rows]),
        "forces": np.concatenate([row[3] for row in rows]).astype(np.float32),
        "force_spread": np.concatenate([row[4] for row in rows]).astype(np.float32),
    }


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a shard, whole or not at all."""
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, **arrays)
    part.replace(path)


def candidates(folder: Path, plan: Plan) -> tuple[dict[str, Chem.Mol], list[tuple[str, str]]]:
    """Read the molecules of a plan by SMILES, and known pairs.

    Args:
        folder: Holds ``des_monomers.smi``, ``nagl2_fragments.smi``, ``vehicle_heteroaromatics.smi`` (a SMILES string a
            line) and ``des370k_pairs.smi`` (``A.B`` a line).
        plan: The sizes.
    """
    lines = [*SMALL, *ODD]
    for name in ("des_monomers.smi", "nagl2_fragments.smi", "vehicle_heteroaromatics.smi"):
        lines += read(folder / name)
    return usable(lines, plan.heavy, plan.tests), pairs(read(folder / "des370k_pairs.smi"), plan.pair_heavy)


def main() -> None:
    """Write the shards that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", type=Path, required=True, help="folder of the .smi files")
    parser.add_argument("--weights", type=Path, required=True, help="folder of ANI-2x (NeuroChem)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--chunks", type=int, default=20, help="shards are numbered up to here (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first shard (default: %(default)s)")
    parser.add_argument("--plan", choices=list(PLANS), default="labels", help="which molecules (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="random seed (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    plan = PLANS[args.plan]
    mols, known = candidates(args.molecules, plan)
    rng = np.random.default_rng(args.seed)
    order, chosen = balanced(mols, plan.shares, rng), random_pairs(mols, known, plan.pairs * args.chunks, plan, rng)
    print(len(mols), "molecules,", len(order), "after thinning,", len(known), "known pairs", flush=True)
    teacher = Teacher(args.weights)
    for chunk in range(args.first, args.chunks):
        path = args.out / f"shard_{chunk:04d}.npz"
        if path.exists():
            continue
        start, rng = time.time(), np.random.default_rng([args.seed, chunk])
        names = order[plan.skip + chunk * plan.molecules :][: plan.molecules]
        frames = monomer_frames(teacher, {name: mols[name] for name in names}, plan, rng) if names else []
        if plan.pairs:
            frames += dimer_frames(teacher, mols, chosen[chunk * plan.pairs : (chunk + 1) * plan.pairs], plan, rng)
        arrays = labelled(teacher, frames)
        write(path, arrays)
        print(path.name, len(frames), "frames,", len(arrays["size"]), f"kept, {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
