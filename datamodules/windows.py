"""Cut question and context into windows of tokens, and find answers in them."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import BatchEncoding, PreTrainedTokenizerBase

QUESTION_LENGTH = 64
"""Longer questions are cut to this many tokens, as the official preparation does."""

Columns = dict[str, list[Any]]


def training_windows(
    rows: Columns, indices: list[int], tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int
) -> Columns:
    """Make the windows of a batch of questions, with the answer's place in each.

    A plain function, so that `datasets` can hash it for its cache.

    Args:
        rows: Columns `question`, `context` and `answers` (`text`, `answer_start`).
        indices: The questions' numbers.
        tokenizer: A fast tokenizer whose first token is CLS.
        max_length: Tokens in a window.
        stride: Tokens of the context that neighbouring windows share.

    Returns:
        The tokenizer's columns; `start_positions` and `end_positions`, both that of CLS in a window without the answer;
        `question`, its number; `found`, whether the window has the answer, or the question none.
    """
    encoded = _encode(rows, tokenizer, max_length, stride)
    found = _inputs(encoded)
    places = []
    for window, row in enumerate(encoded["overflow_to_sample_mapping"]):
        answers = rows["answers"][row]
        if not answers["text"]:
            places.append((0, 0, True))
            continue
        begin = answers["answer_start"][0]
        places.append(_locate(encoded, window, begin, begin + len(answers["text"][0])))
    found["question"] = [indices[row] for row in encoded["overflow_to_sample_mapping"]]
    for column, name in enumerate(("start_positions", "end_positions", "found")):
        found[name] = [place[column] for place in places]
    return found


def evaluation_windows(
    rows: Columns, indices: list[int], tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int
) -> Columns:
    """Make the windows of a batch of questions, with what is needed to read answers off them.

    Args:
        rows: Columns `question` and `context`.
        indices: The questions' numbers.
        tokenizer: A fast tokenizer whose first token is CLS.
        max_length: Tokens in a window.
        stride: Tokens of the context that neighbouring windows share.

    Returns:
        The tokenizer's columns; `question`, its number; `window`, the window's number within the question;
        `context_offsets`, the characters of the context that each token stands for, (-1, -1) outside it.
    """
    encoded = _encode(rows, tokenizer, max_length, stride)
    found = _inputs(encoded)
    origin = encoded["overflow_to_sample_mapping"]
    found["question"] = [indices[row] for row in origin]
    found["window"] = [number - origin.index(row) for number, row in enumerate(origin)]
    found["context_offsets"] = [
        [place if part == 1 else (-1, -1) for place, part in zip(places, encoded.sequence_ids(window), strict=True)]
        for window, places in enumerate(encoded["offset_mapping"])
    ]
    return found


def _encode(rows: Columns, tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int) -> BatchEncoding:
    encoded: BatchEncoding = tokenizer(
        _cut_questions(rows["question"], tokenizer),
        rows["context"],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    return encoded


def _cut_questions(questions: list[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Cut questions to :data:`QUESTION_LENGTH` tokens; some start with many spaces, which are none."""
    questions = [question.strip() for question in questions]
    tokens = tokenizer(
        questions,
        add_special_tokens=False,
        truncation=True,
        max_length=QUESTION_LENGTH,
        return_offsets_mapping=True,
    )
    places = tokens["offset_mapping"]
    return [question[: own[-1][1]] if own else "" for question, own in zip(questions, places, strict=True)]


def _inputs(encoded: BatchEncoding) -> Columns:
    """Keep what the model takes."""
    return {name: encoded[name] for name in encoded if name not in ("overflow_to_sample_mapping", "offset_mapping")}


def _locate(encoded: BatchEncoding, window: int, begin: int, end: int) -> tuple[int, int, bool]:
    """Find the tokens of the characters [begin, end) of the context; those of CLS if they are not in the window."""
    context = np.flatnonzero([part == 1 for part in encoded.sequence_ids(window)])
    places = np.array(encoded["offset_mapping"][window])[context]
    if not len(places) or begin < places[0, 0] or end > places[-1, 1]:
        return 0, 0, False
    first = int(np.searchsorted(places[:, 0], begin, side="right")) - 1
    last = int(np.searchsorted(places[:, 1], end, side="left"))
    return int(context[first]), int(context[last]), True
