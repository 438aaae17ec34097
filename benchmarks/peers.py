"""Other force fields, for comparison: each adapter gives an ASE calculator of an untrained network of published shape.

Speed does not depend on the weights' values. None of these packages is needed otherwise; each is imported only by its
own adapter, and asks for its own licence and citation. Settings are of the size that the authors use for molecules;
all run as their calculators run them by default, uncompiled. Written for mace-torch 0.3.16, nequip 0.19, schnetpack 2.1
(which needs a torch older than 2.13) and torchmd-net 3.1.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ase.calculators.calculator import Calculator, all_changes

__all__ = ["PEERS", "Peer"]

#: Elements that every network is made for: H, C and O.
SPECIES = (1, 6, 8)

SEED = 0

#: What sums over neighbours are scaled by.
NEIGHBOURS = 15.0


def mace_off(irreps: str, cutoff: float) -> Calculator:
    """MACE in the shape of the MACE-OFF23 models (arXiv:2312.15211): 2 layers, l ≤ 3 on edges, correlation 3."""
    import mace.calculators  # first: it tells torch how e3nn's files may be read
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
    return mace.calculators.MACECalculator(models=model, device="cpu", default_dtype="float32")


def nequip() -> Calculator:
    """NequIP as its authors trained it on molecules (arXiv:2101.03164): 5 layers, l ≤ 3, 64 features, 4 Å."""
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
    return NequIPCalculator(model.eval(), device="cpu", transforms=transforms)


def painn() -> Calculator:
    """PaiNN of SchNetPack with its own settings for MD17: 3 interactions, 128 features, 20 Gaussians, 5 Å."""
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
        """The package's calculator reads a file, and computes once for each property that is asked for."""

        def _load_model(self, model_file: Any) -> Any:
            return model_file.eval()

        def calculate(self, atoms: Any = None, properties: Any = (), system_changes: Any = ()) -> None:
            wanted = ["energy", "forces", "stress"] if atoms.pbc.all() else ["energy", "forces"]
            super().calculate(atoms, wanted, system_changes)

    neighbours = spk.transform.MatScipyNeighborList(cutoff=cutoff)
    return InMemory(network, neighbor_list=neighbours, stress_key="stress", energy_unit="eV")


def tensornet() -> Calculator:
    """TensorNet of TorchMD-NET as published for molecules (arXiv:2306.06482): 2 layers, 128 channels, 4.5 Å."""
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
    return _TorchMDNet(create_model(settings).eval())


class _TorchMDNet(Calculator):
    """TorchMD-NET has no calculator for ASE; this is the least that one would be."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - as the base class declares it

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        import torch

        super().calculate(atoms, properties, system_changes)
        positions = torch.from_numpy(atoms.positions.astype("float32"))
        box = torch.from_numpy(atoms.cell.array.astype("float32")) if atoms.pbc.any() else None
        energy, forces = self.model(torch.from_numpy(atoms.numbers), positions, box=box)
        self.results = {"energy": float(energy.detach()), "forces": forces.detach().numpy()}


@dataclass(frozen=True)
class Peer:
    """A contender from elsewhere.

    Attributes:
        module: What must be installed for it.
        make: Its adapter.
        stress: Whether its calculator knows the stress; otherwise boxes are timed without.
    """

    module: str
    make: Callable[[], Calculator]
    stress: bool = True

    @property
    def installed(self) -> bool:
        """Whether its package is there."""
        return importlib.util.find_spec(self.module) is not None


#: Adapters by the name that the tables show.
PEERS = {
    "MACE-OFF23 small": Peer("mace", partial(mace_off, "96x0e", 4.5)),
    "MACE-OFF23 medium": Peer("mace", partial(mace_off, "128x0e + 128x1o", 5.0)),
    "NequIP": Peer("nequip", nequip),
    "PaiNN (SchNetPack)": Peer("schnetpack", painn),
    "TensorNet (TorchMD-NET)": Peer("torchmdnet", tensornet, stress=False),
}
