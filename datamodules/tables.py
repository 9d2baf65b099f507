"""Read tables of texts: CSV, TSV, JSON lines and parquet files, folders of them, and data sets of the Hub."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetsError
from lightning.fabric.utilities.exceptions import MisconfigurationException

#: Only empty cells count as missing: "NA" is a text. The type of a column follows from all rows; by default, from each
#: 10,000, and a file is refused whose types change.
CSV_OPTIONS: dict[str, Any] = {"keep_default_na": False, "na_values": [""], "chunksize": None}

#: The loader of ``datasets`` for each suffix, with its options.
LOADERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", CSV_OPTIONS),
    ".tsv": ("csv", {**CSV_OPTIONS, "sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}

#: Possible separators of the fields of a file, and the number of rows in which they are searched.
SEPARATORS = (",", ";", "\t", "|")
CHECKED_ROWS = 100

#: The column in which pyarrow stores the index of a pandas table.
ROW_NAMES = "__index_level_0__"

#: The names that are tried, in order, for a split's file in a folder and for the split on the Hub.
SPLIT_NAMES: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test",),
}

#: Fraction of the rows that is held out for validation if there is no validation split, and its maximum size.
HOLDOUT_FRACTION = 0.1
HOLDOUT_LIMIT = 5000

#: The seed of the holdout. It is not a setting: pruning must not validate on rows that a model was fine-tuned on.
HOLDOUT_SEED = 2026


@dataclass(frozen=True)
class Tables:
    """The splits of a table. Without a validation split, a tenth of the training rows (at most 5,000) is held out.

    Args:
        data: A file, a folder with one file per split (such as ``train.csv`` and ``validation.csv``), or the name of a
            data set on the Hub, with its configuration after a colon if it has several (``nyu-mll/glue:sst2``).
        validation_data: A file with validation rows, in place of the split in ``data``.
        test_data: A file with test rows, in place of the split in ``data``.
    """

    data: str
    validation_data: str | None = None
    test_data: str | None = None

    def check(self) -> None:
        """Check that all files exist and have a known suffix, without reading them.

        Raises:
            MisconfigurationException: If a file does not exist or has an unknown suffix.
        """
        for name in ("data", "validation_data", "test_data"):
            value = getattr(self, name)
            if value is None or (name == "data" and not _looks_like_path(value)):
                continue
            path = Path(value).expanduser()
            if name == "data" and path.is_dir():
                if _find_file(path, "train") is None:
                    raise MisconfigurationException(
                        f"data={value!r} has no file for the training rows. Add train with one of the suffixes "
                        f"{', '.join(LOADERS)}, or pass a file."
                    )
            elif not path.is_file():
                remedy = ", or the name of a data set on the Hub" if name == "data" else ""
                raise MisconfigurationException(f"{name}={value!r} does not exist. Pass a file{remedy}.")
            elif path.suffix not in LOADERS:
                raise MisconfigurationException(
                    f"{name}={value!r} has the suffix {path.suffix!r}. Use one of {', '.join(LOADERS)}."
                )

    def has(self, split: str) -> bool:
        """Return whether a split exists; the validation split always exists."""
        return split != "test" or self._source(split) is not None

    @property
    def is_on_hub(self) -> bool:
        """Whether the training and validation rows are from a data set on the Hub."""
        return self.validation_data is None and not _looks_like_path(self.data)

    def describe(self, split: str) -> str:
        """Return a description of a split's source, for messages."""
        found = self._source(split)
        if found is None:
            return f"{self.describe('train')} (rows held out for {split})"
        return str(found) if isinstance(found, Path) else f"Split {found!r} of {self.data}"

    def load(self, split: str) -> Dataset:
        """Load the rows of a split.

        Args:
            split: ``"train"``, ``"validation"`` or ``"test"``.

        Raises:
            MisconfigurationException: If the rows cannot be read, or there are too few to hold some out.
        """
        if split == "test" or self._source("validation") is not None:
            return self._read(split)
        rows = self._read("train")
        size = min(int(HOLDOUT_FRACTION * len(rows)), HOLDOUT_LIMIT)
        if size == 0:
            raise MisconfigurationException(
                f"{self.describe('train')} has {len(rows)} rows, too few to hold out some for validation. Pass "
                "validation_data, or at least 10 rows."
            )
        parts = rows.train_test_split(test_size=size, seed=HOLDOUT_SEED)
        return parts["train" if split == "train" else "test"]

    def _source(self, split: str) -> Path | str | None:
        """Return the file of a split or its name on the Hub, or ``None`` if there is no such split."""
        given = {"validation": self.validation_data, "test": self.test_data}.get(split)
        if given is not None:
            return Path(given).expanduser()
        if not _looks_like_path(self.data):
            return next((name for name in SPLIT_NAMES[split] if name in self._hub), None)
        path = Path(self.data).expanduser()
        if path.is_dir():
            return _find_file(path, split)
        return path if split == "train" else None

    @cached_property
    def _hub(self) -> DatasetDict:
        """The data set on the Hub, which ``datasets`` caches on disk."""
        name, _, configuration = self.data.partition(":")
        try:
            found = load_dataset(name, configuration or None)
        except (DatasetsError, OSError, ValueError, RuntimeError) as error:
            raise MisconfigurationException(
                f"data={self.data!r} is not a file or folder, and cannot be read from the Hub or its local cache: "
                f"{shorten(str(error), 300)} Check the name, or pass a file."
            ) from error
        if "train" not in found:
            raise MisconfigurationException(
                f"data={self.data!r} has no split 'train', only {', '.join(found)}. Pass another data set, or a file."
            )
        return found

    def _read(self, split: str) -> Dataset:
        source = self._source(split)
        assert source is not None
        if isinstance(source, str):
            return self._hub[source]
        return read_file(source, split)


