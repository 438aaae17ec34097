"""The speed benchmark: systems, counted operations, statistics, results, workers. Not what it measures."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.neighborlist import natural_cutoffs, neighbor_list
from torch.utils.flop_counter import FlopCounterMode

from ponita_ff.energy.derivatives import predict
from ponita_ff.network.config import PonitaConfig
from ponita_ff.network.ponita import Ponita
from ponita_ff.potential.potential import Potential
from ponita_ff.published.config import PublishedConfig
from ponita_ff.structure.graph import build_graph


@pytest.fixture(scope="module")
def speed(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("speed")


@pytest.fixture(scope="module")
def systems(speed: ModuleType) -> ModuleType:
    return sys.modules["speed_systems"]


@pytest.fixture(scope="module")
def flops(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("speed_flops")


@pytest.fixture(scope="module")
def report(speed: ModuleType) -> ModuleType:
    return sys.modules["speed_report"]


@pytest.fixture(scope="module")
def tasks(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("speed_tasks")


@pytest.fixture(scope="module")
def worker(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("speed_worker")


# ---------------------------------------------------------------------------------------------------------- flops


def test_flops_of_the_default_form(flops: ModuleType) -> None:
    config = PonitaConfig(num_ori=20, channels=128, num_layers=5, l_max=4)
    found = flops.count_flops(config, atoms=1, edges=0)
    # 2 passes × 2 products × 2·128·512, 20 orientations, 5 layers, but 1 row for 2·20 at the end; 2 passes ×
    # 2·20·20·128, 5 layers.
    assert found.convnext == 52_428_800 - 39 * 131_072
    assert found.total - found.convnext == 1_024_000
    # An edge: 2·5 there and 6·4 + 4 back, at 20·128·5 places.
    assert flops.count_flops(config, 1, 1).total - found.total == 38 * 12_800
    many = flops.count_flops(config, 300, 15_000)
    assert many.total == 300 * found.total + 15_000 * 486_400


def test_flops_without_orientations(flops: ModuleType) -> None:
    config = PonitaConfig(num_ori=0, channels=8, num_layers=3, widening=2)
    # k f and its sum (2), back p, its sum, and k g and its sum (4); no sum over orientations.
    assert flops.count_flops(config, 0, 1).total == 6 * 8 * 3
    found = flops.count_flops(config, 1, 0)
    assert found.total == found.convnext == 2 * 8 * 16 * (2 * 2 * 3 - 1)


def test_flops_of_the_published_form(flops: ModuleType) -> None:
    config = PublishedConfig()
    alone = flops.count_flops(config, 1, 0)
    assert (alone.convnext, alone.total) == (47_316_992, 48_340_992)
    # 2 passes × 2·128·(2 + 4 + 8 + 256) once; in each of 5 layers 2 passes × 2·256·128, and 5·128; 20 orientations.
    assert flops.count_flops(config, 1, 1).total - alone.total == 20 * (138_240 + 5 * (131_072 + 640))


def test_matrix_products_are_as_many_as_torch_counts(systems: ModuleType, flops: ModuleType) -> None:
    """Only the ConvNeXt products depend on the widening: what torch counts must differ by just the formula."""
    atoms, counted, expected = systems.ethanol(), [], []
    for widening in (1, 3):
        config = PonitaConfig(num_ori=12, channels=8, num_layers=2, l_max=2, widening=widening)
        with torch.random.fork_rng(devices=[]):
            potential = Potential(Ponita(config, 3), (1, 6, 8), dict.fromkeys((1, 6, 8), 0.0)).requires_grad_(False)
        graph = build_graph(atoms.numbers, atoms.positions, config.cutoff)
        with FlopCounterMode(display=False) as counter:
            predict(potential, graph, forces=True, stress=False)
        counted.append(counter.get_total_flops())
        # Torch runs the last product in full: 12 rows an atom there and back instead of 1.
        more = 2 * 8 * widening * 8 * (2 * 12 - 1) * len(atoms)
        expected.append(flops.count_flops(config, len(atoms), 72).convnext + more)
    assert counted[1] - counted[0] == expected[1] - expected[0] > 0


# ------------------------------------------------------------------------------------------------------ geometries

#: Usual bond lengths, Å: single or double, aromatic.
USUAL = {"CC": (1.39, 1.50), "CO": (1.21, 1.36), "CH": (1.09,), "HO": (0.97,)}


def test_aspirin_is_aspirin(systems: ModuleType) -> None:
    atoms = systems.aspirin()
    assert atoms.get_chemical_formula() == "C9H8O4"
    first, second, distance = neighbor_list("ijd", atoms, natural_cutoffs(atoms, mult=1.15))
    bonds = {(i, j): d for i, j, d in zip(first, second, distance, strict=True) if i < j}
    assert len(bonds) == 21  # one ring: as many bonds as atoms
    for (i, j), length in bonds.items():
        pair = "".join(sorted((atoms.symbols[i], atoms.symbols[j])))
        assert min(abs(length - usual) for usual in USUAL[pair]) < 0.1
    valence = np.bincount([i for bond in bonds for i in bond], minlength=len(atoms))
    assert sorted(valence[atoms.numbers == 6]) == [3] * 8 + [4]
    assert set(valence[atoms.numbers == 1]) == {1}
    assert sorted(valence[atoms.numbers == 8]) == [1, 1, 2, 2]
    for i in range(len(atoms)):
        for j in range(i):
            if (j, i) not in bonds:
                heavy = min(atoms.numbers[[i, j]]) > 1
                assert atoms.get_distance(i, j) > (1.5 if heavy else 1.0)


@pytest.mark.parametrize(("asked", "made"), [(100, 108), (300, 300), (1000, 1008), (3000, 3000), (10_000, 9996)])
def test_boxes_of_water(systems: ModuleType, asked: int, made: int) -> None:
    atoms = systems.water_box(asked)
    assert len(atoms) == made
    assert atoms.get_chemical_formula(empirical=True) == "H2O"
    assert atoms.pbc.all()
    assert len(atoms) / atoms.get_volume() == pytest.approx(0.1)
    lengths = atoms.cell.lengths()
    assert lengths.max() / lengths.min() < 1.4
    first, second, distance = neighbor_list("ijd", atoms, 2.0)
    other = first // 3 != second // 3
    assert distance[other].min() > 1.1
    assert np.count_nonzero(~other) == 2 * made  # three pairs in every molecule
    assert not np.allclose(atoms.positions[1] - atoms.positions[0], atoms.positions[4] - atoms.positions[3], atol=0.1)
    np.testing.assert_array_equal(systems.water_box(asked).positions, atoms.positions)


def test_directed_edges(systems: ModuleType, flops: ModuleType) -> None:
    assert flops.directed_edges(systems.aspirin(), None) == 21 * 20
    assert flops.directed_edges(Atoms("HHH", [[0, 0, 0], [1, 0, 0], [3, 0, 0]]), 2.5) == 4
    assert flops.directed_edges(systems.water_box(300), 5.0) / 300 == pytest.approx(0.1 * 4 / 3 * np.pi * 125, rel=0.1)


# ------------------------------------------------------------------------------------------- statistics and results


def test_ratio_is_taken_within_rounds(speed: ModuleType) -> None:
    """A machine that slows down to a quarter from round to round changes times, never ratios."""
    slow, fast = [[2.0, 2.2, 1.8], [4.0], [8.0, 8.0]], [[1.0], [2.0, 2.0], [4.0]]
    assert speed.paired_ratio(slow, fast) == {"median": 2.0, "p10": 2.0, "p90": 2.0}
    # One that sat out the last round is compared in those that both had.
    assert speed.paired_ratio(slow[:1], fast)["median"] == 2.0
    assert speed.spread([1.0, 2.0, 3.0, 4.0, 11.0]) == pytest.approx({"median": 3.0, "p10": 1.4, "p90": 8.2})


def _section(quick: bool = False, **figures: Any) -> dict[str, Any]:
    times = {"median": 2e-3, "p10": 1e-3, "p90": 4e-3}
    good = {"system": "ethanol", "form": "default", "backend": "native", "atoms": 9, "seconds": times}
    good |= {"make_s": 0.5, "first_s": 0.25, "replicas": 7, "batch_size": 5, "timestep_fs": 0.5, "inside": times}
    good |= {"peak_bytes": 90 * 2**20, "flops": {"convnext": 1e8, "total": 2e8}}
    bad = {"system": "ethanol", "form": "published", "backend": "eager", "failure": "out of memory at 8 GiB"}
    product = {"task": "product", "system": "ethanol", "form": "", "backend": "", "seconds": times}
    rows = [{"task": "evaluate", **good, **figures}, {"task": "evaluate", **bad}]
    return {
        "command": "python benchmarks/speed.py",
        "quick": quick,
        "date": "2026-01-01",
        "commit": "abc",
        "machine": {"hardware": "a machine", "torch": "2", "python": "3", "load_average_before": 0.0},
        "memory_limit_gib": 8.0,
        "absent_peers": ["a peer"],
        "rows": [*rows, {**product, "flops": {"convnext": 1e9, "total": 1e9}}],
    }


def test_merging_keeps_the_other_sections(speed: ModuleType) -> None:
    old = {"boxes": _section(), "batch": _section()}
    new = _section(atoms=10)
    merged = speed.merge(old, "latency", new)
    assert list(merged) == ["latency", "boxes", "batch"]  # in the order of the tables
    assert merged["boxes"] is old["boxes"]
    assert speed.merge(merged, "boxes", new)["boxes"] is new
    assert list(old) == ["boxes", "batch"]


def test_quick_results_never_stand_among_real_ones(speed: ModuleType) -> None:
    with pytest.raises(ValueError, match="--out"):
        speed.merge({"boxes": _section()}, "latency", _section(quick=True))
    merged = speed.merge({"boxes": _section(quick=True)}, "latency", _section())
    assert list(merged) == ["latency"]


def test_results_are_written_and_read_again(speed: ModuleType, tmp_path: Path) -> None:
    assert speed.load_results(tmp_path) == {}
    results = {name: _section() for name in speed.RUN}
    speed.save(results, tmp_path)
    assert speed.load_results(tmp_path) == results
    text = (tmp_path / "speed.md").read_text(encoding="utf-8")
    assert text.count("out of memory at 8 GiB") == len(speed.RUN)
    assert "| default form, native | 2.00 (1.00–4.00) | 1 | 0.750 | 50.0 | 100 | 20 % |" in text
    assert "500 (250–1,000)" in text  # steps per second: slowest and fastest the right way round
    assert "Not installed: a peer." in text
    picture = (tmp_path / "speed.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000
    (tmp_path / "speed.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="not JSON"):
        speed.load_results(tmp_path)


def test_what_failed_is_not_tried_on_larger_boxes(speed: ModuleType) -> None:
    skips, settings = speed.Skips(), speed.Settings(rounds=1)
    jobs = speed.box_jobs(300, settings)
    assert skips.split(jobs) == (jobs, [])
    skips.note([{"form": "published", "backend": "eager", "failure": "out of memory at 8 GiB"}])
    tried, rows = skips.split(speed.box_jobs(1000, settings))
    assert [(job.form, job.backend) for job in tried] == [("default", "native"), ("default", "eager")]
    assert [row["failure"] for row in rows] == ["not tried: out of memory at 8 GiB in a smaller box"]
    skips.note([{"form": "default", "backend": backend, "first_s": s} for backend, s in (("native", 9), ("eager", 99))])
    tried, rows = skips.split(speed.box_jobs(3000, settings))
    assert [job.backend for job in tried] == ["native"]
    assert "not tried: 99 s in a smaller box" in [row["failure"] for row in rows]


def test_sections_are_checked(speed: ModuleType) -> None:
    assert speed._sections(None, None, "md, latency") == ["latency", "md"]
    with pytest.raises(Exception, match="no section 'mdd'"):
        speed._sections(None, None, "mdd")


# --------------------------------------------------------------------------------------------------------- workers


@pytest.mark.parametrize("task", ["evaluate", "md", "train", "batch", "loop", "product"])
def test_a_worker_answers(worker: ModuleType, task: str) -> None:
    answers, job = io.StringIO(), worker.Job(task, "default", "eager", "ethanol", quick=True)
    with torch.random.fork_rng(devices=[]):
        worker.serve(job, io.StringIO("hello\nfacts\nprepare\nturn 0.01\nnonsense\n"), answers)
    _, facts, prepared, turn, nonsense = map(json.loads, answers.getvalue().splitlines())
    assert facts["threads"] == torch.get_num_threads()
    assert prepared["first_s"] > 0
    assert prepared["peak_bytes"] > 50 * 2**20
    assert min(turn["seconds"]) > 0
    assert "KeyError" in nonsense["failure"]
    if task == "evaluate":
        assert (prepared["facts"]["atoms"], prepared["facts"]["edges"]) == (9, 72)
    if task == "md":
        assert all(0 < inside < whole for inside, whole in zip(turn["inside"], turn["seconds"], strict=True))


def test_positions_move_between_evaluations(tasks: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    make, seen = tasks.make_calculator, []

    def spied(job: Any, atoms: Atoms) -> Any:
        calculator = make(job, atoms)
        calculate = calculator.calculate
        monkeypatch.setattr(calculator, "calculate", lambda *rest: seen.append(len(rest)) or calculate(*rest))
        return calculator

    monkeypatch.setattr(tasks, "make_calculator", spied)
    with torch.random.fork_rng(devices=[]):
        task = tasks.evaluate_task(tasks.Job("evaluate", "default", "eager", "ethanol", quick=True))
    for _ in range(10):
        task.run()
    assert len(seen) == 10  # every run computes, and once for all properties


def test_a_lack_of_memory_is_recognised(worker: ModuleType) -> None:
    for allocate in (lambda: torch.empty(2**59), lambda: np.empty(2**59)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        assert worker.explain(caught.value, 3.0) == "out of memory at 3 GiB"
    assert worker.explain(ValueError("no\nmore"), 3.0) == "ValueError: no"


def test_a_dead_worker_is_no_crash(speed: ModuleType) -> None:
    with speed.Contender(speed.Job("idle"), speed.Settings(rounds=1, threads=1)) as contender:
        contender._process.kill()
        contender.greet()
        contender.turn(0.1)
        assert contender.row(None)["failure"].startswith("process ended with signal 9")


# ----------------------------------------------------------------------------------------------- groups of results


def test_groups_end_with_their_matrix_product(report: ModuleType) -> None:
    times = {"median": 2.0, "p10": 1.0, "p90": 4.0}

    def row(task: str, system: str, form: str = "", **more: Any) -> dict[str, Any]:
        return {"task": task, "system": system, "form": form, **more}

    product = {"seconds": times, "flops": {"total": 6e9}}
    rows = [
        *(row("loop", "ethanol", "shipped"), row("batch", "ethanol", "shipped"), row("product", "ethanol", **product)),
        *(row("loop", "ethanol", "default", failure="no"), row("product", "ethanol", failure="no")),
        *(row("evaluate", "water-100", "default"), row("evaluate", "water-300", "default", failure="not tried")),
    ]
    found = [([r["system"] for r in group], rate) for group, rate in report.groups({"rows": rows})]
    assert found == [(["ethanol"] * 2, 3.0), (["ethanol"], None), (["water-100"], None), (["water-300"], None)]


def test_skipped_boxes_stand_before_the_product(speed: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(jobs: Any, settings: Any, title: str) -> Any:
        rows = [{"task": job.task, "system": job.system, "form": job.form, "backend": job.backend} for job in jobs]
        rows[-1] |= {"failure": "out of memory"} if jobs[-1].form == "published" else {}
        return [*rows, {"task": "product", "system": jobs[0].system, "form": "", "backend": ""}], {}

    monkeypatch.setattr(speed, "measure", measure)
    first, second, *_ = [rows for rows, _ in speed.run_boxes(speed.Settings(rounds=1))]
    assert [row["form"] for row in first] == ["default", "default", "published", ""]
    assert [row["form"] for row in second] == ["default", "default", "published", ""]
    assert second[2]["failure"] == "not tried: out of memory in a smaller box"


# ------------------------------------------------------------------------------------------- other force fields

#: A package in place of NequIP, as far as the adapter uses it. Its calculator takes memory where the box is large.
FAKE_NEQUIP = {
    "__init__.py": "",
    "data/__init__.py": "",
    "data/transforms.py": "ChemicalSpeciesToAtomTypeMapper = NeighborListTransform = dict",
    "integrations/__init__.py": "",
    "integrations/ase.py": """
