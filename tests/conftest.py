"""Small potentials with random weights, systems to try them on, and a watch over torch's global state."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from ponita_ff.network.config import PonitaConfig
from ponita_ff.network.ponita import Ponita
from ponita_ff.potential.file import save_potential
from ponita_ff.potential.potential import Potential

# Triton reads it when it is imported: without a GPU its kernels run on the CPU, one operation after the other.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# As above: TorchInductor compiles in the test's process. Its pool of processes imports torch in each, for a few files.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

#: Reference energies in eV, of the size that isolated atoms have in DFT.
REFERENCES = {1: -13.6, 6: -1029.9, 8: -2041.8}

MakePotential = Callable[..., Potential]


#: Files whose tests compile or train for long: they come first, so that no process is left with one of them at the end.
SLOW_FILES = (
    "backends/test_ahead_of_time.py",
    "backends/test_compiled.py",
    "training/test_step.py",
    "explore/test_run.py",
    "labels/test_run.py",
    "benchmarks/test_gpu.py",
    "test_md_examples.py",
    "test_shipped.py",
    "cli/test_cli.py",
    "simulate/test_md.py",
    "benchmarks/test_equal_time.py",
    "benchmarks/test_finetune.py",
    "backends/native/test_engine.py",
    "cli/test_simulations.py",
    "test_calculator.py",
    "training/test_trainer.py",
    "training/test_finetune.py",
    "audit/test_smoothness.py",
    "backends/test_device_step.py",
    "benchmarks/test_active.py",
    "backends/native/test_comparison.py",
    "docs/test_code_blocks.py",
    "benchmarks/test_general.py",
    "sample/test_run.py",
    "kernels/test_threads.py",
    "hosts/test_lammps_plugin.py",
    "benchmarks/test_forms.py",
    "benchmarks/test_frames.py",
    "test_teaching.py",
    "labels/test_pool.py",
)


def pytest_configure() -> None:
    """A shell lets what it starts in the background ignore Ctrl-C, and its children with it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first, in the order of the list; see --no-loadscope-reorder in the Makefile."""
    here = Path(__file__).parent
    order = {here / name: place for place, name in enumerate(SLOW_FILES)}
    assert all(path.is_file() for path in order), "SLOW_FILES names a file that does not exist"
    items.sort(key=lambda item: order.get(item.path, len(order)))


def _torch_state() -> dict[str, Any]:
    """All of torch's settings that a library has no business changing."""
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": str(torch.get_default_device()),
        "threads": torch.get_num_threads(),
        "interop threads": torch.get_num_interop_threads(),
        "grad mode": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "random state": hashlib.sha256(torch.random.get_rng_state().numpy().tobytes()).hexdigest(),
    }


@pytest.fixture(autouse=True)
def torch_state_unchanged() -> Iterator[None]:
    """Every test leaves torch's global state as it was."""
    before = _torch_state()
    yield
    assert _torch_state() == before


def _make_potential(
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    num_ori: int = 12,
    scale: float = 1.0,
    zbl_cutoff: float | None = None,
    references: dict[int, float] | None = None,
    **shape: Any,
) -> Potential:
    """A potential for H, C and O with random weights that are the same in every run."""
    if num_ori:
        shape.setdefault("l_max", 3)
    config = PonitaConfig(**{"cutoff": 4.0, "channels": 16, "num_layers": 2, **shape}, num_ori=num_ori)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = Ponita(config, len(REFERENCES))
        # Biases and norms away from their initial 0 and 1, so that no term drops out.
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    network.to(dtype)
    network.set_grid(num_ori)
    potential = Potential(network, sorted(REFERENCES), references or REFERENCES, scale, zbl_cutoff)
    return potential.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def make_potential() -> MakePotential:
    """Makes a potential: ``make_potential(num_ori=0, zbl_cutoff=1.0, channels=8, …)``."""
    return _make_potential


@pytest.fixture
def tiny_potential() -> Potential:
    """12 orientations, 16 channels, 2 layers, cutoff 4 Å, float64."""
    return _make_potential()


@pytest.fixture
def tiny_pnita() -> Potential:
    """The same without orientations."""
    return _make_potential(num_ori=0)


@pytest.fixture(scope="session")
def tiny_potential_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a potential so weak, and with repulsion, that short dynamics of any molecule stays tame."""
    path = tmp_path_factory.mktemp("potential") / "tiny.safetensors"
    save_potential(_make_potential(dtype=torch.float32, scale=0.05, zbl_cutoff=1.0), path, {"name": "tiny"})
    return path


def _make_system(name: str) -> Atoms:
    """One of the systems on which physics is checked; nothing in them is symmetric."""
    if name == "molecule":
        atoms = molecule("CH3CH2OH")
        atoms.rattle(0.05, seed=1)
        return atoms
    cell = np.array([[4.1, 0.3, -0.2], [1.2, 3.8, 0.4], [-0.7, 0.9, 4.4]])
    if name == "triclinic, mixed pbc":
        scaled = [[0.1, 0.2, 0.0], [0.6, 0.1, 0.1], [0.2, 0.7, 0.3], [0.1, 0.2, 0.5], [0.7, 0.6, 0.7]]
        return Atoms("HCOHC", cell=cell, scaled_positions=scaled, pbc=(True, False, True))
    if name == "crystal":
        scaled = [[0.0, 0.0, 0.0], [0.55, 0.1, 0.1], [0.1, 0.5, 0.4], [0.6, 0.55, 0.6]]
        # Unwrapped on purpose: one atom lies three cells away.
        atoms = Atoms("CHOH", cell=cell, scaled_positions=scaled, pbc=True)
        atoms.positions[2] += 3 * cell[0] - cell[2]
        return atoms
    if name == "one atom in a tiny cell":
        return Atoms("C", cell=0.55 * cell, positions=[[0.3, 0.2, 0.1]], pbc=True)
    if name == "two atoms in a tiny cell":
        return Atoms("CO", cell=0.6 * cell, positions=[[0.1, 0.0, 0.2], [1.2, 0.9, 1.0]], pbc=True)
    raise KeyError(name)


@pytest.fixture(scope="session")
def make_system() -> Callable[[str], Atoms]:
    """Makes one of the systems by its name."""
    return _make_system


@pytest.fixture(
    params=["molecule", "triclinic, mixed pbc", "crystal", "one atom in a tiny cell", "two atoms in a tiny cell"]
)
def system(request: pytest.FixtureRequest) -> Atoms:
    """Each of the systems in turn."""
    return _make_system(request.param)
