"""Do what ``docs/start.md`` says, step by step, and write how long each step took to ``docs/data/tried.json``.

    python docs/_code/try_start.py

Every command is a process of its own, as for a reader, so that loading torch counts. Installation is not timed. The CPU
time is that of all cores together; the wall time depends on what else the machine does.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ponita_ff.files import write_text
from ponita_ff.provenance import describe_hardware

_PAGE = Path(__file__).resolve().parents[1] / "start.md"
_OUT = Path(__file__).resolve().parents[1] / "data" / "tried.json"


def _steps() -> list[tuple[str, list[str]]]:
    """What is shown and what is run: the blocks of the page after the installation, one process each."""
    found = []
    for block in _PAGE.read_text(encoding="utf-8").split("\n```")[1::2]:
        language, _, code = block.partition("\n")
        if language == "python":
            found.append((f"python: {_title(code)}", [sys.executable, "-c", code]))
        elif "ponita-ff" in code:
            command = code.strip()
            found.append((command, [sys.executable, "-m", "ponita_ff", *command.split()[1:]]))
    return found


def _title(code: str) -> str:
    return "the molecule from SMILES" if "conformers" in code else "ethanol, relaxed"


def main() -> None:
    """Run the steps and write the times."""
    import torch

    steps = []
    with tempfile.TemporaryDirectory() as folder:
        for shown, command in _steps():
            before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run(command, cwd=folder, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            steps.append({"step": shown, "cpu": round(cpu, 1), "wall": round(time.perf_counter() - began, 1)})
            print(f"{steps[-1]}", flush=True)
    load = f"{os.getloadavg()[1]:.1f}"
    note = f"On {describe_hardware(torch.device('cpu'))}, with a load of {load} from this and other work."
    write_text(_OUT, json.dumps({"note": note, "steps": steps}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
