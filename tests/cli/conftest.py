"""Commands that train draw no plots here."""

from __future__ import annotations

from training_pictures import drawn_plots, plots_left_out

__all__ = ["drawn_plots", "plots_left_out"]
