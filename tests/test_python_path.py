"""Calculators by their Python path."""

from __future__ import annotations

from pathlib import Path

import pytest
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

from ponita_ff.python_path import PythonPath, PythonPathError


def parse(text: str) -> PythonPath:
    path = PythonPath.parse(text)
    assert path is not None
    return path


def test_parts() -> None:
    assert parse("ase.calculators.emt:EMT") == PythonPath("ase.calculators.emt:EMT", "ase.calculators.emt", "EMT", None)
    text = "ase.calculators.lj:LennardJones{sigma: 3.4, epsilon: 0.01}"
    options = "{sigma: 3.4, epsilon: 0.01}"
    assert parse(text) == PythonPath(text, "ase.calculators.lj", "LennardJones", options)


@pytest.mark.parametrize(
    "text",
    ["organic-rmd17", "a/b.safetensors", "gfn2-xtb", "pbe/def2-svp", "module:", ":Name", "m:N{", "m:N x"],
)
def test_other_texts_are_not_python_paths(text: str) -> None:
    assert PythonPath.parse(text) is None


def test_an_existing_file_is_not_a_python_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert PythonPath.parse("module:Name") is not None
    Path("module:Name").touch()
    assert PythonPath.parse("module:Name") is None


def test_every_call_makes_a_new_calculator() -> None:
    path = parse("ase.calculators.emt:EMT")
    first, second = path.calculator(), path.calculator()
    assert isinstance(first, EMT) and isinstance(second, EMT) and first is not second


def test_keyword_arguments() -> None:
    calculator = parse("ase.calculators.lj:LennardJones{sigma: 3.4, epsilon: 0.01}").calculator()
    assert isinstance(calculator, LennardJones)
    assert (calculator.parameters["sigma"], calculator.parameters["epsilon"]) == (3.4, 0.01)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no_such_package.module:Name", "cannot find no_such_package.module:Name: .*expected package.module:Name"),
        ("ase.calculators.emt:EMTT", "cannot find ase.calculators.emt:EMTT: .*has no attribute 'EMTT'"),
        ("ase.calculators.emt:EMT{asap: [}", r"\{asap: \[\} is not a mapping of keyword arguments"),
        ("builtins:dict{a: 1}", "returns an object of type dict, expected an ASE calculator"),
        ("math:sqrt", "cannot make math:sqrt: TypeError"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(PythonPathError, match=message):
        parse(text).calculator()
