"""Lightning callbacks: pruning, reports, distillation, exact resumption, dropout, checkpoints and prediction files."""

from pgb_lightning.callbacks.best_checkpoint import BestCheckpoint
from pgb_lightning.callbacks.distillation import Distillation
from pgb_lightning.callbacks.exact_resume import ExactResume
from pgb_lightning.callbacks.fast_dropout import FastDropout
from pgb_lightning.callbacks.glue_writer import PredictionWriter
from pgb_lightning.callbacks.pgb import PGBCallback
from pgb_lightning.callbacks.report import PGBReport
from pgb_lightning.callbacks.squad_writer import AnswerWriter

__all__ = [
    "AnswerWriter",
    "BestCheckpoint",
    "Distillation",
    "ExactResume",
    "FastDropout",
    "PGBCallback",
    "PGBReport",
    "PredictionWriter",
]
