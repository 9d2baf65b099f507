"""Any table of texts: CSV, TSV, JSON lines, parquet or the Hub, with labels of any kind or none."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from transformers import DataCollatorForTokenClassification, PreTrainedTokenizerBase

from pgb_lightning._compat import number_in_table
from pgb_lightning.datamodules.base import Batch, TokenizedDataModule
from pgb_lightning.datamodules.checks import check_texts, check_words
from pgb_lightning.datamodules.columns import Columns, find_columns
from pgb_lightning.datamodules.label_numbers import LabelNumbers, read_numbers
from pgb_lightning.datamodules.labels import LabelEncoder, find_labels, split_cells
from pgb_lightning.datamodules.sampling import calibration_rows
from pgb_lightning.datamodules.tables import Tables
from pgb_lightning.datamodules.tokenization import tokenize, tokenize_words
from pgb_lightning.heads import PROBLEM_TYPES, Labels, ProblemType, read_head
from pgb_lightning.packaged import read_tokenizer

#: Names for the column of encoded labels. The first that is not a column of texts is used.
ENCODED = ("label", "label_", "label__")

#: The type of :data:`ENCODED`.
FEATURES = {
    "single_label_classification": Value("int64"),
    "multi_label_classification": List(Value("float32")),
    "regression": Value("float32"),
    "token_classification": List(Value("int64")),
}


class TextDataModule(TokenizedDataModule):
    """Provide the rows of any table of texts, for fine-tuning a model or for a fine-tuned model.

    The kind of labels is that of the model if it has been fine-tuned, else it is inferred from the table: names and
    integers are classes, other numbers are regression values, and lists are multiple classes of a text, or one class
    for each word if the texts are lists of words. Rows without labels can be used for pruning and distillation.

    Args:
        data: A ``.csv``, ``.tsv``, ``.json``, ``.jsonl`` or ``.parquet`` file, a folder with one such file per split
            (``train.csv``, ``validation.csv``, ``test.csv``), or the name of a data set on the Hub, with its
            configuration after a colon if it has several (``nyu-mll/glue:sst2``).
        model_name_or_path: The model whose tokenizer and labels are used: a Hub name, a local folder, or
            ``"minilm-l6"``.
        text_columns: One column of texts or of lists of words, or two columns for pairs of texts. Detected by default,
            if there is only one choice.
        label_column: The column of labels; if not given, the first of ``label``, ``labels``, ``ner_tags``, ``tags``,
            ``target``, ``class``, ``category`` and ``score`` that exists.
        use_labels: Whether to use labels at all.
        problem_type: ``"single_label_classification"``, ``"multi_label_classification"``, ``"regression"`` or
            ``"token_classification"``, if it does not follow from the model or the table.
        label_names: Names of the classes in the order of the model.
        label_separator: Separator of multiple labels in one string, such as ``"|"``.
        validation_data: A file with validation rows. Without it, and without a validation split in ``data``, a tenth of
            the rows (at most 5,000, and always the same rows) is held out.
        test_data: A file with test rows.
        **loading: Lengths, batch sizes and the calibration split, as in :class:`TokenizedDataModule`.

    Raises:
        MisconfigurationException: If a file does not exist or a setting is invalid. When the rows are loaded, also if a
            column, a text or a label is invalid.

    Example:
        >>> data = TextDataModule("reviews.csv", "bert-base-uncased")  # doctest: +SKIP
    """

    def __init__(
        self,
        data: str,
        model_name_or_path: str,
        text_columns: list[str] | str | None = None,
        label_column: str | None = None,
        use_labels: bool = True,
        problem_type: ProblemType | None = None,
        label_names: list[str] | None = None,
        label_separator: str | None = None,
        validation_data: str | None = None,
        test_data: str | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(model_name_or_path, **loading)
        if problem_type not in (None, *PROBLEM_TYPES):
            raise MisconfigurationException(
                f"problem_type={problem_type!r} is unknown. Use {', '.join(map(repr, PROBLEM_TYPES))}."
            )
        if label_separator == "":
            raise MisconfigurationException("label_separator='' is empty. Use the separator, such as '|', or None.")
        if label_names is not None and len(set(label_names)) < len(label_names):
            raise MisconfigurationException(f"label_names={list(label_names)} has a name twice. Use different names.")
        if label_column is not None and not use_labels:
            raise MisconfigurationException(
                f"use_labels=False contradicts label_column={label_column!r}. Remove one of them."
            )
        self.tables = Tables(str(data), validation_data, test_data)
        self.tables.check()
        self._given_columns = [text_columns] if isinstance(text_columns, str) else text_columns
        self.label_column = label_column
        self.use_labels = use_labels
        self._given_problem_type = problem_type
        self._given_names = label_names
        self.label_separator = label_separator

    # ---- what the table and the model have ------------------------------------------------------------------

    @cached_property
    def columns(self) -> Columns:
        """The columns that are used."""
        rows = self.load_rows("train")
        found = find_columns(rows, self.describe("train"), self._given_columns, self.label_column)
        if not self.use_labels or found.label is None:
            return Columns(texts=found.texts, label=None, are_words=found.are_words)
        return found

    @property
    def text_columns(self) -> tuple[str, ...]:  # type: ignore[override]
        """The columns of texts."""
        return self.columns.texts

    @cached_property
    def labels(self) -> Labels | None:
        """The labels of the model if it is fine-tuned, else of the table; ``None`` if neither has any.

        Raises:
            MisconfigurationException: If settings contradict the model.
        """
        head = read_head(self.model_name_or_path)
        if head is None:
            if self.columns.label is None:
                return None
            return find_labels(
                self.load_rows("train"),
                self.columns.label,
                self.describe("train"),
                are_words=self.columns.are_words,
                problem_type=self._given_problem_type,
                names=self._given_names,
                separator=self.label_separator,
            )
        given = self._given_problem_type
        if given not in (None, head.problem_type):
            raise MisconfigurationException(
                f"problem_type={given!r} contradicts model_name_or_path={self.model_name_or_path!r}, which was "
                f"fine-tuned for {head.problem_type!r}. Omit it, or pass another model."
            )
        if (head.problem_type == "token_classification") != self.columns.are_words:
            kind = "lists of words" if self.columns.are_words else "whole texts"
            raise MisconfigurationException(
                f"text_columns={list(self.text_columns)} of {self.describe('train')} has {kind}, but "
                f"model_name_or_path={self.model_name_or_path!r} was fine-tuned for {head.problem_type!r}. Pass "
                "another column or another model."
            )
        if self._given_names is None:
            return head
        if len(self._given_names) != head.num_labels:
            raise MisconfigurationException(
                f"label_names has {len(self._given_names)} names, but model_name_or_path={self.model_name_or_path!r} "
                f"has {head.num_labels} labels. Pass one name for each label of the model, in its order."
            )
        return Labels(head.problem_type, head.num_labels, tuple(self._given_names))

    @property
    def is_labeled(self) -> bool:
        """Whether the validation rows have labels with which a model can be scored."""
        return self.columns.label is not None

    @property
    def problem_type(self) -> ProblemType | None:
        """The problem type of the labels; ``None`` if neither the model nor the table has any."""
        return None if self.labels is None else self.labels.problem_type

    @property
    def num_labels(self) -> int:  # type: ignore[override]
        """Number of classes; 1 for regression. Without labels, 2, as in transformers."""
        return 2 if self.labels is None else self.labels.num_labels

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the classes in the order of the labels. Empty if only numbers are known."""
        return () if self.labels is None else self.labels.names

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, which is fast if texts are lists of words."""
        plain: PreTrainedTokenizerBase = super().tokenizer
        if not self.columns.are_words:
            return plain
        if not plain.is_fast:
            raise MisconfigurationException(
                f"model_name_or_path={self.model_name_or_path!r} has a slow tokenizer, which does not map tokens to "
                "words. Token classification needs a model with a fast tokenizer."
            )
        # Byte-level tokenizers take lists of words only with a space before each.
        if getattr(plain, "add_prefix_space", None) is False:
            return read_tokenizer(self.model_name_or_path, add_prefix_space=True)
        return plain

    # ---- rows -----------------------------------------------------------------------------------------------

    def load_rows(self, split: str) -> Dataset:
        """Load the rows of a split.

        Args:
            split: ``"train"``, ``"validation"`` or ``"test"``.

        Raises:
            MisconfigurationException: If the rows cannot be read, or there are too few to hold some out for validation.
        """
        return self.tables.load(split)

    def describe(self, split: str) -> str:
        """Return a description of a split's source, for messages."""
        return self.tables.describe(split)

    def test_splits(self) -> tuple[str, ...]:
        """Return the names of the test splits: ``test`` if there is one."""
        return ("test",) if self.tables.has("test") else ()

    def setup(self, stage: str | None = None) -> None:
        """Load the splits that ``stage`` needs, and print once which columns are used."""
        is_first = not self._splits
        super().setup(stage)
        if is_first:
            label = f"labels in {self.columns.label!r}" if self.columns.label else "no labels"
            kind = f" ({self.problem_type}, {self.num_labels})" if self.columns.label else ""
            rank_zero_info(f"TextDataModule: texts in {', '.join(map(repr, self.text_columns))}, {label}{kind}.")

    def _load_tokenized(self, name: str) -> Dataset:
        rows, source, columns = self.load_rows(name), self.describe(name), self.columns
        is_labeled = columns.label is not None and (name != "test" or columns.label in rows.column_names)
        required = (*columns.texts, columns.label) if is_labeled and columns.label else columns.texts
        check = check_words if columns.are_words else check_texts
        check(rows, columns.texts, required, source)
        if name == "train":
            rows = self._subsample(rows)
        label = next(column for column in ENCODED if column not in columns.texts) if is_labeled else None
        if label is not None:
            rows = self._encode_labels(rows, source, label)
        if columns.are_words:
            return self._tokenize(rows, name, tokenize_words, column=columns.texts[0], word_labels=label)
        return self._tokenize(rows, name, tokenize, label, columns=columns.texts)

    def _encode_labels(self, rows: Dataset, source: str, name: str) -> Dataset:
        """Return the rows with the texts and a column of labels encoded for the model.

        Raises:
            MisconfigurationException: If a label is missing, or is not one of the model.
        """
        assert self.columns.label is not None
        assert self.labels is not None
        feature = rows.features[self.columns.label]
        own = getattr(getattr(feature, "feature", feature), "names", None) or ()
        encoder = LabelEncoder(self.labels, own, self.columns.label, source, self.label_separator, self._label_numbers)
        encoded = [encoder.encode(value) for value in rows[self.columns.label]]
        if self.columns.are_words:
            for row, (words, each) in enumerate(zip(rows[self.columns.texts[0]], encoded, strict=True)):
                if len(words) != len(each):  # type: ignore[arg-type]
                    number = number_in_table(rows, row)
                    raise MisconfigurationException(
                        f"{source}: row {number} has {len(words)} words, but {len(each)} labels in column "  # type: ignore[arg-type]
                        f"{self.columns.label!r}. Correct or remove this row."
                    )
        type_of = Features({name: FEATURES[self.labels.problem_type]})
        added = Dataset.from_dict({name: encoded}, features=type_of)
        texts = rows.select_columns(list(self.columns.texts))
        return texts.add_column(name, added.with_format("arrow")[:][name], feature=type_of[name])

    @cached_property
    def _label_numbers(self) -> LabelNumbers:
        """How numbers are used in the training labels; other splits may have too few rows to determine it."""
        assert self.labels is not None
        if self.problem_type == "regression":
            return LabelNumbers()
        is_multi_label = self.problem_type == "multi_label_classification"
        values = self.load_rows("train")[self.columns.label]
        if self.label_separator is not None and self.problem_type != "single_label_classification":
            values = split_cells(values, self.label_separator)
        return read_numbers(values, self.num_labels, may_be_flags=is_multi_label)

    # ---- data loaders ---------------------------------------------------------------------------------------

    def _draw_calibration_rows(self, rows: Dataset, size: int) -> NDArray[np.int64]:
        """Draw rows, stratified by class if each row has one class."""
        is_classified = self.columns.label is not None and self.problem_type == "single_label_classification"
        labels = np.asarray(rows.with_format("numpy")["labels"][:]) if is_classified else None
        return calibration_rows(labels, len(rows), size, self.seed)

    def _collate(self, rows: list[dict[str, Any]]) -> Batch:
        if not self.columns.are_words or "labels" not in rows[0]:
            return super()._collate(rows)
        batch: dict[str, torch.Tensor] = dict(DataCollatorForTokenClassification(self.tokenizer)(rows))
        return batch
