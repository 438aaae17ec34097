"""Narrow the blocks of a potential, to train a smaller network on from what a larger one learned.

    python narrow.py potential.safetensors --widening 2 --data teacher.h5 --out narrow.safetensors

Of the hidden units of each block those are kept whose activations on some frames span the others' best (a pivoted QR
decomposition), and the layer behind them is fitted anew, by least squares, to what the block added before. Blocks are
narrowed one after the other, each with the features of those narrowed so far. Needs ponita_ff. Forces are then wrong
by some 0.1 eV/Å, which training mends.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import qr
from torch import Tensor, nn

from ponita_ff.data import read_frames
from ponita_ff.kernels.activation import gelu
from ponita_ff.network.ponita import Ponita
from ponita_ff.potential.file import load_potential, save_potential
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.graph import Graph, batch_graphs
from ponita_ff.training.evaluate import frame_graph

#: Rows of activations in a fit, and its ridge for each of them.
ROWS, RIDGE = 40_000, 1e-6


def output_of(model: Potential, module: nn.Module, graph: Graph) -> Tensor:
    """Return what a module puts out, shape (rows, features)."""
    found: list[Tensor] = []
    with module.register_forward_hook(lambda _module, _inputs, output: found.append(output.detach())):
        model(graph, forces=False)
    return found[0].flatten(0, -2)


def kept_units(activations: Tensor, contract: nn.Linear, number: int) -> Tensor:
    """Return the indices of the units that span all others best, weighted by what they add to the features.

    Args:
        activations: Shape (rows, units).
        contract: The layer behind them.
        number: How many to keep.
    """
    scaled = activations * contract.weight.double().norm(dim=0)
    values, vectors = np.linalg.eigh((scaled.T @ scaled).numpy())
    root = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
    return torch.from_numpy(np.sort(qr(root, mode="r", pivoting=True)[1][:number]))


@torch.no_grad()
def narrowed(inputs: Tensor, targets: Tensor, expand: nn.Linear, contract: nn.Linear, units: int) -> list[nn.Linear]:
    """Return both layers of a block with fewer units.

    Args:
        inputs: Of the first layer, shape (rows, channels).
        targets: What the second is to give, shape (rows, channels).
        expand: The first layer.
        contract: The second.
        units: Hidden units of the new layers.
    """
    rows = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))[:ROWS]
    hidden, wanted = gelu(expand(inputs[rows])).double(), targets[rows].double()
    keep = kept_units(hidden, contract, units)
    design = torch.cat([hidden[:, keep], torch.ones(len(hidden), 1, dtype=torch.float64)], dim=1)
    ridge = RIDGE * len(hidden) * torch.eye(units + 1, dtype=torch.float64)
    fitted = torch.linalg.solve(design.T @ design + ridge, design.T @ wanted)
    left = (design @ fitted - wanted).norm() / (wanted - wanted.mean(0)).norm()
    print(f"{units} of {hidden.shape[1]} units: {left:.3f} of what the block adds is lost", flush=True)
    first, second = nn.Linear(expand.in_features, units), nn.Linear(units, contract.out_features)
    first.weight.copy_(expand.weight[keep])
    first.bias.copy_(expand.bias[keep])
    second.weight.copy_(fitted[:-1].T)
    second.bias.copy_(fitted[-1])
    return [first, second]


def main() -> None:
    """Write the narrower potential."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("potential", type=Path)
    parser.add_argument("--widening", type=int, required=True, help="hidden width of a block over its channels")
    parser.add_argument("--data", type=Path, required=True, help="labelled frames")
    parser.add_argument("--frames", type=int, default=250, help="how many of them (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    wide = load_potential(args.potential)
    if not isinstance(wide.network, Ponita) or not 1 <= args.widening < wide.network.config.widening:
        raise SystemExit(f"{args.potential} has no blocks of the force-field form wider than {args.widening}")
    frames = read_frames(args.data)
    chosen = np.random.default_rng(0).choice(len(frames), min(args.frames, len(frames)), replace=False)
    graph = batch_graphs([frame_graph(frames[int(index)], wide.cutoff) for index in chosen])
    narrow = copy.deepcopy(wide)
    config = wide.network.config.model_copy(update={"widening": args.widening})
    for block, own in zip(wide.network.layers, narrow.network.layers, strict=True):
        inputs, targets = output_of(narrow, own.norm, graph), output_of(wide, block.contract, graph)
        own.expand, own.contract = narrowed(
            inputs, targets, block.expand, block.contract, config.widening * config.channels
        )
    network = Ponita(config, len(wide.species))
    network.load_state_dict(narrow.network.state_dict())
    narrow.network = network
    save_potential(narrow, args.out)


if __name__ == "__main__":
    main()
