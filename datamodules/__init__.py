"""Data modules with a ``calibration_dataloader()``. Imported as ``pgb_lightning.datamodules``."""

from pgb_lightning.datamodules.base import TextDataModule
from pgb_lightning.datamodules.glue import GLUEDataModule
from pgb_lightning.datamodules.reviews import FilmReviewsDataModule
from pgb_lightning.datamodules.squad import SQuADDataModule

__all__ = ["FilmReviewsDataModule", "GLUEDataModule", "SQuADDataModule", "TextDataModule"]
