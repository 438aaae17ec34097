"""Active learning: a committee's dynamics samples frames, and those where its members disagree are labelled."""

from typing import TYPE_CHECKING

from ponita_ff.lazy import loader

if TYPE_CHECKING:
    from ponita_ff.explore.run import ExplorationResult, explore
    from ponita_ff.explore.settings import ExploreError, ExploreSettings

__all__ = ["ExplorationResult", "ExploreError", "ExploreSettings", "explore"]

_HOMES = {
    "ExplorationResult": "run",
    "ExploreError": "settings",
    "ExploreSettings": "settings",
    "explore": "run",
}

if not TYPE_CHECKING:
    __getattr__ = loader(__name__, _HOMES)
