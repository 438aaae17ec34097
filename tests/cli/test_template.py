"""Settings files made from the settings' own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from pydantic import BaseModel, Field

from ponita_ff.audit.settings import AuditSettings
from ponita_ff.cli import main
from ponita_ff.cli.config import _CHOSEN_BY_FINETUNE
from ponita_ff.cli.template import attribute_docs, settings_template
from ponita_ff.explore.settings import ExploreSettings
from ponita_ff.sample.settings import SampleSettings
from ponita_ff.settings import dotted, with_changes
from ponita_ff.training.config import TrainConfig


def printed(which: str) -> str:
    result = CliRunner().invoke(main, ["config", which])
    assert result.exit_code == 0, result.output
    return result.output


REQUIRED: dict[str, dict[str, Any]] = {
    "train": {"data": {"path": "frames.xyz"}},
    "sample": {"method": "gfn2-xtb"},
    "explore": {"method": "gfn2-xtb", "budget": 10},
    "audit": {},
}


@pytest.mark.parametrize(
    ("which", "model"),
    [("train", TrainConfig), ("sample", SampleSettings), ("explore", ExploreSettings), ("audit", AuditSettings)],
)
def test_what_is_printed_loads_back_to_the_defaults(which: str, model: type[BaseModel]) -> None:
    text = printed(which)
    values = with_changes(yaml.safe_load(text), dotted(REQUIRED[which]))
    assert model.model_validate(values) == model.model_validate(REQUIRED[which])
    # Every setting is there, as a value or as a comment.
    for name in _names(model):
        assert f"{name.rpartition('.')[2]}:" in text, name
    for name in dotted(REQUIRED[which]):
        assert f"# {name.rpartition('.')[2]}: " in text


def test_what_finetune_chooses_is_commented_out() -> None:
    values = yaml.safe_load(printed("finetune"))
    names = _names(TrainConfig)
    assert set(names) | {name.rpartition(".")[0] for name in names} >= _CHOSEN_BY_FINETUNE
    assert not dotted(values).keys() & _CHOSEN_BY_FINETUNE
    assert not values.keys() & {"data", "model"}


def _names(model: type[BaseModel], prefix: str = "") -> list[str]:
    names = []
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            names += _names(type(default), f"{prefix}{name}.")
        names.append(prefix + name)
    return names


class Inner(BaseModel):
    """The inner part.

    Attributes:
        size: Å of it.
    """

    size: float = 1e-5


class Outer(BaseModel):
    """All of it.

    Attributes:
        file: To read; goes on
            in another line.
        one, other: Two names with one text, and ``code``.
    """

    file: Path
    one: int = 1
    other: str | None = None
    inner: Inner = Inner(size=2.0)
    maybe: Inner | None = None
    listed: list[float] = Field(default=[0.5, 1.0])


def test_template_of_a_small_class() -> None:
    assert settings_template(Outer, {"one"}) == (
        "# To read; goes on in another line.\n# file: FILE  # required\n"
        "# Two names with one text, and code.\n# one: 1  # chosen by the command\n"
        "# Two names with one text, and code.\nother: null\n"
        "\n# The inner part.\ninner:\n  # Å of it.\n  size: 2.0\n"
        "\n# The inner part.\n# maybe:  # left out unless given\n#   # Å of it.\n#   size: 1.0e-05\n"
        "\nlisted: [0.5, 1.0]\n"
    )
    assert attribute_docs(Inner) == {"size": "Å of it."}
