"""Imports point one way: a module may import only what stands on a lower step than its own."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import ponita_ff

ROOT = Path(ponita_ff.__file__).parent

#: The way of the data, from the leaves up. A folder stands for all its modules, which may import each other.
STEPS: tuple[tuple[str, ...], ...] = (
    ("files", "lazy"),
    ("json_lines", "page", "progress", "provenance", "python_path", "signals", "units"),
    ("kernels", "locks", "settings", "structure"),
    ("data", "network", "outputs"),
    ("energy", "published"),
    ("backends",),
    ("potential",),
    ("uncertainty",),
    ("calculator", "training"),
    ("hosts", "simulate"),
    ("audit", "labels"),
    ("sample",),
    ("teaching",),
    ("explore",),
    ("cli",),
    ("__init__", "__main__"),
)

#: Where a step alone would allow too much: all that a module may import.
ONLY = {"data": {"files", "progress", "units"}}


def module_name(path: Path) -> str:
    """Dotted name below the package: ``training.step``, ``data`` of data/__init__.py, ``__init__`` of the top."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if len(parts) > 1 and parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def is_for_types_only(node: ast.AST) -> bool:
    """``if TYPE_CHECKING:``"""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path: Path, types: bool = True) -> set[str]:
    """Modules of this package that a file imports, inside functions too, and for types only if ``types``."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if is_for_types_only(node) and not types:
            return
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import in line {node.lineno}"
            if node.module and node.module.split(".")[0] == "ponita_ff":
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}".removeprefix("ponita_ff.")
                    part = node.module.removeprefix("ponita_ff").removeprefix(".") or "__init__"
                    found.add(whole if whole in MODULES else part)
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "ponita_ff"]
            found.update(name.removeprefix("ponita_ff").removeprefix(".") or "__init__" for name in names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def top(module: str) -> str:
    """The part of a module's name that stands on a step."""
    return module.split(".")[0]


def step(module: str) -> int | None:
    """Number of the step that a module stands on."""
    return next((index for index, names in enumerate(STEPS) if top(module) in names), None)


def test_every_module_has_its_place() -> None:
    assert {top(module) for module in MODULES} == {name for names in STEPS for name in names}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    own = step(module)
    for other in imports(MODULES[module]):
        assert other in MODULES, f"{module} imports {other}, which does not exist"
        if top(other) == top(module):
            assert other != module, f"{module} imports itself"
            continue
        below = step(other)
        assert own is not None and below is not None and below < own, f"{module} must not import {other}"
        assert top(other) in ONLY.get(top(module), {top(other)}), f"{module} must not import {other}"


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("data", {"network", "potential", "structure", "training"}),
        ("calculator", {"training", "data"}),
        ("training", {"calculator"}),
    ],
)
def test_never_even_indirectly(module: str, never: set[str]) -> None:
    reached: set[str] = set()
    queue = [name for name in MODULES if top(name) == module]
    while queue:
        name = queue.pop()
        if name not in reached:
            reached.add(name)
            queue.extend(imports(MODULES[name], types=False))
    assert not {top(name) for name in reached} & never


def test_no_cycles() -> None:
    graph = {module: imports(path) - {module} for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circular imports: {' -> '.join(error.args[1])}")


def test_the_reader_of_imports_reads_them(tmp_path: Path) -> None:
    source = """
from typing import TYPE_CHECKING
import ponita_ff.structure.graph
from ponita_ff.network import ponita
from ponita_ff.data.npz import NpzFrames
import torch
if TYPE_CHECKING:
    from ponita_ff.cli import main
def function():
    from ponita_ff.training.run import train
"""
    path = tmp_path / "source.py"
    path.write_text(source, encoding="utf-8")
    run = {"structure.graph", "network.ponita", "data.npz", "training.run"}
    assert imports(path, types=False) == run
    assert imports(path) == run | {"cli"}


def test_public_names_are_loaded_when_asked_for() -> None:
    for name in ponita_ff.__all__:
        assert getattr(ponita_ff, name).__name__ == name
    assert set(ponita_ff.__all__) <= set(dir(ponita_ff))
    with pytest.raises(AttributeError, match="Ponitta"):
        ponita_ff.Ponitta  # noqa: B018


def test_only_potentials_and_what_trains_them_differentiate() -> None:
    users = {name for name, path in MODULES.items() if "autograd.grad" in path.read_text(encoding="utf-8")}
    users -= {"labels.ani"}  # networks of another program
    assert users == {"energy.derivatives", "training.step", "backends.native.comparison", "backends.native.training"}


def summary() -> str:
    """Folders and top-level modules, imports between them, and the longest chain of imports or a cycle.

    ``PYTHONPATH=CHECKOUT python tests/test_imports.py`` prints it for another checkout.
    """
    graph: dict[str, set[str]] = {top(module): set() for module in MODULES if not top(module).startswith("__")}
    for module, path in MODULES.items():
        if top(module) in graph:
            graph[top(module)] |= {top(other) for other in imports(path)} & set(graph) - {top(module)}
    sorter, chain = TopologicalSorter(graph), 0
    try:
        sorter.prepare()
    except CycleError as error:
        return f"{len(graph)} names, {sum(map(len, graph.values()))} imports, cycle: {' -> '.join(error.args[1])}"
    while sorter.is_active():
        sorter.done(*sorter.get_ready())
        chain += 1
    return f"{len(graph)} names, {sum(map(len, graph.values()))} imports, no cycle, at most {chain} steps"


if __name__ == "__main__":
    print(summary())