import numpy as np
from ase.calculators.calculator import Calculator

class NequIPCalculator(Calculator):
    implemented_properties = ["energy", "forces", "stress"]

    def __init__(self, model, device, transforms):
        super().__init__()

    def calculate(self, atoms, properties, system_changes):
        super().calculate(atoms, properties, system_changes)
        if len(atoms) > 50:
            np.ones(2**32)
        self.results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3)), "stress": np.zeros(6)}
""",
    "model.py": """
class NequIPGNNModel:
    def __init__(self, **settings):
        assert settings["type_names"] == ["H", "C", "O"]

    def eval(self):
        return self

    def to(self, device):
        assert device == "cpu"
        return self
""",
    "utils/__init__.py": "",
    "utils/global_state.py": "def set_global_state(): pass",
}


@pytest.fixture(scope="module")
def peer_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the fake package, in which this package and torch cannot be imported."""
    folder = tmp_path_factory.mktemp("peer")
    site = folder / "site"
    for name, text in FAKE_NEQUIP.items():
        (site / "nequip" / name).parent.mkdir(parents=True, exist_ok=True)
        (site / "nequip" / name).write_text(text, encoding="utf-8")
    (site / "nequip-9.8.dist-info").mkdir()
    (site / "nequip-9.8.dist-info" / "METADATA").write_text("Name: nequip\nVersion: 9.8\n", encoding="utf-8")
    for forbidden in ("ponita_ff", "torch"):
        (site / f"{forbidden}.py").write_text(f"raise ImportError('{forbidden} is not here')", encoding="utf-8")
    python = folder / "python"
    python.write_text(
        f'#!/bin/sh\ntest -z "$PYTHONPATH" || exit 3\nPYTHONPATH={site} exec {sys.executable} "$@"\n', encoding="utf-8"
    )
    python.chmod(0o755)
    return python


