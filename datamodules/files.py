"""Read a split from the Hub, or from a local folder of parquet files in the Hub's columns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetsError
from lightning.fabric.utilities.exceptions import MisconfigurationException


@dataclass(frozen=True)
class Source:
    """Where the splits of a data set are.

    Args:
        repository: The Hub's data set.
        configuration: Its configuration, where it has several.
        data_dir: Folder with one parquet file a split, either `train.parquet` or the Hub's own
            `train-00000-of-00001.parquet`; None reads from the Hub.
    """

    repository: str
    configuration: str | None = None
    data_dir: Path | None = None

    @classmethod
    def at(cls, repository: str, configuration: str | None, data_dir: str | None) -> Source:
        """Make a source, and check that the folder is there.

        Raises:
            MisconfigurationException: If there is no such folder.
        """
        source = cls(repository, configuration, None if data_dir is None else Path(data_dir).expanduser())
        if source.data_dir is not None and not source.data_dir.is_dir():
            raise MisconfigurationException(
                f"data_dir={str(source.data_dir)!r} is not a folder; give one with {source.name}'s parquet "
                f"files, or leave it out to read {repository} from the Hub."
            )
        return source

    @property
    def name(self) -> str:
        """What to call the data set."""
        return self.configuration or self.repository.rpartition("/")[2]

    def files(self, split: str) -> list[Path]:
        """List a split's files in the folder."""
        assert self.data_dir is not None
        whole = self.data_dir / f"{split}.parquet"
        return [whole] if whole.is_file() else sorted(self.data_dir.glob(f"{split}-*-of-*.parquet"))

    def has(self, split: str) -> bool:
        """Tell whether a split can be read; the Hub has them all."""
        return self.data_dir is None or bool(self.files(split))

    def describe(self, split: str) -> str:
        """Say where a split comes from, for messages."""
        if self.data_dir is None:
            suffix = f" ({self.configuration})" if self.configuration else ""
            return f"Split {split!r} of {self.repository}{suffix}"
        return ", ".join(str(file) for file in self.files(split))

    def load(self, split: str, remedy: str = "") -> Dataset:
        """Read a split.

        Args:
            split: For example "train".
            remedy: What else to do where the folder has no file for the split.

        Returns:
            The split's rows.

        Raises:
            MisconfigurationException: If the folder has no file for the split, a file cannot be read, or the Hub
                cannot be reached; the message names the file.
        """
        if self.data_dir is None:
            try:
                return load_dataset(self.repository, self.configuration, split=split)
            except ConnectionError as error:
                raise MisconfigurationException(
                    f"{self.describe(split)} cannot be read from the Hub, nor from its local cache: {error}. Give a "
                    f"data_dir with {self.name}'s parquet files instead."
                ) from error
        files = self.files(split)
        if not files:
            raise MisconfigurationException(
                f"data_dir={str(self.data_dir)!r} has no split {split!r}: looked for {split}.parquet and "
                f"{split}-*-of-*.parquet. Add the file{remedy}, or leave data_dir out to read from the Hub."
            )
        try:
            return load_dataset("parquet", data_files={split: [str(file) for file in files]}, split=split)
        except (DatasetsError, OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            reason = error.__cause__ or error
            raise MisconfigurationException(
                f"{self.describe(split)} cannot be read as a parquet file with rows: {shorten(str(reason), 300)}"
            ) from error
