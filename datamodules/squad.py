"""SQuAD 1.1 and 2.0, from the Hub or from a local folder of parquet files."""

from __future__ import annotations

from collections import Counter
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

from pgb_lightning.datamodules.base import Batch, TextDataModule, settled, token_counts
from pgb_lightning.datamodules.checks import check_texts
from pgb_lightning.datamodules.files import Source
from pgb_lightning.datamodules.sampling import calibration_rows
from pgb_lightning.datamodules.windows import QUESTION_LENGTH, evaluation_windows, training_windows

HOLD_OUT_SEED = 42
"""Not a run's seed: what one run trains on, the next one must not validate on."""
REPOSITORIES = {"1.1": "rajpurkar/squad", "2.0": "rajpurkar/squad_v2"}


class SQuADDataModule(TextDataModule):
    """Serve windows of questions and contexts.

    Training batches have `input_ids`, `attention_mask`, `token_type_ids` where the model has them, `start_positions`
    and `end_positions`. Evaluation batches have instead `question`, `window` and `context_offsets` (B, S, 2), from
    which :class:`~pgb_lightning.modules.QuestionAnswering` reads answers; `test` and `predict` run on the
    validation questions, as the test set is secret.

    Training questions that cannot be learned from are left out and counted in a warning: an empty question, an answer
    that is not at its place in the context, or that lies in no window. In evaluation every question counts.

    Args:
        model_name_or_path: Whose tokenizer to use: a Hub name, a local folder, or "minilm-l6".
        version: "1.1", or "2.0" where a question may have no answer.
        data_dir: Folder with one parquet file a split in the Hub's columns; None reads from the Hub.
        max_length: Tokens in a window: question, context and special tokens.
        stride: Tokens of the context that neighbouring windows share.
        batch_size: Windows in a training batch, on each device.
        eval_batch_size: Windows in a batch of validation, test and prediction.
        calibration_size: Training questions that `calibration_dataloader` serves, with all their windows; None
            for 2,048, or all with a warning if there are fewer.
        calibration_batch_size: Windows in a calibration batch.
        hold_out: Training questions to validate on, taken as whole articles, where there is no validation file; they
            are not trained on.
        **loading: `max_train_samples` (questions), `group_by_length` (evaluation too), `seed` and `num_workers`, as in
            `TextDataModule`.

    Raises:
        MisconfigurationException: If the version is unknown, the folder is missing or a size is out of range.

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
            raise MisconfigurationException(f"version={version!r} is no version of SQuAD; give '1.1' or '2.0'.")
        longest = max_length - QUESTION_LENGTH - 5  # four special tokens at most, and one new token a window
        if not 0 <= stride <= longest:
            raise MisconfigurationException(
                f"stride={stride} is out of range: in windows of max_length={max_length} beside a question of up to "
                f"{QUESTION_LENGTH} tokens give 0 to {longest}."
                if longest >= 0
                else f"max_length={max_length} is too short for a question of {QUESTION_LENGTH} tokens and a context."
            )
        if hold_out is not None and hold_out < 1:
            raise MisconfigurationException(f"hold_out={hold_out} is out of range: give 1 or more questions.")
        self.version = version
        self.source = Source.at(REPOSITORIES[version], None, data_dir)
        self.stride = stride
        self.hold_out = hold_out

    # ---- questions ----------------------------------------------------------------------------------------

    def load_rows(self, split: str) -> Dataset:
        """Read a split's questions: `id`, `title`, `question`, `context` and `answers`.

        Raises:
            MisconfigurationException: If a file, a column or a text is missing; the message names it.
        """
        if self.hold_out is None:
            return self._checked(split, self.source.load(split, remedy=", set hold_out to validate on training rows"))
        rows = self._checked(split, self.source.load("train"))
        held_out = self._held_out(rows, self.hold_out)
        return rows.select(np.flatnonzero(held_out if split == "validation" else ~held_out))

    def describe(self, split: str) -> str:
        """Say where a split comes from, for messages."""
        return self.source.describe("train" if self.hold_out is not None else split)

    def examples(self, split: str) -> Dataset:
        """Give a split's questions in the order in which windows number them.

        Args:
            split: "train" or "validation".
        """
        rows = self.load_rows(split)
        return _learnable(self._some(rows))[0] if split == "train" else rows

    def _checked(self, split: str, rows: Dataset) -> Dataset:
        needed = ("id", "question", "context", "answers", *(["title"] if self.hold_out is not None else []))
        check_texts(rows, self.text_columns, needed, self.describe(split))
        first = rows[0]["answers"]  # what a row has is the same in all versions of datasets; the feature's type is not
        inside = list(first) if isinstance(first, dict) else []
        if not {"text", "answer_start"} <= set(inside):
            raise MisconfigurationException(
                f"{self.describe(split)}: column 'answers' must hold lists 'text' and 'answer_start'; it has "
                f"{', '.join(inside) or rows.features['answers']}."
            )
        return rows

    def _held_out(self, rows: Dataset, size: int) -> NDArray[np.bool_]:
        """Take whole articles until there are enough questions."""
        titles = np.asarray(rows["title"][:])
        names, counts = np.unique(titles, return_counts=True)
        order = np.random.default_rng(HOLD_OUT_SEED).permutation(len(names))
        needed = int(np.searchsorted(np.cumsum(counts[order]), size)) + 1
        if needed >= len(names):
            raise MisconfigurationException(
                f"hold_out={size} would leave nothing to train on: {self.describe('train')} has {len(rows)} "
                f"questions on {len(names)} articles, of which whole ones are held out; give fewer."
            )
        return np.isin(titles, names[order[:needed]])

    # ---- windows ------------------------------------------------------------------------------------------

    def _tokenized(self, name: str) -> Dataset:
        training = name == "train"
        rows, skipped = _learnable(self._some(self.load_rows(name))) if training else (self.examples(name), Counter())
        windows = rows.map(
            training_windows if training else evaluation_windows,
            batched=True,
            with_indices=True,
            remove_columns=rows.column_names,
            fn_kwargs={
                "tokenizer": settled(self._usable_tokenizer),
                "max_length": self.max_length,
                "stride": self.stride,
            },
            desc=f"Windows of {name}",
        )
        return self._answered(windows, len(rows), skipped) if training else windows

    @cached_property
    def _usable_tokenizer(self) -> Any:
        first = self.tokenizer("a", "b")["input_ids"][0]
        if not self.tokenizer.is_fast or first != self.tokenizer.cls_token_id:
            raise MisconfigurationException(
                f"model_name_or_path={self.model_name_or_path!r} has a tokenizer that is not fast or does not begin "
                "with a CLS token; SQuAD windows need both, as those of BERT, RoBERTa, DistilBERT and MPNet have."
            )
        return self.tokenizer

    def _answered(self, windows: Dataset, count: int, skipped: Counter[str]) -> Dataset:
        """Leave out questions whose answer is in none of their windows, and report all that were left out."""
        table = windows.with_format("numpy")
        question, found = np.asarray(table["question"][:]), np.asarray(table["found"][:], dtype=bool)
        keeps = np.zeros(count, dtype=bool)
        keeps[question[found]] = True
        lost = int((~keeps).sum())
        if lost:
            skipped["answer in no window (raise max_length or stride)"] = lost
            windows = windows.select(np.flatnonzero(keeps[question]))
        if skipped:
            total = sum(skipped.values())
            reasons = "; ".join(f"{number} with {reason}" for reason, number in skipped.items())
            rank_zero_warn(f"{self.describe('train')}: {total} questions were left out of training: {reasons}.")
        if not len(windows):
            raise MisconfigurationException(f"{self.describe('train')} has no question that can be learned from.")
        return windows.remove_columns("found")

    def _draw(self, rows: Dataset, size: int) -> NDArray[np.int64]:
        """Draw calibration questions, those with and without an answer in their shares, and take all their windows."""
        table = rows.with_format("numpy")
        question, place = np.asarray(table["question"][:]), np.asarray(table["end_positions"][:])
        numbers, first = np.unique(question, return_index=True)
        answered = np.maximum.reduceat(place, first) > 0
        chosen = numbers[calibration_rows(answered, len(numbers), size, self.seed)]
        return np.flatnonzero(np.isin(question, chosen))

    def _count(self, rows: Dataset) -> int:
        return len(np.unique(np.asarray(rows.with_format("numpy")["question"][:])))

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Serve the validation windows; with `group_by_length` the longest first, as windows say whose they are."""
        windows = self.split("validation")
        if self.group_by_length:
            windows = windows.select(np.argsort(-token_counts(windows), kind="stable"))
        return self._loader(windows, self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Serve the validation windows."""
        return self.val_dataloader()

    def test_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Serve the validation windows."""
        return self.val_dataloader()

    def _collate(self, rows: list[dict[str, Any]]) -> Batch:
        if "context_offsets" not in rows[0]:
            kept = [{name: value for name, value in row.items() if name != "question"} for row in rows]
            return dict(DataCollatorWithPadding(self.tokenizer)(kept))
        places = [torch.tensor(row["context_offsets"]) for row in rows]
        inputs = [{name: value for name, value in row.items() if name != "context_offsets"} for row in rows]
        batch = dict(DataCollatorWithPadding(self.tokenizer)(inputs))
        padded = torch.full((*batch["input_ids"].shape, 2), -1)
        for row, own in enumerate(places):
            padded[row, : len(own)] = own
        return {**batch, "context_offsets": padded}


def _learnable(rows: Dataset) -> tuple[Dataset, Counter[str]]:
    """Leave out the questions that say nothing, or something false; count them by what is wrong."""
    columns = (rows[name] for name in ("question", "context", "answers"))
    problems = list(map(_problem, *columns))
    skipped = Counter(problem for problem in problems if problem)
    kept = [row for row, problem in enumerate(problems) if not problem]
    return (rows.select(kept) if skipped else rows), skipped


def _problem(question: str, context: str, answers: dict[str, list[Any]]) -> str:
    """Say why nothing can be learned from a question; empty if something can."""
    if not question.strip():
        return "an empty question"
    for text, begin in zip(answers["text"][:1], answers["answer_start"][:1], strict=True):
        if not text or context[begin : begin + len(text)] != text:
            return "an answer that is not at its place in the context"
    return ""
