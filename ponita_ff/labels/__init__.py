"""Labels for frames: energies and forces by tblite, PySCF or any ASE calculator, in parallel, resumable."""

from ponita_ff.labels.journal import journal_path
from ponita_ff.labels.kohn_sham import KohnSham
from ponita_ff.labels.methods import LabelError, Method, find_method
from ponita_ff.labels.run import LabelResult, label_frames

__all__ = ["KohnSham", "LabelError", "LabelResult", "Method", "find_method", "journal_path", "label_frames"]
