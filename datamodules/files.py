"""Read a split from the Hub, or from a local folder of parquet files with the Hub's columns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetsError
from lightning.fabric.utilities.exceptions import MisconfigurationException


@dataclass(frozen=True)
class Source:
    """The location of a dataset's splits.

    Args:
        repository: The dataset on the Hub.
        configuration: Its configuration, if it has several.
        data_dir: Folder with one parquet file per split, named ``train.parquet`` or as on the Hub
            ``train-00000-of-00001.parquet``. ``None`` reads from the Hub.
    """

    repository: str
    configuration: str | None = None
    data_dir: Path | None = None

    @classmethod
    def at(cls, repository: str, configuration: str | None, data_dir: str | None) -> Source:
        """Return a source after checking that its folder exists.

        Raises:
            MisconfigurationException: If ``data_dir`` is not a folder.
        """
        source = cls(repository, configuration, None if data_dir is None else Path(data_dir).expanduser())
        if source.data_dir is not None and not source.data_dir.is_dir():
            raise MisconfigurationException(
                f"data_dir={str(source.data_dir)!r} is not a folder. Pass one with {source.name}'s parquet "
                f"files, or omit data_dir to read {repository} from the Hub."
            )
        return source

    @property
    def name(self) -> str:
        """The name of the dataset."""
        return self.configuration or self.repository.rpartition("/")[2]

    def files(self, split: str) -> list[Path]:
        """Return a split's files in the folder."""
        assert self.data_dir is not None
        single = self.data_dir / f"{split}.parquet"
        return [single] if single.is_file() else sorted(self.data_dir.glob(f"{split}-*-of-*.parquet"))

    def has(self, split: str) -> bool:
        """Return whether a split exists. The Hub has all splits."""
        return self.data_dir is None or bool(self.files(split))

    def describe(self, split: str) -> str:
        """Return a description of a split's source, for messages."""
        if self.data_dir is None:
            suffix = f" ({self.configuration})" if self.configuration else ""
            return f"Split {split!r} of {self.repository}{suffix}"
        return ", ".join(str(file) for file in self.files(split))

    def load(self, split: str, remedy: str = "") -> Dataset:
        """Load the rows of a split.

        Args:
            split: For example ``"train"``.
            remedy: An additional remedy for the message if the folder has no file for the split.

        Raises:
            MisconfigurationException: If the folder has no file for the split, a file cannot be read, or the Hub
                cannot be reached. The message names the file.
        """
        if self.data_dir is None:
            try:
                return load_dataset(self.repository, self.configuration, split=split)
            except ConnectionError as error:
                raise MisconfigurationException(
                    f"{self.describe(split)} cannot be read from the Hub or its local cache: {error}. Set data_dir to "
                    f"a folder with {self.name}'s parquet files instead."
                ) from error
        files = self.files(split)
        if not files:
            raise MisconfigurationException(
                f"data_dir={str(self.data_dir)!r} has no split {split!r}: there is no {split}.parquet or "
                f"{split}-*-of-*.parquet. Add the file{remedy}, or omit data_dir to read from the Hub."
            )
        try:
            return load_dataset("parquet", data_files={split: [str(file) for file in files]}, split=split)
        except (DatasetsError, OSError, ValueError) as error:  # pyarrow raises ValueErrors
            reason = error.__cause__ or error
            raise MisconfigurationException(
                f"{self.describe(split)} cannot be read as a parquet file with rows: {shorten(str(reason), 300)}"
            ) from error
