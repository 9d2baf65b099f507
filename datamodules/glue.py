"""The nine GLUE tasks, from the Hub or from a local folder of parquet files."""

from __future__ import annotations

from typing import Any

from datasets import ClassLabel, Dataset
from lightning.fabric.utilities.exceptions import MisconfigurationException

from pgb_lightning.datamodules.base import TextDataModule
from pgb_lightning.datamodules.files import Source
from pgb_lightning.glue_tasks import GLUE_REPOSITORY, get_task


class GLUEDataModule(TextDataModule):
    """Serve one GLUE task.

    The test labels of GLUE are secret (the Hub writes -1), so `test` runs on the validation rows unless the test rows
    have labels, as a local file may, and as the Hub's do for MRPC; `predict` runs on the test rows where there are any.

    Args:
        task: Hub configuration name: cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte or wnli.
        model_name_or_path: Whose tokenizer to use: a Hub name, a local folder, or "minilm-l6".
        data_dir: Folder with one parquet file a split in the Hub's columns, either `train.parquet` or the
            Hub's own `train-00000-of-00001.parquet`; None reads from the Hub.
        **loading: Lengths, batch sizes and the calibration split, as in `TextDataModule`.

    Raises:
        MisconfigurationException: If the task is unknown, the folder is missing or a size is below 1.

    Example:
        >>> GLUEDataModule("mrpc", "bert-base-uncased", batch_size=16).text_columns
        ('sentence1', 'sentence2')
    """

    def __init__(self, task: str, model_name_or_path: str, data_dir: str | None = None, **loading: Any) -> None:
        super().__init__(model_name_or_path, **loading)
        try:
            self.task = get_task(task)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from None
        self.source = Source.at(GLUE_REPOSITORY, self.task.name, data_dir)
        self.data_dir = self.source.data_dir
        self.text_columns = self.task.text_columns
        self.num_labels = self.task.num_labels
        self.validation_splits = self.task.validation_splits

    def test_splits(self) -> tuple[str, ...]:
        """Name the test splits; a local folder may do without them."""
        return self.task.test_splits if all(map(self.source.has, self.task.test_splits)) else ()

    def load_rows(self, split: str) -> Dataset:
        """Read a split from the folder, or from the Hub.

        Args:
            split: For example "train".

        Returns:
            The split's rows.

        Raises:
            MisconfigurationException: If the folder has no file for the split, a file cannot be read, or the Hub
                cannot be reached; the message names the file.
        """
        return self.source.load(split)

    def class_names(self, split: str) -> tuple[str, ...]:
        """Give the classes the names that the leaderboard knows.

        Args:
            split: The split whose column `label` is asked for its own order of the names.

        Returns:
            One name for each label; none for tasks that are handed in as numbers.
        """
        known = self.task.class_names
        feature = self.load_rows(split).features.get("label")
        own = tuple(feature.names) if known and isinstance(feature, ClassLabel) else ()
        return own if set(own) == set(known) else known

    def describe(self, split: str) -> str:
        """Say where a split comes from, for messages."""
        return self.source.describe(split)
