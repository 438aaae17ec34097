"""Other force fields for comparison, each in a virtual environment of its own.

    python benchmarks/peers.py                        # list them, and where they are installed
    python benchmarks/peers.py install mace nequip    # create an environment for each
    python benchmarks/speed.py --peers                # measure those that are installed

The packages exclude each other: mace-torch 0.3.16 needs e3nn 0.4.4, with which NequIP cannot be imported, and
SchNetPack 2.1 needs a torch older than 2.13. None of them is needed for anything else.

Each adapter returns an ASE calculator of an untrained network of published shape: speed does not depend on the weights.
Settings are those of the authors for small molecules; all calculators run with their defaults, not compiled. Every
package has its own licence and citation.

Workers import this file in the other environments, which have numpy, SciPy and ASE, but not this package.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ase.calculators.calculator import Calculator, all_changes

__all__ = ["GPU_PEERS", "PACKAGES", "PEERS", "Package", "Peer", "environment_folder", "find_interpreters"]

#: Index with wheels of torch without CUDA, which are gigabytes smaller.
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True)
class Package:
    """A package with other force fields.

    Attributes:
        distribution: Its name for pip.
        requirements: What is installed into its environment, besides torch.
        torch: Version of torch, installed first and without CUDA.
    """

    distribution: str
    requirements: tuple[str, ...]
    torch: str = "torch==2.13.0"

    def installed_version(self) -> str:
        """Return name and version of the package in this environment.

        Raises:
            importlib.metadata.PackageNotFoundError: If it is not installed.
        """
        return f"{self.distribution} {importlib.metadata.version(self.distribution)}"


#: Packages by the names of their environments.
PACKAGES = {
    "mace": Package("mace-torch", ("mace-torch==0.3.16",)),
    "nequip": Package("nequip", ("nequip==0.19.*",)),
    "schnetpack": Package("schnetpack", ("schnetpack==2.1.*",), torch="torch<2.13"),
    "torchmd-net": Package("torchmd-net", ("torchmd-net==3.1.*", "ase", "scipy")),
}

#: Elements of every network: H, C and O.
SPECIES = (1, 6, 8)

SEED = 0

#: Average number of neighbours, which sums over neighbours are divided by.
NEIGHBOURS = 15.0


def mace_off(irreps: str, cutoff: float, device: str = "cpu", accelerated: bool = False) -> Calculator:
    """Return MACE in the shape of the MACE-OFF23 models (arXiv:2312.15211): 2 layers, l ≤ 3 on edges, correlation 3.

    ``accelerated``: with the kernels of cuEquivariance, which needs cuequivariance-torch.
    """
    import mace.calculators  # first: it makes torch load the files of e3nn
    import numpy as np
    import torch
    from e3nn import o3
    from mace import modules

    torch.manual_seed(SEED)
    model = modules.ScaleShiftMACE(
        r_max=cutoff,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
        num_interactions=2,
        num_elements=len(SPECIES),
        hidden_irreps=o3.Irreps(irreps),
        MLP_irreps=o3.Irreps("16x0e"),
        gate=torch.nn.functional.silu,
        atomic_energies=np.zeros(len(SPECIES)),
        avg_num_neighbors=NEIGHBOURS,
        atomic_numbers=list(SPECIES),
        correlation=3,
        radial_type="bessel",
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )
    options = {"enable_cueq": True} if accelerated else {}
    return mace.calculators.MACECalculator(models=model, device=device, default_dtype="float32", **options)


def nequip(device: str = "cpu") -> Calculator:
    """Return NequIP as its authors trained it on molecules (arXiv:2101.03164): 5 layers, l ≤ 3, 64 features, 4 Å."""
    from ase.data import chemical_symbols
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
    from nequip.integrations.ase import NequIPCalculator
    from nequip.model import NequIPGNNModel
    from nequip.utils.global_state import set_global_state

    set_global_state()
    names, cutoff = [chemical_symbols[z] for z in SPECIES], 4.0
    model = NequIPGNNModel(
        seed=SEED,
        model_dtype="float32",
        type_names=names,
        r_max=cutoff,
        num_layers=5,
        l_max=3,
        num_features=64,
        radial_mlp_depth=2,
        radial_mlp_width=64,
        avg_num_neighbors=NEIGHBOURS,
    )
    transforms = [ChemicalSpeciesToAtomTypeMapper(model_type_names=names), NeighborListTransform(r_max=cutoff)]
    return NequIPCalculator(model.eval().to(device), device=device, transforms=transforms)


def painn(device: str = "cpu") -> Calculator:
    """Return PaiNN of SchNetPack with its own settings for MD17: 3 interactions, 128 features, 20 Gaussians, 5 Å."""
    import schnetpack as spk
    import torch
    from schnetpack.interfaces import SpkCalculator

    torch.manual_seed(SEED)
    cutoff, features = 5.0, 128
    forces = spk.atomistic.Forces(calc_stress=True)
    network = spk.model.NeuralNetworkPotential(
        spk.representation.PaiNN(
            n_atom_basis=features,
            n_interactions=3,
            radial_basis=spk.nn.GaussianRBF(n_rbf=20, cutoff=cutoff),
            cutoff_fn=spk.nn.CosineCutoff(cutoff),
        ),
        input_modules=[spk.atomistic.Strain(), spk.atomistic.PairwiseDistances()],
        output_modules=[spk.atomistic.Atomwise(n_in=features, output_key="energy"), forces],
    )

    class InMemory(SpkCalculator):
        """Takes a model instead of a file, and calculates all properties at once."""

        def _load_model(self, model_file: Any) -> Any:
            return model_file.eval()

        def calculate(self, atoms: Any = None, properties: Any = (), system_changes: Any = ()) -> None:
            wanted = ["energy", "forces", "stress"] if atoms.pbc.all() else ["energy", "forces"]
            super().calculate(atoms, wanted, system_changes)

    neighbours = spk.transform.MatScipyNeighborList(cutoff=cutoff)
    return InMemory(network, neighbor_list=neighbours, stress_key="stress", energy_unit="eV", device=device)


def tensornet(device: str = "cpu") -> Calculator:
    """Return TensorNet of TorchMD-NET as published for molecules (arXiv:2306.06482): 2 layers, 128 channels, 4.5 Å."""
    import torch
    from torchmdnet.models.model import create_model

    torch.manual_seed(SEED)
    settings = {
        "model": "tensornet",
        "embedding_dimension": 128,
        "num_layers": 2,
        "num_rbf": 32,
        "rbf_type": "expnorm",
        "trainable_rbf": False,
        "activation": "silu",
        "cutoff_lower": 0.0,
        "cutoff_upper": 4.5,
        "max_z": 10,
        "max_num_neighbors": 128,
        "equivariance_invariance_group": "O(3)",
        "output_model": "Scalar",
        "reduce_op": "sum",
        "atom_filter": -1,
        "prior_model": None,
        "derivative": True,
        "precision": 32,
    }
    return _TorchMDNet(create_model(settings).eval(), device)


class _TorchMDNet(Calculator):
    """A minimal ASE calculator for TorchMD-NET, which has none."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - as the base class declares it

    def __init__(self, model: Any, device: str) -> None:
        super().__init__()
        self.model, self.device = model.to(device), device

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        import torch

        super().calculate(atoms, properties, system_changes)
        positions = torch.from_numpy(atoms.positions.astype("float32")).to(self.device)
        box = torch.from_numpy(atoms.cell.array.astype("float32")).to(self.device) if atoms.pbc.any() else None
        energy, forces = self.model(torch.from_numpy(atoms.numbers).to(self.device), positions, box=box)
        self.results = {"energy": float(energy.detach()), "forces": forces.detach().cpu().numpy()}