def test_a_peer_runs_with_its_own_python(speed: ModuleType, peer_python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    settings = speed.Settings(rounds=1, quick=True, peers=speed.choose_interpreters(False, [f"nequip={peer_python}"]))
    (job,) = speed.peer_jobs(speed.Job("evaluate", "default", "native", "ethanol", quick=True), settings)
    assert job.form == "NequIP" and settings.command(["latency"]).endswith("--peers --quick")
    with speed.Contender(job, settings) as contender:
        contender.greet()
        contender.prepare()
        contender.turn(0.01)
        row = contender.row(None)
        assert contender.facts().keys() == {"python", "wait_policy", "spin_count"}
    assert row.get("failure") is None
    assert (row["package"], row["atoms"]) == ("nequip 9.8", 9)
    assert row["seconds"]["median"] > 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits the memory")
def test_out_of_memory_is_an_answer(speed: ModuleType, peer_python: Path) -> None:
    settings = speed.Settings(rounds=1, peers={"nequip": peer_python})
    with speed.Contender(speed.Job("evaluate", "NequIP", "", "water-100", memory_gib=2.0), settings) as contender:
        contender.greet()
        contender.prepare()
        row = contender.row(None)
    assert row["failure"] == "out of memory at 2 GiB"


def test_a_peer_that_cannot_be_imported_is_an_answer(speed: ModuleType, peer_python: Path) -> None:
    settings = speed.Settings(rounds=1, peers={"mace": peer_python})
    with speed.Contender(speed.Job("evaluate", "MACE-OFF23 small", "", "ethanol"), settings) as contender:
        contender.prepare()
        assert "mace-torch" in contender.row(None)["failure"]


def test_interpreters_are_found(
    speed: ModuleType, peer_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    peers = sys.modules["peers"]
    assert speed.choose_interpreters(True, []) == {}
    installed = peers.environment_folder("mace") / "bin" / "python"
    installed.parent.mkdir(parents=True)
    installed.touch()
    assert speed.choose_interpreters(True, []) == {"mace": installed}
    assert speed.choose_interpreters(False, []) == {}
    both = speed.choose_interpreters(True, [f"nequip={peer_python}"])
    assert both == {"mace": installed, "nequip": peer_python}
    for text, expected in (("mace", "NAME=PATH"), (f"x={peer_python}", "no such"), ("mace=nowhere", "does not exist")):
        with pytest.raises(click.BadParameter, match=expected):
            speed.choose_interpreters(False, [text])


def test_environments_are_made_with_their_own_pip(
    speed: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peers, called = sys.modules["peers"], []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(
        peers.venv,
        "create",
        lambda folder, **_: (folder / "bin").mkdir(parents=True) or (folder / "bin" / "python").touch(),
    )
    monkeypatch.setattr(peers.subprocess, "run", lambda command, check: called.append(command))
    peers.main(["install", "schnetpack"])
    first, second = called
    python = str(tmp_path / "ponita_ff" / "peers" / "schnetpack" / "bin" / "python")
    assert first[:4] == second[:4] == [python, "-m", "pip", "install"]
    assert "--no-deps" in first and first[-1] == "torch<2.13"
    assert second[4:] == ["torch<2.13", "schnetpack==2.1.*"]
    assert f"schnetpack==2.1.*, torch<2.13: {python}" in capsys.readouterr().out
