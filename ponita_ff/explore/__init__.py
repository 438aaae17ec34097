"""Active learning: a committee's dynamics samples frames, and those where its members disagree are labelled."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    # Settings alone, as ``ponita-ff config`` prints them, need no torch.
    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
