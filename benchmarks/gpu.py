"""Everything that can be learnt of this package on a GPU in eight minutes, the most valuable first.

    python benchmarks/gpu.py --out gpu-out                        # on a machine with a GPU
    python benchmarks/gpu.py --out gpu-out --device cpu --quick   # does the script itself work?

Every part runs in a process of its own with a time limit, and every result is a line of JSON in OUT/results.jsonl as
soon as it is there; after each part OUT/gpu.md and OUT/gpu.png are written from all lines. What ends the script loses
nothing that was measured. The parts, in this order:

- machine: device, versions, rates of matrix products and of copies;
- correctness: energies, forces, stress and the gradient by all weights of every backend and dtype against float64 on
  the CPU; whether steps repeat bit for bit; what waits for the device;
- speed: time of a step through the calculator, memory and steps of dynamics per second for 9 to 999 atoms;
- training: steps and frames per second and memory at batches of 5, 64 and 512;
- cpu: the same on two cores of that machine;
- large: 10,000 atoms and more, until a box does not fit;
- replicas: up to 10,000 copies of ethanol in one call;
- kernels: the Triton kernels against torch, their time, rate and bandwidth at the size of 1,000 atoms of water;
- share: what part of the device's rates a step of dynamics and of training reach;
- peers (MACE, NequIP, SchNetPack, TorchMD-NET), those that are installed there;
- compiled: errors and steps with code compiled by torch;
- profile: the kernels that take longest in a step of dynamics and of training.

``gpu_bundle.py`` collects the packages for a machine that cannot fetch any, ``gpu_train.py`` trains there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import gpu_parts as parts
from gpu_parts import Check, append
from gpu_report import write_report
from peers import GPU_PEERS

#: Seconds that all parts together may take, and of those kept back for the end.
TOTAL, RESERVE = 480.0, 5.0

#: Parts in their order, and the seconds that each may take.
PARTS: dict[str, tuple[Callable[[Check], None], float]] = {
    "machine": (parts.machine, 40.0),
    "correctness": (parts.correctness, 70.0),
    "speed": (parts.speed, 90.0),
    "training": (parts.training, 90.0),
    "cpu": (parts.cpu, 60.0),
    "large": (parts.large, 70.0),
    "replicas": (parts.replicas, 40.0),
    "kernels": (parts.kernels, 60.0),
    "share": (parts.share, 40.0),
    **{name: (partial(parts.peer, name), 45.0) for name in GPU_PEERS},
    "compiled": (parts.compiled, 120.0),
    "profile": (parts.profile, 40.0),
}


def run_part(check: Check) -> None:
    """One part here; its failure is a result."""
    start, busy = time.perf_counter(), time.process_time()
    with check.logged(), check.attempt("failed"):
        PARTS[check.part][0](check)
    check.write("end of part", seconds=time.perf_counter() - start, cpu_seconds=time.process_time() - busy)


def run_in_process(command: list[str], part: str, limit: float, out: Path) -> None:
    """One part in a process that is ended when its time is over."""
    environment = os.environ | ({"OMP_NUM_THREADS": "2"} if part == "cpu" else {})
    try:
        done = subprocess.run(command, timeout=limit, check=False, env=environment)
    except subprocess.TimeoutExpired:
        append(out, {"part": part, "name": "ended", "reason": f"its {limit:.0f} s were over"})
        return
    if done.returncode:
        append(out, {"part": part, "name": "ended", "reason": f"exit status {done.returncode}"})


def why_not(part: str, limit: float) -> str | None:
    """Why a part is left out; None where it is not."""
    if limit < 1.0:
        return "no time left"
    return parts.missing(part) if part in GPU_PEERS else None


@click.command(help=__doc__.split("\n\n")[0] if __doc__ else "")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the results; lines are added.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--quick", is_flag=True, help="The smallest sizes: does the script work?")
@click.option("--seconds", default=TOTAL, show_default=True, help="For all parts together.")
@click.option("--only", "chosen", multiple=True, type=click.Choice(list(PARTS)), help="Parts to run; all by default.")
@click.option("--here", is_flag=True, help="Run the parts in this process, without time limits.")
def main(out: Path, device: str, quick: bool, seconds: float, chosen: tuple[str, ...], here: bool) -> None:
    """Run the parts."""
    end = time.monotonic() + seconds - RESERVE
    for part in chosen or PARTS:
        limit = min(PARTS[part][1], end - time.monotonic())
        reason = why_not(part, limit)
        if reason is not None:
            append(out, {"part": part, "name": "left out", "reason": reason})
        elif here:
            run_part(Check(part, device, quick, out))
        else:
            options = ["--out", str(out), "--device", device, "--only", part, "--here", *(["--quick"] if quick else [])]
            run_in_process([sys.executable, __file__, *options], part, limit, out)
            write_report(out)
    if len(chosen) != 1 or not here:  # else a part in its own process
        write_report(out)


if __name__ == "__main__":
    main()