@dataclass(frozen=True)
class Peer:
    """A contender from another package.

    Attributes:
        environment: Name of its package in `PACKAGES`.
        make: Its adapter; takes the ``device``, the CPU by default.
        stress: Whether its calculator provides the stress; if not, boxes are timed without.
        also: Another distribution that it needs.
    """

    environment: str
    make: Callable[..., Calculator]
    stress: bool = True
    also: str | None = None

    @property
    def package(self) -> Package:
        """The package that it needs."""
        return PACKAGES[self.environment]


#: Contenders by the names that the tables show.
PEERS = {
    "MACE-OFF23 small": Peer("mace", partial(mace_off, "96x0e", 4.5)),
    "MACE-OFF23 medium": Peer("mace", partial(mace_off, "128x0e + 128x1o", 5.0)),
    "NequIP": Peer("nequip", nequip),
    "PaiNN (SchNetPack)": Peer("schnetpack", painn),
    "TensorNet (TorchMD-NET)": Peer("torchmd-net", tensornet, stress=False),
}

#: Those that ``gpu.py`` measures as well.
GPU_PEERS = PEERS | {
    "MACE-OFF23 small, cuEquivariance": Peer(
        "mace", partial(mace_off, "96x0e", 4.5, accelerated=True), also="cuequivariance-torch"
    )
}


# ----------------------------------------------------------------------------------------------------- environments


def environment_folder(name: str) -> Path:
    """Return the folder of a virtual environment, below the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "ponita_ff" / "peers" / name


def find_interpreters(chosen: Mapping[str, Path]) -> dict[str, Path]:
    """Return the Python interpreter of every environment that there is.

    Args:
        chosen: Interpreters given by the user, which take precedence over installed environments.

    Raises:
        ValueError: For an unknown environment or an interpreter that does not exist.
    """
    for name, path in chosen.items():
        if name not in PACKAGES:
            raise ValueError(f"no such environment: {name}; there are {', '.join(PACKAGES)}")
        if not path.is_file():
            raise ValueError(f"the interpreter of {name} does not exist: {path}")
    installed = {name: environment_folder(name) / "bin" / "python" for name in PACKAGES}
    return {name: path for name, path in installed.items() if path.is_file()} | dict(chosen)


def install(name: str) -> None:
    """Create an environment and install its package.

    Raises:
        subprocess.CalledProcessError: If pip fails; its messages have been printed.
    """
    folder = environment_folder(name)
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install"]
    package = PACKAGES[name]
    try:
        subprocess.run([*pip, "--extra-index-url", TORCH_INDEX, "--no-deps", package.torch], check=True)
        subprocess.run([*pip, package.torch, *package.requirements], check=True)
    except subprocess.CalledProcessError:
        (folder / "bin" / "python").unlink()  # half an environment must not count as installed
        raise


def main(arguments: Sequence[str] | None = None) -> None:
    """List or install the environments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    install_parser = commands.add_parser("install", help="create an environment for each package named")
    install_parser.add_argument("names", nargs="+", choices=list(PACKAGES), metavar="NAME", help=", ".join(PACKAGES))
    options = parser.parse_args(arguments)
    if options.command == "install":
        for name in options.names:
            install(name)
    found = find_interpreters({})
    for name, package in PACKAGES.items():
        print(f"{name:12} {', '.join((*package.requirements, package.torch))}: {found.get(name, 'not installed')}")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
