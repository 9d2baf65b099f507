"""What every text-classification data module shares: tokenization, loaders, the calibration split."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import Any

import lightning as L
import numpy as np
import torch
from datasets import ClassLabel, Dataset, Value
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from pgb_lightning.config import CALIBRATION_SIZE
from pgb_lightning.datamodules.checks import check_labels, check_texts
from pgb_lightning.datamodules.sampling import LengthGroupedSampler, calibration_rows, shuffle_batches
from pgb_lightning.glue_tasks import differ_only_in_order
from pgb_lightning.packaged import read_tokenizer

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


def settled(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a tokenizer in the state in which `datasets` shall hash it for its cache.

    A fast tokenizer remembers how it last cut and padded, and transformers 5.0 leaves that in what is hashed, so that
    rows tokenized by a tokenizer that had been used would not be found again.
    """
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


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
        group_by_length: Whether a training batch holds rows of similar lengths, which saves padding. The batches
            come in random order.
        seed: Draws the calibration rows, `max_train_samples` and the batches of `group_by_length`.
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
        group_by_length: bool = False,
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
        self.group_by_length = group_by_length
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

    def prediction_splits(self) -> tuple[str, ...]:
        """Name the splits that `predict` runs on: the test splits, or the validation splits where there are none."""
        return self.test_splits() or self.validation_splits

    # ---- rows ---------------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's fast tokenizer."""
        tokenizer = read_tokenizer(self.model_name_or_path)
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
            MisconfigurationException: If there are no rows, a column is missing, a text is not one or a label is
                out of range.
        """
        if name not in self._splits:
            self._splits[name] = self._tokenized(name)
        return self._splits[name]

    @property
    def label_names(self) -> tuple[str, ...]:
        """What the rows call their classes, in the order of the labels; none where they only number them."""
        read = self._splits.get("train") or next(iter(self._splits.values()), None)
        feature = (read or self.split("train")).features.get("labels")
        return tuple(feature.names) if isinstance(feature, ClassLabel) else ()

    def prepare_data(self) -> None:
        """Download and tokenize into the cache of `datasets`; Lightning calls this on one rank only."""
        for name in self._splits_for(self.trainer.state.fn if self.trainer else None):
            self._tokenized(name)

    def setup(self, stage: str | None = None) -> None:
        """Read the splits that `stage` needs; the tokenized rows come from the cache."""
        for name in self._splits_for(stage):
            self.split(name)
        self._check_names_alike()

    def _check_names_alike(self) -> None:
        """Refuse splits that number the same classes in different orders."""
        features = {name: rows.features.get("labels") for name, rows in self._splits.items()}
        named = {name: feature.names for name, feature in features.items() if isinstance(feature, ClassLabel)}
        for name, names in named.items():
            first, expected = next(iter(named.items()))
            if differ_only_in_order(names, expected):
                raise MisconfigurationException(
                    f"column 'label' numbers its classes {', '.join(expected)} in {self.describe(first)}, but "
                    f"{', '.join(names)} in {self.describe(name)}; write them in one order."
                )

    def _splits_for(self, stage: str | None) -> tuple[str, ...]:
        if stage == "validate":
            return self.validation_splits
        if stage in ("test", "predict"):
            return self.prediction_splits()
        return ("train", *self.validation_splits)

    def _tokenized(self, name: str) -> Dataset:
        rows = self.load_rows(name)
        is_test = name in self.test_splits()
        needed = self.text_columns if is_test else (*self.text_columns, "label")
        check_texts(rows, self.text_columns, needed, self.describe(name))
        labelled = "label" in rows.column_names and not (is_test and rows.unique("label") == [SECRET_LABEL])
        if name == "train":
            rows = self._some(rows)
        if labelled:
            check_labels(rows, self.num_labels, self.describe(name))
            if self.num_labels == 1:  # scores that happen to be whole numbers are still scores
                rows = rows.cast_column("label", Value("float32"))
            elif not rows.features["label"].dtype.startswith("int"):  # and classes written 0.0 and 1.0 are classes
                rows = rows.cast_column("label", Value("int64"))
        tokenized = rows.map(
            tokenize,
            batched=True,
            remove_columns=[column for column in rows.column_names if column != "label" or not labelled],
            fn_kwargs={
                "tokenizer": settled(self.tokenizer),
                "columns": self.text_columns,
                "max_length": self.max_length,
            },
            desc=f"Tokenizing {name}",
        )
        return tokenized.rename_column("label", "labels") if labelled else tokenized

    def _some(self, rows: Dataset) -> Dataset:
        """Draw `max_train_samples` of the training rows."""
        if self.max_train_samples is None:
            return rows
        return rows.select(np.random.default_rng(self.seed).permutation(len(rows))[: self.max_train_samples])

    # ---- loaders ------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Batch]:
        """Serve the training rows, shuffled; by batches of similar lengths with `group_by_length`."""
        rows = self.split("train")
        if not self.group_by_length:
            return self._loader(rows, self.batch_size, shuffle=True)
        world_size, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        sampler = LengthGroupedSampler(token_counts(rows).tolist(), self.batch_size, world_size, rank, self.seed)
        return self._loader(rows, self.batch_size, sampler=sampler)

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
        return self._evaluation_loaders(self.prediction_splits())

    def calibration_dataloader(self) -> DataLoader[Batch]:
        """Serve the rows that pruning calibrates on: the same ones in the same order on every call and rank.

        The rows are batched by length, which saves most of the padding and changes no statistic, since those are
        taken row by row; the batches come in random order, so that the first ones are no shorter than the others.

        Returns:
            A loader over `calibration_size` training rows, stratified by label where labels are classes.

        Raises:
            MisconfigurationException: If there are fewer training rows than the number asked for.
        """
        rows = self.split("train")
        count = self._count(rows)
        if self.calibration_size is not None and self.calibration_size > count:
            raise MisconfigurationException(
                f"calibration_size={self.calibration_size} is more than the {count} training rows there "
                f"are; give 1 to {count}, or leave it out (null in YAML and on the command line)."
            )
        size = self.calibration_size or CALIBRATION_SIZE
        if size > count:
            rank_zero_warn(f"Calibrating on all {count} training rows: there are fewer than the usual {size}.")
        chosen = rows.select(self._draw(rows, min(size, count)))
        by_length = np.argsort(-token_counts(chosen), kind="stable")
        order = shuffle_batches(by_length, self.calibration_batch_size, self.seed)
        return self._loader(chosen.select(order), self.calibration_batch_size)

    def _count(self, rows: Dataset) -> int:
        """Count what `calibration_size` counts."""
        return len(rows)

    def _draw(self, rows: Dataset, size: int) -> NDArray[np.int64]:
        """Draw the calibration rows."""
        labels = None if self.num_labels == 1 else np.asarray(rows.with_format("numpy")["labels"][:])
        return calibration_rows(labels, len(rows), size, self.seed)

    def _evaluation_loaders(self, names: tuple[str, ...]) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        loaders = [self._loader(self.split(name), self.eval_batch_size) for name in names]
        return loaders if len(loaders) > 1 else loaders[0]

    def _loader(self, rows: Dataset, batch_size: int, **order: Any) -> DataLoader[Batch]:
        return DataLoader(
            rows,
            batch_size=batch_size,
            **order,
            collate_fn=self._collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _collate(self, rows: list[dict[str, Any]]) -> Batch:
        return dict(DataCollatorWithPadding(self.tokenizer)(rows))


def token_counts(rows: Dataset) -> NDArray[np.int64]:
    """Count the tokens of each row, without making lists of them."""
    counts: NDArray[np.int64] = rows.with_format("arrow")[:]["input_ids"].combine_chunks().value_lengths().to_numpy()
    return counts.astype(np.int64)
