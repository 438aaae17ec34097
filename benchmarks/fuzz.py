"""Run the property-based tests with many cases, and write down what came of them.

    python benchmarks/fuzz.py [--cases 1000] [--processes 2]        # or: make fuzz

Each test of tests/fuzz tries so many cases, new in every run; of a case that fails it prints what reproduces it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import click

from ponita_ff.files import write_json, write_text
from ponita_ff.provenance import package_versions

ROOT = Path(__file__).parents[1]


def run(cases: int, processes: int) -> tuple[int, dict[str, dict[str, int]]]:
    """Exit code of pytest, and the number of cases by test and outcome."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "counts.jsonl"
        report.touch()
        environment = {**os.environ, "FUZZ_CASES": str(cases), "FUZZ_REPORT": str(report)}
        command = [sys.executable, "-m", "pytest", "-q", "tests/fuzz", "-n", str(processes), "--dist", "worksteal"]
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for line in report.read_text(encoding="utf-8").splitlines():
            for test, outcome, number in json.loads(line):
                counts[test][outcome] += number
    return code, {test: dict(sorted(found.items())) for test, found in sorted(counts.items())}


def table(result: dict) -> str:
    """The result as a page."""
    total = sum(sum(found.values()) for found in result["cases"].values())
    lines = [
        "# Property-based tests",
        "",
        "*Written by `python benchmarks/fuzz.py` (`make fuzz`); all numbers come from `fuzz.json`.*",
        "",
        f"{total:,} cases in {result['seconds'] / 60:.0f} minutes; "
        + ("none failed." if result["passed"] else "SOME FAILED: see the output of the run."),
        "",
        "| test | cases | outcomes |",
        "| --- | --- | --- |",
    ]
    for test, found in result["cases"].items():
        outcomes = ", ".join(f"{outcome} {number:,}" for outcome, number in found.items())
        lines.append(f"| {test} | {sum(found.values()):,} | {outcomes} |")
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--cases", default=1000, show_default=True, type=click.IntRange(min=1), help="Of each test.")
@click.option("--processes", default=2, show_default=True, type=click.IntRange(min=1))
@click.option("--results", type=click.Path(path_type=Path), default=ROOT / "benchmarks" / "results" / "fuzz")
def main(cases: int, processes: int, results: Path) -> None:
    """See the module's docstring."""
    began = time.perf_counter()
    code, counts = run(cases, processes)
    result = {
        "passed": code == 0,
        "seconds": round(time.perf_counter() - began, 1),
        "cases_of_each_test": cases,
        "cases": counts,
        "versions": package_versions(),
    }
    write_json(results.with_suffix(".json"), result)
    write_text(results.with_suffix(".md"), table(result))
    click.echo(table(result))
    sys.exit(code)


if __name__ == "__main__":
    main()
