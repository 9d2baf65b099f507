"""Lightning callbacks: pruning, its report, distillation, exact resumes, checkpoints, and files of predictions."""

from pgb_lightning.callbacks.answers import AnswerWriter
from pgb_lightning.callbacks.checkpoint import BestCheckpoint
from pgb_lightning.callbacks.distillation import Distillation
from pgb_lightning.callbacks.exact_resume import ExactResume
from pgb_lightning.callbacks.pgb import PGBCallback
from pgb_lightning.callbacks.predictions import PredictionWriter
from pgb_lightning.callbacks.report import PGBReport

__all__ = [
    "AnswerWriter",
    "BestCheckpoint",
    "Distillation",
    "ExactResume",
    "PGBCallback",
    "PGBReport",
    "PredictionWriter",
]
