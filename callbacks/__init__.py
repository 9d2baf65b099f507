"""Lightning callbacks: pruning at fit start."""

from pgb_lightning.callbacks.exact_resume import ExactResume
from pgb_lightning.callbacks.pgb import PGBCallback

__all__ = ["ExactResume", "PGBCallback"]
