"""Labels for frames: energies and forces by other programs or any ASE calculator, in parallel, resumable."""

from ponita_ff.labels.journal import journal_path
from ponita_ff.labels.kohn_sham import KohnSham
from ponita_ff.labels.methods import LabelError, Method, find_method, with_weights
from ponita_ff.labels.results import Labels
from ponita_ff.labels.run import LabelResult, disagreed_path, label_frames

__all__ = [
    "KohnSham",
    "LabelError",
    "LabelResult",
    "Labels",
    "Method",
    "disagreed_path",
    "find_method",
    "journal_path",
    "label_frames",
    "with_weights",
]
