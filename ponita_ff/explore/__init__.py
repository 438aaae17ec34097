"""Active learning: dynamics with a committee finds the frames that are worth a label."""

from ponita_ff.explore.run import Explored, explore
from ponita_ff.explore.settings import ExploreError, ExploreSettings

__all__ = ["ExploreError", "ExploreSettings", "Explored", "explore"]
