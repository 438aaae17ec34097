"""``ponita-ff config``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ponita_ff.cli import options
from ponita_ff.cli.group import Command

if TYPE_CHECKING:
    from pydantic import BaseModel

#: Settings that finetune chooses by its arguments, the base potential and the number of frames.
_CHOSEN_BY_FINETUNE = {
    "name",
    "data",
    "model",
    "potential.start",
    "potential.zbl_cutoff",
    "optimiser.steps",
    "optimiser.learning_rate",
    "optimiser.warmup_steps",
    "optimiser.ema_decay",
    "optimiser.validate_every",
    "optimiser.checkpoint_every",
}


def settings_models() -> dict[str, type[BaseModel]]:
    """Settings by the name of the command that reads them."""
    from ponita_ff.audit.settings import AuditSettings
    from ponita_ff.explore.settings import ExploreSettings
    from ponita_ff.sample.settings import SampleSettings
    from ponita_ff.training.config import TrainConfig

    return {
        "train": TrainConfig,
        "finetune": TrainConfig,
        "sample": SampleSettings,
        "explore": ExploreSettings,
        "audit": AuditSettings,
    }


@click.command("config", cls=Command)
@click.argument("which", type=click.Choice(["train", "finetune", "sample", "explore", "audit"]))
@options.common
def command(which: str) -> None:
    """Print all settings of a command as a YAML file, each with its default and what it means.

    Settings without a default, and those that the command chooses by itself, are commented out.

    \b
    ponita-ff config train > train.yaml     for: ponita-ff train train.yaml --out run
    ponita-ff config audit > audit.yaml     for: ponita-ff audit POTENTIAL --settings audit.yaml
    """
    from ponita_ff.cli.template import settings_template

    chosen = _CHOSEN_BY_FINETUNE if which == "finetune" else set()
    click.echo(settings_template(settings_models()[which], chosen), nl=False)
