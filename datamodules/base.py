"""What every text-classification data module shares: tokenization, loaders, the calibration split."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import Any

import lightning as L
import numpy as np
import torch
from datasets import Dataset, Value
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, DataCollatorWithPadding, PreTrainedTokenizerBase

from pgb_lightning.config import CALIBRATION_SIZE
from pgb_lightning.datamodules.sampling import calibration_rows
from pgb_lightning.packaged import resolve_model

SECRET_LABEL = -1
"""What the Hub writes for every label of a test split whose labels are not public."""

Batch = dict[str, torch.Tensor]


def tokenize(
    rows: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase, columns: tuple[str, ...], max_length: int
) -> dict[str, Any]:
    """Tokenize a batch of rows. A plain function, so that `datasets` can hash it for its cache.

    Args:
        rows: Columns of the batch.
        tokenizer: The model's tokenizer.
        columns: One text column, or two for sentence pairs.
        max_length: Longer inputs are cut to this many tokens.

    Returns:
        The tokenizer's columns, unpadded.
    """
    return dict(tokenizer(*(rows[name] for name in columns), truncation=True, max_length=max_length))


class TextDataModule(L.LightningDataModule):
    """Serve tokenized text with labels; a subclass says where the rows come from.

    Batches are dicts with `input_ids`, `attention_mask`, `token_type_ids` where the model has them, and
    `labels`; each is padded to its longest row. Tokenized rows are cached on disk by `datasets`.

    Args:
        model_name_or_path: Whose tokenizer to use: a Hub name, a local folder, or "minilm-l6" for the
            packaged MiniLM.
        max_length: Inputs are cut to this many tokens.
        batch_size: Rows in a training batch, on each device.
        eval_batch_size: Rows in a batch of validation, test and prediction.
        calibration_size: Training rows that `calibration_dataloader` serves; None for 2,048, or all rows
            with a warning if there are fewer.
        calibration_batch_size: Rows in a calibration batch.
        max_train_samples: Train (and calibrate) on this many rows, drawn at random; None for all.
        seed: Draws the calibration rows and `max_train_samples`.
        num_workers: Processes that load data; 0 loads in the main process.

    Raises:
        MisconfigurationException: If a size is below 1.
    """

    text_columns: tuple[str, ...]
    num_labels: int
    validation_splits: tuple[str, ...] = ("validation",)

    def __init__(
        self,
        model_name_or_path: str,
        max_length: int = 128,
        batch_size: int = 32,
        eval_batch_size: int = 128,
        calibration_size: int | None = None,
        calibration_batch_size: int = 32,
        max_train_samples: int | None = None,
        seed: int = 42,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        at_least_one = {
            "max_length": max_length,
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "calibration_size": calibration_size,
            "calibration_batch_size": calibration_batch_size,
            "max_train_samples": max_train_samples,
        }
        for name, value in at_least_one.items():
            if value is not None and value < 1:
                raise MisconfigurationException(f"{name}={value} is out of range: give 1 or more.")
        if num_workers < 0:
            raise MisconfigurationException(f"num_workers={num_workers} is out of range: give 0 or more.")
        self.model_name_or_path = str(model_name_or_path)
        self.max_length = max_length
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.calibration_size = calibration_size
        self.calibration_batch_size = calibration_batch_size
        self.max_train_samples = max_train_samples
        self.seed = seed
        self.num_workers = num_workers
        self._splits: dict[str, Dataset] = {}

    # ---- what a subclass provides -------------------------------------------------------------------------

    @abstractmethod
    def load_rows(self, split: str) -> Dataset:
        """Read a split's rows, with the text columns and (if it has labels) a column `label`."""

    def describe(self, split: str) -> str:
        """Say where a split comes from, for messages."""
        return f"split {split!r}"

    def test_splits(self) -> tuple[str, ...]:
        """Name the splits kept for the end; none by default."""
        return ()

    # ---- rows ---------------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's fast tokenizer."""
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(resolve_model(self.model_name_or_path))
        if self.max_length > tokenizer.model_max_length:
            raise MisconfigurationException(
                f"max_length={self.max_length} is more than model {self.model_name_or_path!r} takes; "
                f"give 1 to {tokenizer.model_max_length}."
            )
        return tokenizer

    def split(self, name: str) -> Dataset:
        """Give a split's tokenized rows, read on first use.

        Args:
            name: For example "train".

        Returns:
            Rows with the tokenizer's columns and, where there are labels, `labels`.

        Raises:
            MisconfigurationException: If a column is missing or a label is out of range.
        """
        if name not in self._splits:
            self._splits[name] = self._tokenized(name)
        return self._splits[name]

    def prepare_data(self) -> None:
        """Download and tokenize into the cache of `datasets`; Lightning calls this on one rank only."""
        for name in self._splits_for(self.trainer.state.fn if self.trainer else None):
            self._tokenized(name)

    def setup(self, stage: str | None = None) -> None:
        """Read the splits that `stage` needs; the tokenized rows come from the cache."""
        for name in self._splits_for(stage):
            self.split(name)

    def _splits_for(self, stage: str | None) -> tuple[str, ...]:
        if stage == "validate":
            return self.validation_splits
        if stage in ("test", "predict"):
            return self.test_splits() or self.validation_splits
        return ("train", *self.validation_splits)

    def _tokenized(self, name: str) -> Dataset:
        rows = self.load_rows(name)
        is_test = name in self.test_splits()
        needed = self.text_columns if is_test else (*self.text_columns, "label")
        absent = [column for column in needed if column not in rows.column_names]
        if absent:
            raise MisconfigurationException(
                f"{self.describe(name)} has no column {', '.join(map(repr, absent))}; "
                f"its columns are: {', '.join(rows.column_names)}."
            )
        labelled = "label" in rows.column_names and not (is_test and rows.unique("label") == [SECRET_LABEL])
        if name == "train" and self.max_train_samples is not None:
            chosen = np.random.default_rng(self.seed).permutation(len(rows))[: self.max_train_samples]
            rows = rows.select(chosen)
        if labelled:
            self._check_labels(rows, name)
            if self.num_labels == 1:  # scores that happen to be whole numbers are still scores
                rows = rows.cast_column("label", Value("float32"))
        tokenized = rows.map(
            tokenize,
            batched=True,
            remove_columns=[column for column in rows.column_names if column != "label" or not labelled],
            fn_kwargs={
                "tokenizer": self.tokenizer,
                "columns": self.text_columns,
                "max_length": self.max_length,
            },
            desc=f"Tokenizing {name}",
        )
        return tokenized.rename_column("label", "labels") if labelled else tokenized

    def _check_labels(self, rows: Dataset, name: str) -> None:
        found = rows.unique("label")
        if self.num_labels == 1:
            wrong = [label for label in found if label is None or not np.isfinite(label)]
            allowed = "finite numbers"
        else:
            wrong = [label for label in found if label not in range(self.num_labels)]
            allowed = f"whole numbers from 0 to {self.num_labels - 1}"
        if wrong:
            raise MisconfigurationException(
                f"{self.describe(name)}: column 'label' holds {wrong[:5]}; labels must be {allowed}."
            )

    # ---- loaders ------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Batch]:
        """Serve the training rows, shuffled."""
        return self._loader(self.split("train"), self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Serve the validation rows: one loader a validation split."""
        return self._evaluation_loaders(self.validation_splits)

    def test_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Serve the test rows if they have labels, as GLUE's have not; else the validation rows."""
        names = self.test_splits()
        labelled = names and all("labels" in self.split(name).column_names for name in names)
        return self._evaluation_loaders(names if labelled else self.validation_splits)

    def predict_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Serve the test rows, or the validation rows where there is no test split."""
        return self._evaluation_loaders(self.test_splits() or self.validation_splits)

    def calibration_dataloader(self) -> DataLoader[Batch]:
        """Serve the rows that pruning calibrates on: the same ones in the same order on every call and rank.

        Returns:
            A loader over `calibration_size` training rows, stratified by label where labels are classes.

        Raises:
            MisconfigurationException: If there are fewer training rows than the number asked for.
        """
        rows = self.split("train")
        if self.calibration_size is not None and self.calibration_size > len(rows):
            raise MisconfigurationException(
                f"calibration_size={self.calibration_size} is more than the {len(rows)} training rows there "
                f"are; give 1 to {len(rows)}, or leave it out."
            )
        size = self.calibration_size or CALIBRATION_SIZE
        if size > len(rows):
            rank_zero_warn(f"Calibrating on all {len(rows)} training rows: there are fewer than the usual {size}.")
        labels = None if self.num_labels == 1 else np.asarray(rows.with_format("numpy")["labels"][:])
        chosen = calibration_rows(labels, len(rows), min(size, len(rows)), self.seed)
        return self._loader(rows.select(chosen), self.calibration_batch_size)

    def _evaluation_loaders(self, names: tuple[str, ...]) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        loaders = [self._loader(self.split(name), self.eval_batch_size) for name in names]
        return loaders if len(loaders) > 1 else loaders[0]

    def _loader(self, rows: Dataset, batch_size: int, shuffle: bool = False) -> DataLoader[Batch]:
        return DataLoader(
            rows,
            batch_size=batch_size,
            shuffle=shuffle,
            collate_fn=self._collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _collate(self, rows: list[dict[str, Any]]) -> Batch:
        return dict(DataCollatorWithPadding(self.tokenizer)(rows))
