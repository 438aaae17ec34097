"""Threads after a fork: without the change every one of these processes hangs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

if not hasattr(os, "fork"):
    pytest.skip("there is no fork here", allow_module_level=True)

#: Computes with two threads, forks, computes in the child, and kills it after a time: a hang gives another exit status.
PROGRAM = """
import os, signal, sys, warnings
import torch
from ase import Atoms
from ponita_ff import PonitaCalculator

warnings.simplefilter("ignore")  # newer Python warns of every fork with threads
torch.set_num_threads(2)
atoms = Atoms("COH", positions=[[0, 0, 0], [0, 0, 1.2], [0, 1, 0]])
calculators = [PonitaCalculator(sys.argv[1], device="cpu", backend=backend) for backend in ("native", "eager")]
before = [calculator.get_potential_energy(atoms) for calculator in calculators]
matrix = torch.ones(1000, 1000)
matrix @ matrix, matrix.sum()

def forked(work):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if work() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def again(calculator, energy):
    calculator.discard_state()
    return torch.get_num_threads() == 1 and abs(calculator.get_potential_energy(atoms) - energy) < 1e-4

print(*[forked(lambda: again(*pair)) for pair in zip(calculators, before)])
print(forked(lambda: float((matrix @ matrix).sum()) == 1e9 and float(matrix.sum()) == 1e6))
print(torch.get_num_threads(), again(calculators[0], before[0]))
"""


def test_a_forked_process_goes_on_with_one_thread(tiny_potential_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tiny_potential_path], capture_output=True, text=True, check=True, timeout=400
    )
    assert done.stdout.split() == ["0", "0", "0", "2", "False"]
    assert done.stderr.count("forked from one that had computed with several threads") == 2, done.stderr


IDLE = """
import os, torch
from ponita_ff.kernels.threads import number_of_threads

def forked():
    if os.fork() == 0:
        print(number_of_threads(), flush=True)
        os._exit(0)
    os.wait()

torch.set_num_threads(2)
forked()
torch.set_num_threads(1)
number_of_threads()
torch.set_num_threads(2)
forked()
"""


def test_a_process_forked_before_several_threads_have_computed_has_them() -> None:
    done = subprocess.run([sys.executable, "-c", IDLE], capture_output=True, text=True, check=True, timeout=400)
    assert (done.stdout, done.stderr) == ("2\n2\n", "")
