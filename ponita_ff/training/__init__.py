"""Training: settings, loss, loop, evaluation."""
