"""Distance from the labelled frames."""

from __future__ import annotations

from ase import Atoms
from audit_calculators import Committee, Springs, find_measurement, labelled_frames, run_check

from ponita_ff.audit import AuditSettings, audit


def test_the_domain_tells_near_from_far(water: Atoms, fast: AuditSettings) -> None:
    springs = Springs(water)
    frames = labelled_frames(springs, water, 60, 0.05)
    near = run_check("domain", springs, water, fast, frames)
    assert near.failures == []
    far = water.copy()
    far.positions *= 1.3
    assert run_check("domain", springs, far, fast, frames).failures == ["distance of the structure from the frames"]
    sulphide = water.copy()
    sulphide.symbols[0] = "S"
    unknown = run_check("domain", springs, sulphide, fast, frames)
    assert unknown.failures == ["distance of the structure from the frames"] and "no S" in unknown.measurements[0].note
    assert "three" in (run_check("domain", springs, water, fast, frames[:2]).skip_reason or "")


def test_a_committee_that_becomes_unsure_is_seen(water: Atoms, fast: AuditSettings) -> None:
    committee = Committee(Springs(water))
    frames = labelled_frames(Springs(water), water, 20, 0.01)
    hot = AuditSettings.make(fast.model_dump(), {"temperature": 2000.0})
    result = audit({"it": committee}, water, frames, hot, only=["nvt", "domain"]).results["it"]["domain"]
    part = find_measurement(result, "fraction at 2000 K with a committee spread")
    assert part.value is not None and part.value > 0.2
