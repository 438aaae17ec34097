"""Settings of an audit."""

from __future__ import annotations

import re

import pytest
from pydantic import BaseModel

from ponita_ff.audit import QUICK, AuditError, AuditSettings


def test_settings_are_layers_and_refuse_what_they_do_not_know() -> None:
    settings = AuditSettings.make(QUICK, {"nve": {"limit": 2.0}})
    assert settings.nve.limit == 2.0 and settings.nve.picoseconds == QUICK["nve"]["picoseconds"]
    with pytest.raises(AuditError, match=r"(?s)mine.yaml.*  seed: .*  nve.limt: "):
        AuditSettings.make({"nve": {"limt": 1}, "seed": -1}, source="mine.yaml")


def test_old_names_of_fields_are_translated() -> None:
    old = {
        "scans": {"squeeze": 0.2, "pull": 7.0, "halvings": 9, "suspects": 3, "stretch": 1.0},
        "modes": {"delta": 0.02},
        "nve": {"judged": 0.3},
        "nvt": {"factors": [1.5], "friction_fs": 40.0, "bond_change": 0.4},
    }
    settings = AuditSettings.make(old)
    scans, nvt = settings.scans, settings.nvt
    assert (scans.compress, scans.detach, scans.bisections, scans.bisected_intervals) == (0.2, 7.0, 9, 3)
    assert scans.stretch == 1.0
    assert settings.modes.displacement == 0.02 and settings.nve.max_assessed_timestep == 0.3
    assert (nvt.temperature_factors, nvt.relaxation_time, nvt.bond_change_limit) == ([1.5], 40.0, 0.4)
    # An old name in a later layer replaces the present one.
    assert AuditSettings.make({"scans": {"detach": 5.0}}, {"scans": {"pull": 6.0}}).scans.detach == 6.0


def sections() -> list[type[BaseModel]]:
    inner = [field.annotation for field in AuditSettings.model_fields.values()]
    return [AuditSettings, *(each for each in inner if isinstance(each, type) and issubclass(each, BaseModel))]


def test_fields_without_meaning_are_told_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    settings = AuditSettings.make({"domain": {"quantile": 0.9, "cutoff": 4.0, "limit": 2.0}})
    assert settings.domain.limit == 2.0
    assert sorted(caplog.messages) == ["domain.cutoff has no effect any more", "domain.quantile has no effect any more"]


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_field_is_documented(section: type[BaseModel]) -> None:
    attributes = (section.__doc__ or "").split("Attributes:")[1]
    documented = re.findall(r"^ {8}(\w+): ", attributes, flags=re.MULTILINE)
    assert documented == list(section.model_fields)


def test_quick_settings_are_valid() -> None:
    assert AuditSettings.make(QUICK) != AuditSettings()
