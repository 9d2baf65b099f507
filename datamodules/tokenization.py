"""Tokenize rows in a form that ``datasets`` can cache."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from pgb_lightning.label_kind import IGNORED


def tokenize(
    rows: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase, columns: tuple[str, ...], max_length: int
) -> dict[str, Any]:
    """Tokenize a batch of rows.

    This is a module-level function so that ``datasets`` can hash it for its cache.

    Args:
        rows: Columns of the batch.
        tokenizer: The model's tokenizer.
        columns: One text column, or two for sentence pairs.
        max_length: Inputs are truncated to this many tokens.

    Returns:
        The tokenizer's columns, without padding.
    """
    return dict(tokenizer(*(rows[name] for name in columns), truncation=True, max_length=max_length))


def tokenize_words(
    rows: dict[str, list[Any]],
    tokenizer: PreTrainedTokenizerBase,
    column: str,
    word_labels: str | None,
    max_length: int,
) -> dict[str, Any]:
    """Tokenize a batch of rows of words. The first token of a word gets the word's label.

    Args:
        rows: Columns of the batch.
        tokenizer: The model's fast tokenizer.
        column: The column with the lists of words.
        word_labels: The column with the lists of labels, one for each word, if there is one.
        max_length: Inputs are truncated to this many tokens.

    Returns:
        The tokenizer's columns, without padding, and ``labels`` with :data:`IGNORED` for all other tokens.
    """
    encoded = tokenizer(rows[column], is_split_into_words=True, truncation=True, max_length=max_length)
    columns = dict(encoded)
    if word_labels is None:
        return columns
    columns["labels"] = []
    for row, labels in enumerate(rows[word_labels]):
        words = encoded.word_ids(row)
        starts = [word is not None and word != before for word, before in zip(words, [None, *words], strict=False)]
        columns["labels"].append(
            [labels[word] if first else IGNORED for word, first in zip(words, starts, strict=True)]
        )
    return columns


def reset_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Reset the truncation and padding of a tokenizer, and return it.

    A fast tokenizer keeps its last truncation and padding. With transformers 5.0 they are part of the hash by which
    ``datasets`` looks up cached rows, so rows tokenized by a used tokenizer would not be found again.
    """
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def count_tokens(rows: Dataset) -> NDArray[np.int64]:
    """Return the number of tokens of each row, without converting the rows to lists."""
    counts: NDArray[np.int64] = rows.with_format("arrow")[:]["input_ids"].combine_chunks().value_lengths().to_numpy()
    return counts.astype(np.int64)
