"""Commands draw no plots and pictures here; explorations label in this process where a test asks for it."""

from __future__ import annotations

from labelled_here import labels_in_this_process
from pictures import drawn_pictures, pictures_left_out
from training_pictures import drawn_plots, plots_left_out

__all__ = ["drawn_pictures", "drawn_plots", "labels_in_this_process", "pictures_left_out", "plots_left_out"]
