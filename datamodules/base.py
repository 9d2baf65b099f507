"""The base class of the data modules: splits, data loaders and the calibration rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
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
from pgb_lightning.datamodules.tokenization import count_tokens, reset_tokenizer, tokenize
from pgb_lightning.glue_tasks import differ_only_in_order
from pgb_lightning.packaged import read_tokenizer

#: The label of all rows in test splits on the Hub whose labels are not public.
HIDDEN_LABEL = -1

Batch = dict[str, torch.Tensor]


class TokenizedDataModule(L.LightningDataModule):
    """Base class that provides tokenized texts with labels. Subclasses define where the rows come from.

    Batches are dicts with ``input_ids``, ``attention_mask``, ``token_type_ids`` if the model uses them, and
    ``labels``. Each batch is padded to its longest row. ``datasets`` caches tokenized rows on disk.

    Args:
        model_name_or_path: The model whose tokenizer is used: a Hub name, a local folder, or ``"minilm-l6"`` for the
            packaged MiniLM.
        max_length: Inputs are truncated to this many tokens.
        batch_size: Rows in a training batch, per device.
        eval_batch_size: Rows in a batch of validation, test and prediction.
        calibration_size: Training rows in ``calibration_dataloader``. ``None`` means 2,048, or all rows with a warning
            if there are fewer.
        calibration_batch_size: Rows in a calibration batch.
        max_train_samples: Train (and calibrate) on this many rows, drawn at random. ``None`` means all.
        group_by_length: Whether a training batch has rows of similar lengths, which saves padding. The order of the
            batches is random.
        seed: Seed for the calibration rows, ``max_train_samples`` and the batches of ``group_by_length``.
        num_workers: Processes that load data. 0 loads in the main process.

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
        sizes = {
            "max_length": max_length,
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "calibration_size": calibration_size,
            "calibration_batch_size": calibration_batch_size,
            "max_train_samples": max_train_samples,
        }
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise MisconfigurationException(f"{name}={value} is out of range. Use 1 or more.")
        if num_workers < 0:
            raise MisconfigurationException(f"num_workers={num_workers} is out of range. Use 0 or more.")
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

    # ---- overridden by subclasses ---------------------------------------------------------------------------

    @abstractmethod
    def load_rows(self, split: str) -> Dataset:
        """Return a split's rows, with the text columns and, for labeled splits, a column ``label``."""

    def describe(self, split: str) -> str:
        """Describe a split's source, for messages."""
        return f"split {split!r}"

    def test_splits(self) -> tuple[str, ...]:
        """Return the names of the test splits. The default is none."""
        return ()

    def prediction_splits(self) -> tuple[str, ...]:
        """Return the splits for ``predict``: the test splits if there are any, else the validation splits."""
        return self.test_splits() or self.validation_splits

    # ---- rows -----------------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's fast tokenizer."""
        tokenizer = read_tokenizer(self.model_name_or_path)
        if tokenizer.pad_token_id is None:
            raise MisconfigurationException(
                f"model_name_or_path={self.model_name_or_path!r}: its tokenizer has no token for padding. Set its "
                "pad_token to the one that the model was trained with, and save the tokenizer in the same folder."
            )
        fewest = tokenizer.num_special_tokens_to_add(pair=len(self.text_columns) > 1) + 1
        if self.max_length > tokenizer.model_max_length:
            raise MisconfigurationException(
                f"max_length={self.max_length} is more than the model {self.model_name_or_path!r} supports. "
                f"Use {fewest} to {tokenizer.model_max_length}."
            )
        if self.max_length < fewest:
            raise MisconfigurationException(
                f"max_length={self.max_length} leaves no room for texts beside the {fewest - 1} special tokens of the "
                f"model {self.model_name_or_path!r}. Use {fewest} or more."
            )
        return tokenizer

    def split(self, name: str) -> Dataset:
        """Return a split's tokenized rows, which are loaded on first use.

        Args:
            name: For example ``"train"``.

        Returns:
            Rows with the tokenizer's columns and, for labeled splits, ``labels``.

        Raises:
            MisconfigurationException: If there are no rows, a column is missing, a text is not a string, or a label is
                out of range.
        """
        if name not in self._splits:
            self._splits[name] = self._load_tokenized(name)
        return self._splits[name]

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the classes in the order of the labels. Empty if the rows have numbers only."""
        loaded = self._splits.get("train") or next(iter(self._splits.values()), None)
        feature = (loaded or self.split("train")).features.get("labels")
        return tuple(feature.names) if isinstance(feature, ClassLabel) else ()

    def prepare_data(self) -> None:
        """Download and tokenize the rows into the cache of ``datasets``. Lightning calls this on one rank only."""
        for name in self._splits_for(self.trainer.state.fn if self.trainer else None):
            self._load_tokenized(name)

    def setup(self, stage: str | None = None) -> None:
        """Load the splits that ``stage`` needs. Tokenized rows are read from the cache."""
        for name in self._splits_for(stage):
            self.split(name)
        self._check_class_order()

    def _check_class_order(self) -> None:
        """Raise an error if the splits list the same classes in different orders."""
        features = {name: rows.features.get("labels") for name, rows in self._splits.items()}
        named = {name: feature.names for name, feature in features.items() if isinstance(feature, ClassLabel)}
        for name, names in named.items():
            first, expected = next(iter(named.items()))
            if differ_only_in_order(names, expected):
                raise MisconfigurationException(
                    f"Column 'label' has the classes {', '.join(expected)} in {self.describe(first)}, but "
                    f"{', '.join(names)} in {self.describe(name)}. Use the same order in both."
                )

    def _splits_for(self, stage: str | None) -> tuple[str, ...]:
        if stage == "validate":
            return self.validation_splits
        if stage in ("test", "predict"):
            return self.prediction_splits()
        return ("train", *self.validation_splits)

    def _load_tokenized(self, name: str) -> Dataset:
        rows = self.load_rows(name)
        is_test = name in self.test_splits()
        required = self.text_columns if is_test else (*self.text_columns, "label")
        check_texts(rows, self.text_columns, required, self.describe(name))
        labeled = "label" in rows.column_names and not (is_test and rows.unique("label") == [HIDDEN_LABEL])
        if name == "train":
            rows = self._subsample(rows)
        if labeled:
            check_labels(rows, self.num_labels, self.describe(name))
            if self.num_labels == 1:  # scores may be stored as integers
                rows = rows.cast_column("label", Value("float32"))
            elif not rows.features["label"].dtype.startswith("int"):  # and classes as 0.0 and 1.0
                rows = rows.cast_column("label", Value("int64"))
        return self._tokenize(rows, name, tokenize, label="label" if labeled else None, columns=self.text_columns)

    def _tokenize(
        self, rows: Dataset, name: str, function: Callable[..., Any], label: str | None = None, **arguments: Any
    ) -> Dataset:
        """Tokenize rows, and drop all other columns except that of the labels, which is renamed to ``labels``.

        Args:
            rows: The rows.
            name: Description of the rows, for the progress bar.
            function: Tokenizes a batch of rows.
            label: The column of the labels, if it is to be kept.
            **arguments: Arguments of ``function`` besides the tokenizer and the maximum length.
        """
        tokenized = rows.map(
            function,
            batched=True,
            remove_columns=[column for column in rows.column_names if column != label],
            fn_kwargs={
                "tokenizer": reset_tokenizer(self.tokenizer),
                **arguments,
                "max_length": self.max_length,
            },
            desc=f"Tokenizing {name}",
        )
        return tokenized if label is None else tokenized.rename_column(label, "labels")

    def _subsample(self, rows: Dataset) -> Dataset:
        """Draw ``max_train_samples`` of the training rows."""
        if self.max_train_samples is None:
            return rows
        return rows.select(np.random.default_rng(self.seed).permutation(len(rows))[: self.max_train_samples])

    # ---- data loaders ---------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return a loader of the shuffled training rows, in batches of similar lengths with ``group_by_length``."""
        rows = self.split("train")
        if not self.group_by_length:
            return self._make_loader(rows, self.batch_size, shuffle=True)
        world_size, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        sampler = LengthGroupedSampler(count_tokens(rows).tolist(), self.batch_size, world_size, rank, self.seed)
        return self._make_loader(rows, self.batch_size, sampler=sampler)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Return one loader for each validation split."""
        return self._evaluation_loaders(self.validation_splits)

    def test_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Return loaders of the test rows if they have labels (GLUE's do not), else of the validation rows."""
        names = self.test_splits()
        labeled = names and all("labels" in self.split(name).column_names for name in names)
        return self._evaluation_loaders(names if labeled else self.validation_splits)

    def predict_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Return loaders of the test rows, or of the validation rows if there is no test split."""
        return self._evaluation_loaders(self.prediction_splits())

    def calibration_dataloader(self) -> DataLoader[Batch]:
        """Return a loader of the calibration rows: the same rows in the same order on every call and rank.

        Batches have rows of similar lengths. This avoids most of the padding and does not change the statistics, which
        are computed row by row. The batches are in random order, so that the first ones are not the shortest.

        Returns:
            A loader of ``calibration_size`` training rows, stratified by label if labels are classes.

        Raises:
            MisconfigurationException: If there are fewer training rows than ``calibration_size``.
        """
        rows = self.split("train")
        count = self._count_samples(rows)
        if self.calibration_size is not None and self.calibration_size > count:
            raise MisconfigurationException(
                f"calibration_size={self.calibration_size} is more than the number of training rows, {count}. "
                f"Use 1 to {count}, or omit it (null in YAML and on the command line)."
            )
        size = self.calibration_size or CALIBRATION_SIZE
        if size > count:
            rank_zero_warn(f"Calibrating on all {count} training rows, which are fewer than the default of {size}.")
        chosen = rows.select(self._draw_calibration_rows(rows, min(size, count)))
        by_length = np.argsort(-count_tokens(chosen), kind="stable")
        order = shuffle_batches(by_length, self.calibration_batch_size, self.seed)
        return self._make_loader(chosen.select(order), self.calibration_batch_size)

    def _count_samples(self, rows: Dataset) -> int:
        """Return the number of samples in the unit of ``calibration_size``."""
        return len(rows)

    def _draw_calibration_rows(self, rows: Dataset, size: int) -> NDArray[np.int64]:
        """Return the indices of the calibration rows."""
        labels = None if self.num_labels == 1 else np.asarray(rows.with_format("numpy")["labels"][:])
        return calibration_rows(labels, len(rows), size, self.seed)

    def _evaluation_loaders(self, names: tuple[str, ...]) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        loaders = [self._make_loader(self.split(name), self.eval_batch_size) for name in names]
        return loaders if len(loaders) > 1 else loaders[0]

    def _make_loader(self, rows: Dataset, batch_size: int, **order: Any) -> DataLoader[Batch]:
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
