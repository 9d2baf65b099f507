"""Lightning callbacks: pruning at fit start, checkpoints, and files of predictions."""

from pgb_lightning.callbacks.checkpoint import BestCheckpoint
from pgb_lightning.callbacks.pgb import PGBCallback
from pgb_lightning.callbacks.predictions import PredictionWriter

__all__ = ["BestCheckpoint", "PGBCallback", "PredictionWriter"]
