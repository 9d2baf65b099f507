"""Split question and context into windows of tokens, and locate answers in them."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import BatchEncoding, PreTrainedTokenizerBase

#: Questions are truncated to this many tokens, as in the official preparation.
QUESTION_LENGTH = 64

Columns = dict[str, list[Any]]


def training_windows(
    rows: Columns, indices: list[int], tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int
) -> Columns:
    """Return the windows of a batch of questions with the answer's position in each.

    This is a module-level function so that ``datasets`` can hash it for its cache.

    Args:
        rows: Columns ``question``, ``context`` and ``answers`` (``text``, ``answer_start``).
        indices: The question numbers.
        tokenizer: A fast tokenizer whose first token is CLS.
        max_length: Tokens in a window.
        stride: Context tokens by which neighboring windows overlap.

    Returns:
        The tokenizer's columns; ``start_positions`` and ``end_positions``, which are the position of CLS in a window
        without the answer; ``question``, the question number; and ``found``, whether the window has the answer or the
        question has none.
    """
    encoded = _encode(rows, tokenizer, max_length, stride)
    windows = _model_inputs(encoded)
    positions = []
    for window, row in enumerate(encoded["overflow_to_sample_mapping"]):
        answers = rows["answers"][row]
        if not answers["text"]:
            positions.append((0, 0, True))
            continue
        begin = answers["answer_start"][0]
        positions.append(_locate(encoded, window, begin, begin + len(answers["text"][0])))
    windows["question"] = [indices[row] for row in encoded["overflow_to_sample_mapping"]]
    for column, name in enumerate(("start_positions", "end_positions", "found")):
        windows[name] = [position[column] for position in positions]
    return windows


def evaluation_windows(
    rows: Columns, indices: list[int], tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int
) -> Columns:
    """Return the windows of a batch of questions with the data needed to extract answers.

    Args:
        rows: Columns ``question`` and ``context``.
        indices: The question numbers.
        tokenizer: A fast tokenizer whose first token is CLS.
        max_length: Tokens in a window.
        stride: Context tokens by which neighboring windows overlap.

    Returns:
        The tokenizer's columns; ``question``, the question number; ``window``, the number of the window within the
        question; and ``context_offsets``, the character range in the context of each token, or (-1, -1) for tokens
        outside the context.
    """
    encoded = _encode(rows, tokenizer, max_length, stride)
    windows = _model_inputs(encoded)
    origin = encoded["overflow_to_sample_mapping"]
    windows["question"] = [indices[row] for row in origin]
    windows["window"] = [number - origin.index(row) for number, row in enumerate(origin)]
    windows["context_offsets"] = [
        [span if part == 1 else (-1, -1) for span, part in zip(offsets, encoded.sequence_ids(window), strict=True)]
        for window, offsets in enumerate(encoded["offset_mapping"])
    ]
    return windows


def _encode(rows: Columns, tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int) -> BatchEncoding:
    encoded: BatchEncoding = tokenizer(
        _truncate_questions(rows["question"], tokenizer),
        rows["context"],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    return encoded


def _truncate_questions(questions: list[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Truncate questions to :data:`QUESTION_LENGTH` tokens, without leading and trailing spaces."""
    questions = [question.strip() for question in questions]
    tokens = tokenizer(
        questions,
        add_special_tokens=False,
        truncation=True,
        max_length=QUESTION_LENGTH,
        return_offsets_mapping=True,
    )
    offsets = tokens["offset_mapping"]
    return [question[: spans[-1][1]] if spans else "" for question, spans in zip(questions, offsets, strict=True)]


def _model_inputs(encoded: BatchEncoding) -> Columns:
    """Return the columns that are inputs of the model."""
    return {name: encoded[name] for name in encoded if name not in ("overflow_to_sample_mapping", "offset_mapping")}


def _locate(encoded: BatchEncoding, window: int, begin: int, end: int) -> tuple[int, int, bool]:
    """Return the first and last token of the characters [begin, end) of the context, and whether the window has them.

    If the window does not have them, both tokens are CLS.
    """
    context = np.flatnonzero([part == 1 for part in encoded.sequence_ids(window)])
    spans = np.array(encoded["offset_mapping"][window])[context]
    if not len(spans) or begin < spans[0, 0] or end > spans[-1, 1]:
        return 0, 0, False
    first = int(np.searchsorted(spans[:, 0], begin, side="right")) - 1
    last = int(np.searchsorted(spans[:, 1], end, side="left"))
    return int(context[first]), int(context[last]), True
