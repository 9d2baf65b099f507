"""The nine GLUE tasks, from the Hub or from a local folder of parquet files."""

from __future__ import annotations

from typing import Any

from datasets import ClassLabel, Dataset
from lightning.fabric.utilities.exceptions import MisconfigurationException

from pgb_lightning.datamodules.base import TokenizedDataModule
from pgb_lightning.datamodules.files import Source
from pgb_lightning.glue_tasks import GLUE_REPOSITORY, get_task


class GLUEDataModule(TokenizedDataModule):
    """Provide one GLUE task.

    The test labels of GLUE are not public (-1 on the Hub), so ``test`` runs on the validation rows unless the test rows
    have labels, like those of MRPC on the Hub or of a local file. ``predict`` runs on the test rows if there are any.

    Args:
        task: Hub configuration name: cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte or wnli.
        model_name_or_path: The model whose tokenizer is used: a Hub name, a local folder, or ``"minilm-l6"``.
        data_dir: Folder with one parquet file per split with the Hub's columns, named ``train.parquet`` or as on the
            Hub ``train-00000-of-00001.parquet``. ``None`` reads from the Hub.
        **loading: Lengths, batch sizes and the calibration split, as in
            :class:`~pgb_lightning.datamodules.TokenizedDataModule`.

    Raises:
        MisconfigurationException: If the task is unknown, the folder does not exist, or a size is below 1.

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
        """Return the names of the test splits, or none if a local folder does not have them."""
        return self.task.test_splits if all(map(self.source.has, self.task.test_splits)) else ()

    def load_rows(self, split: str) -> Dataset:
        """Load the rows of a split from the folder or from the Hub.

        Args:
            split: For example ``"train"``.

        Raises:
            MisconfigurationException: If the folder has no file for the split, a file cannot be read, or the Hub
                cannot be reached. The message names the file.
        """
        return self.source.load(split)

    def class_names(self, split: str) -> tuple[str, ...]:
        """Return the leaderboard's class names in the order of the labels.

        Args:
            split: The split whose column ``label`` defines the order, if it has the same names.

        Returns:
            One name for each label. Empty for tasks that are submitted as numbers.
        """
        official = self.task.class_names
        feature = self.load_rows(split).features.get("label")
        own = tuple(feature.names) if official and isinstance(feature, ClassLabel) else ()
        return own if set(own) == set(official) else official

    def describe(self, split: str) -> str:
        """Return a description of a split's source, for messages."""
        return self.source.describe(split)
