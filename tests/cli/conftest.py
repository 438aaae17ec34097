"""Commands that train draw no plots here; explorations label in this process where a test asks for it."""

from __future__ import annotations

from labelled_here import labels_in_this_process
from training_pictures import drawn_plots, plots_left_out

__all__ = ["drawn_plots", "labels_in_this_process", "plots_left_out"]
