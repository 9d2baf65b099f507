"""SQuAD 1.1 and 2.0, from the Hub or from a local folder of parquet files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding

from pgb_lightning.datamodules.base import Batch, TokenizedDataModule
from pgb_lightning.datamodules.checks import check_texts
from pgb_lightning.datamodules.files import Source
from pgb_lightning.datamodules.sampling import calibration_rows
from pgb_lightning.datamodules.tokenization import count_tokens, reset_tokenizer
from pgb_lightning.datamodules.windows import QUESTION_LENGTH, evaluation_windows, training_windows

#: The seed of ``hold_out``. It is not a setting, so that no run validates on rows that an earlier run trained on.
HOLD_OUT_SEED = 42

#: The dataset on the Hub for each version.
REPOSITORIES = {"1.1": "rajpurkar/squad", "2.0": "rajpurkar/squad_v2"}


class SQuADDataModule(TokenizedDataModule):
    """Provide windows of SQuAD questions and contexts.

    Training batches have ``input_ids``, ``attention_mask``, ``token_type_ids`` if the model uses them,
    ``start_positions`` and ``end_positions``. Evaluation batches have ``question``, ``window`` and ``context_offsets``
    (B, S, 2) instead of the positions, from which :class:`~pgb_lightning.modules.QuestionAnswering` extracts answers.
    ``test`` and ``predict`` run on the validation questions, because the test set is not public.

    Training questions are skipped if they are empty, or if their answer is not at its stated position in the context or
    is in no window; a warning has their number. Evaluation uses all questions.

    Args:
        model_name_or_path: The model whose tokenizer is used: a Hub name, a local folder, or ``"minilm-l6"``.
        version: ``"1.1"``, or ``"2.0"``, in which questions may have no answer.
        data_dir: Folder with one parquet file per split with the Hub's columns. ``None`` reads from the Hub.
        max_length: Tokens in a window: question, context and special tokens.
        stride: Context tokens by which neighboring windows overlap.
        batch_size: Windows in a training batch, per device.
        eval_batch_size: Windows in a batch of validation, test and prediction.
        calibration_size: Training questions in ``calibration_dataloader``, with all their windows. ``None`` means
            2,048, or all questions with a warning if there are fewer.
        calibration_batch_size: Windows in a calibration batch.
        hold_out: Number of training questions to hold out for validation if there is no validation file. Complete
            articles are held out.
        **loading: ``max_train_samples`` (questions), ``group_by_length`` (also for evaluation), ``seed`` and
            ``num_workers``, as in :class:`~pgb_lightning.datamodules.TokenizedDataModule`.

    Raises:
        MisconfigurationException: If the version is unknown, the folder does not exist, or a size is out of range.

    Example:
        >>> SQuADDataModule("bert-base-uncased", version="2.0").source.repository
        'rajpurkar/squad_v2'
    """

    text_columns = ("question", "context")

    def __init__(
        self,
        model_name_or_path: str,
        version: Literal["1.1", "2.0"] = "1.1",
        data_dir: str | None = None,
        max_length: int = 384,
        stride: int = 128,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        calibration_size: int | None = None,
        calibration_batch_size: int = 16,
        hold_out: int | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(
            model_name_or_path,
            max_length=max_length,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            calibration_size=calibration_size,
            calibration_batch_size=calibration_batch_size,
            **loading,
        )
        if version not in REPOSITORIES:
            raise MisconfigurationException(f"version={version!r} is not a version of SQuAD. Use '1.1' or '2.0'.")
        # A window has up to four special tokens, and at least one token that is not in the previous window.
        longest = max_length - QUESTION_LENGTH - 5
        if longest < 0:
            raise MisconfigurationException(
                f"max_length={max_length} is too short for a question of {QUESTION_LENGTH} tokens and a context. Use "
                f"{QUESTION_LENGTH + 5} or more."
            )
        if not 0 <= stride <= longest:
            raise MisconfigurationException(
                f"stride={stride} is out of range. For max_length={max_length} and questions of up to "
                f"{QUESTION_LENGTH} tokens, use 0 to {longest}."
            )
        if hold_out is not None and hold_out < 1:
            raise MisconfigurationException(f"hold_out={hold_out} is out of range. Use 1 or more questions.")
        self.version = version
        self.source = Source.at(REPOSITORIES[version], None, data_dir)
        self.stride = stride
        self.hold_out = hold_out

    # ---- questions ------------------------------------------------------------------------------------------

    def load_rows(self, split: str) -> Dataset:
        """Load the questions of a split: ``id``, ``title``, ``question``, ``context`` and ``answers``.

        Raises:
            MisconfigurationException: If a file, a column or a text is missing. The message names it.
        """
        if self.hold_out is None:
            return self._check_rows(
                split, self.source.load(split, remedy=", set hold_out to validate on training questions")
            )
        rows = self._check_rows(split, self.source.load("train"))
        held_out = self._select_articles(rows, self.hold_out)
        return rows.select(np.flatnonzero(held_out if split == "validation" else ~held_out))

    def describe(self, split: str) -> str:
        """Return a description of a split's source, for messages."""
        return self.source.describe("train" if self.hold_out is not None else split)

    def examples(self, split: str) -> Dataset:
        """Return the questions of a split in the order of the question numbers in windows.

        Args:
            split: ``"train"`` or ``"validation"``.
        """
        rows = self.load_rows(split)
        return _drop_unusable(self._subsample(rows))[0] if split == "train" else rows

    def _check_rows(self, split: str, rows: Dataset) -> Dataset:
        required = ("id", "question", "context", "answers") + (("title",) if self.hold_out is not None else ())
        check_texts(rows, self.text_columns, required, self.describe(split))
        first = rows[0]["answers"]  # its structure, unlike the feature type, does not depend on the version of datasets
        fields = list(first) if isinstance(first, dict) else []
        if not {"text", "answer_start"} <= set(fields):
            raise MisconfigurationException(
                f"{self.describe(split)}: column 'answers' has {', '.join(fields) or rows.features['answers']}. It "
                "must have the lists 'text' and 'answer_start'."
            )
        return rows

    def _select_articles(self, rows: Dataset, size: int) -> NDArray[np.bool_]:
        """Return a mask of the held-out questions: complete articles with at least ``size`` questions."""
        titles = np.asarray(rows["title"][:])
        names, counts = np.unique(titles, return_counts=True)
        order = np.random.default_rng(HOLD_OUT_SEED).permutation(len(names))
        needed = int(np.searchsorted(np.cumsum(counts[order]), size)) + 1
        if needed >= len(names):
            raise MisconfigurationException(
                f"hold_out={size} leaves no questions for training: {self.describe('train')} has {len(rows)} "
                f"questions on {len(names)} articles, and complete articles are held out. Use a smaller number."
            )
        return np.isin(titles, names[order[:needed]])

    # ---- windows --------------------------------------------------------------------------------------------

    def _load_tokenized(self, name: str) -> Dataset:
        if name != "train":
            return self._make_windows(self.examples(name), name, evaluation_windows)
        rows, skipped = _drop_unusable(self._subsample(self.load_rows(name)))
        windows = self._make_windows(rows, name, training_windows)
        return self._drop_unanswered(windows, len(rows), skipped)

    def _make_windows(self, rows: Dataset, name: str, function: Callable[..., Any]) -> Dataset:
        """Split the questions of a split into tokenized windows."""
        return rows.map(
            function,
            batched=True,
            with_indices=True,
            remove_columns=rows.column_names,
            fn_kwargs={
                "tokenizer": reset_tokenizer(self._window_tokenizer),
                "max_length": self.max_length,
                "stride": self.stride,
            },
            desc=f"Windows of {name}",
        )

    @cached_property
    def _window_tokenizer(self) -> Any:
        """The tokenizer, after checking that it supports windows."""
        first = self.tokenizer("a", "b")["input_ids"][0]
        if not self.tokenizer.is_fast or first != self.tokenizer.cls_token_id:
            raise MisconfigurationException(
                f"model_name_or_path={self.model_name_or_path!r} has a tokenizer that is slow or does not start with a "
                "CLS token. SQuAD needs a fast tokenizer with a CLS token, as BERT, RoBERTa, DistilBERT and MPNet have."
            )
        return self.tokenizer

    def _drop_unanswered(self, windows: Dataset, count: int, skipped: Counter[str]) -> Dataset:
        """Remove questions whose answer is in no window, and warn about all skipped questions."""
        table = windows.with_format("numpy")
        question, found = np.asarray(table["question"][:]), np.asarray(table["found"][:], dtype=bool)
        keeps = np.zeros(count, dtype=bool)
        keeps[question[found]] = True
        lost = int((~keeps).sum())
        if lost:
            skipped["an answer in no window (raise max_length or stride)"] = lost
            windows = windows.select(np.flatnonzero(keeps[question]))
        if skipped:
            total = sum(skipped.values())
            reasons = "; ".join(f"{number} with {reason}" for reason, number in skipped.items())
            rank_zero_warn(f"{self.describe('train')}: {total} questions are not used for training: {reasons}.")
        if not len(windows):
            raise MisconfigurationException(f"{self.describe('train')} has no usable questions.")
        return windows.remove_columns("found")

    def _draw_calibration_rows(self, rows: Dataset, size: int) -> NDArray[np.int64]:
        """Return all windows of questions that are drawn stratified by whether they have an answer."""
        table = rows.with_format("numpy")
        question, place = np.asarray(table["question"][:]), np.asarray(table["end_positions"][:])
        numbers, first = np.unique(question, return_index=True)
        answered = np.maximum.reduceat(place, first) > 0
        chosen = numbers[calibration_rows(answered, len(numbers), size, self.seed)]
        return np.flatnonzero(np.isin(question, chosen))

    def _count_samples(self, rows: Dataset) -> int:
        return len(np.unique(np.asarray(rows.with_format("numpy")["question"][:])))

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Return a loader of the validation windows. With ``group_by_length``, the longest come first.

        The order does not matter, since windows contain the number of their question.
        """
        windows = self.split("validation")
        if self.group_by_length:
            windows = windows.select(np.argsort(-count_tokens(windows), kind="stable"))
        return self._make_loader(windows, self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Return a loader of the validation windows."""
        return self.val_dataloader()

    def test_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Return a loader of the validation windows."""
        return self.val_dataloader()

    def _collate(self, rows: list[dict[str, Any]]) -> Batch:
        if "context_offsets" not in rows[0]:
            inputs = [{name: value for name, value in row.items() if name != "question"} for row in rows]
            return dict(DataCollatorWithPadding(self.tokenizer)(inputs))
        offsets = [torch.tensor(row["context_offsets"]) for row in rows]
        inputs = [{name: value for name, value in row.items() if name != "context_offsets"} for row in rows]
        batch = dict(DataCollatorWithPadding(self.tokenizer)(inputs))
        padded = torch.full((*batch["input_ids"].shape, 2), -1)
        for row, spans in enumerate(offsets):
            padded[row, : len(spans)] = spans
        return {**batch, "context_offsets": padded}


def _drop_unusable(rows: Dataset) -> tuple[Dataset, Counter[str]]:
    """Return the usable questions, and the number of the others by problem."""
    columns = (rows[name] for name in ("question", "context", "answers"))
    problems = list(map(_find_problem, *columns))
    skipped = Counter(problem for problem in problems if problem)
    kept = [row for row, problem in enumerate(problems) if not problem]
    return (rows.select(kept) if skipped else rows), skipped


def _find_problem(question: str, context: str, answers: dict[str, list[Any]]) -> str:
    """Return why a question cannot be used for training, or an empty string if it can."""
    if not question.strip():
        return "an empty question"
    for text, begin in zip(answers["text"][:1], answers["answer_start"][:1], strict=True):
        if not text or context[begin : begin + len(text)] != text:
            return "an answer that is not at its position in the context"
    return ""