def read_file(path: Path, split: str = "train") -> Dataset:
    """Read all rows of a file.

    Args:
        path: A file with a suffix in :data:`LOADERS`.
        split: Name of the split that the rows get.

    Raises:
        MisconfigurationException: If the file cannot be read, or has no rows.
    """
    loader, options = LOADERS[path.suffix]
    try:
        # `datasets` reads brackets and question marks in names as patterns, which may match other files.
        rows = load_dataset(loader, data_files={split: glob.escape(str(path))}, split=split, **options)
    except (DatasetsError, OSError, ValueError, StopIteration) as error:  # pandas and pyarrow raise ValueErrors
        reason = error.__cause__ or error
        raise MisconfigurationException(
            f"{path} cannot be read as a {path.suffix} file with rows: {shorten(str(reason), 300)} Check the "
            "file's content and its suffix."
        ) from error
    if loader == "csv":
        _check_fields(rows, path, options.get("sep", ","))
    return rows


def _check_fields(rows: Dataset, path: Path, separator: str) -> None:
    """Check that the header and the rows of a file have the same fields.

    Raises:
        MisconfigurationException: If the rows have more fields than the header, in which case pandas would use the
            first ones as the index, or if the file uses another separator.
    """
    if ROW_NAMES in rows.column_names:
        with path.open(encoding="utf-8-sig") as file:
            header = file.readline()
        if ROW_NAMES not in header:
            raise MisconfigurationException(
                f"{path}: the rows have more fields than the header. Put texts with {separator!r} in quotes, and "
                "remove separators at the ends of lines."
            )
    if len(rows.column_names) > 1:
        _check_quotes(rows, path, separator)
        return
    [name] = rows.column_names
    values = [str(value) for value in rows[:CHECKED_ROWS][name]]
    for other in SEPARATORS:
        if other != separator and other in name and all(other in value for value in values):
            raise MisconfigurationException(
                f"{path}: the only column is {name!r}. Fields are separated by {other!r}, but those of a {path.suffix} "
                f"file by {separator!r}. Save the file with {separator!r}."
            )


def _check_quotes(rows: Dataset, path: Path, separator: str) -> None:
    """Check that no text has several rows of the file, as if a quote that is a part of a text began a quoted field.

    Raises:
        MisconfigurationException: If there are fewer rows than lines, although every line has all fields.
    """
    with path.open(encoding="utf-8-sig") as file:
        counts = [line.count(separator) for line in file if line.strip()]
    if len(counts) > len(rows) + 1 and set(counts) == {len(rows.column_names) - 1}:
        raise MisconfigurationException(
            f"{path}: the file has {len(counts) - 1} lines of {len(rows.column_names)} fields, but only {len(rows)} "
            "rows, because some texts begin with a quote. Write such texts in quotes, with the quotes in them doubled."
        )


def _looks_like_path(data: str) -> bool:
    """Return whether a value is meant as a local path, and not as a name on the Hub."""
    path = Path(data).expanduser()
    return path.exists() or path.suffix in LOADERS or data.startswith((".", "/", "~"))


def _find_file(folder: Path, split: str) -> Path | None:
    names = (folder / f"{name}{suffix}" for name in SPLIT_NAMES[split] for suffix in LOADERS)
    return next((path for path in names if path.is_file()), None)
