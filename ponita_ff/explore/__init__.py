"""Active learning: a committee's dynamics samples frames, and those where its members disagree are labelled."""

from ponita_ff.explore.run import ExplorationResult, explore
from ponita_ff.explore.settings import ExploreError, ExploreSettings

__all__ = ["ExplorationResult", "ExploreError", "ExploreSettings", "explore"]
