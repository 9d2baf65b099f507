"""Sentences for embedding models: plain sentences for training, and pairs with scores for validation."""

from __future__ import annotations

import math
from typing import Any

import torch
from datasets import Dataset
from lightning.fabric.utilities.exceptions import MisconfigurationException
from transformers import DataCollatorWithPadding

from pgb_lightning.datamodules.checks import check_texts
from pgb_lightning.datamodules.text import TextDataModule
from pgb_lightning.datamodules.tokenization import tokenize


class SentencesDataModule(TextDataModule):
    """Provide the sentences of any table, without their labels, and pairs with scores for validation.

    The training rows are the distinct texts of all text columns. Validation and test rows are pairs with a score if
    there are two text columns and a column of scores, otherwise plain sentences.

    The settings are those of :class:`TextDataModule`.

    Example:
        >>> data = SentencesDataModule("nyu-mll/glue:stsb", "minilm-l6")  # doctest: +SKIP
    """

    @property
    def labels(self) -> None:
        """``None``, since sentences have no labels."""
        return

    @property
    def is_labeled(self) -> bool:
        """Whether validation rows are pairs with a score."""
        return len(self.text_columns) == 2 and self.columns.label is not None

    def _load_tokenized(self, name: str) -> Dataset:
        rows, source, texts = self.load_rows(name), self.describe(name), self.text_columns
        check_texts(rows, texts, texts, source)
        if name != "train" and self.is_labeled and self.columns.label in rows.column_names:
            return self._tokenize_pairs(rows, source)
        unique = dict.fromkeys(text for column in texts for text in rows[column])
        sentences = Dataset.from_dict({"text": list(unique)})
        chosen = self._subsample(sentences) if name == "train" else sentences
        return self._tokenize(chosen, name, tokenize, columns=("text",))

    def _tokenize_pairs(self, rows: Dataset, source: str) -> Dataset:
        column = self.columns.label
        assert column is not None
        scores = rows[column][:]
        wrong = [score for score in scores if not isinstance(score, (int, float)) or not math.isfinite(score)]
        if wrong:
            raise MisconfigurationException(
                f"{source}: column {column!r} has the score {wrong[0]!r}. Scores of pairs must be finite numbers. "
                "Correct the rows, pass another label_column, or set use_labels=False to do without scores."
            )
        columns: dict[str, Any] = {"labels": [float(score) for score in scores]}
        for part, column in zip(("first", "second"), self.text_columns, strict=True):
            tokenized = self._tokenize(rows, f"{part} texts", tokenize, columns=(column,))
            columns |= {f"{part} {name}": tokenized[name][:] for name in tokenized.column_names}
        return Dataset.from_dict(columns)

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if "labels" not in rows[0]:
            return super()._collate(rows)
        pad = DataCollatorWithPadding(self.tokenizer)
        parts: dict[str, Any] = {}
        for part in ("first", "second"):
            own = [
                {name.removeprefix(f"{part} "): value for name, value in row.items() if name.startswith(f"{part} ")}
                for row in rows
            ]
            parts[part] = dict(pad(own))
        return {**parts, "labels": torch.tensor([row["labels"] for row in rows])}
