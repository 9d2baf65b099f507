"""Data modules with a ``calibration_dataloader()``. Imported as ``pgb_lightning.datamodules``."""

from pgb_lightning.datamodules.base import TokenizedDataModule
from pgb_lightning.datamodules.glue import GLUEDataModule
from pgb_lightning.datamodules.reviews import FilmReviewsDataModule
from pgb_lightning.datamodules.sentences import SentencesDataModule
from pgb_lightning.datamodules.squad import SQuADDataModule
from pgb_lightning.datamodules.text import TextDataModule

__all__ = [
    "FilmReviewsDataModule",
    "GLUEDataModule",
    "SQuADDataModule",
    "SentencesDataModule",
    "TextDataModule",
    "TokenizedDataModule",
]
