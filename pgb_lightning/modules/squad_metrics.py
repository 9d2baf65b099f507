"""Exact match and F1 as in the official SQuAD scripts, over the windows of all processes.

torchmetrics has the scores of version 1.1, but computes them in single precision. It also returns an F1 of 1 for two
answers that are empty after normalization, where the official script returns 0.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(answer: str) -> str:
    """Return an answer in lowercase, without punctuation, articles and repeated spaces.

    Example:
        >>> normalize("The  Sea-Eagle, a bird!")
        'seaeagle bird'
    """
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, gold: str) -> float:
    """Return 1 if two answers are equal after normalization, else 0."""
    return float(normalize(prediction) == normalize(gold))


def f1(prediction: str, gold: str, empty_agrees: bool = True) -> float:
    """Return the F1 score of the words of two answers.

    Args:
        prediction: The predicted answer.
        gold: The correct answer.
        empty_agrees: Whether two answers without words score 1, as in the script of SQuAD 2.0, or 0 as in 1.1.

    Example:
        >>> f1("the red sea", "red sea shore")
        0.8
    """
    predicted, wanted = normalize(prediction).split(), normalize(gold).split()
    if not predicted or not wanted:
        return float(predicted == wanted and empty_agrees)
    common = sum((Counter(predicted) & Counter(wanted)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Args:
        question: The question number.
        text: The best span, regardless of the score of "no answer". Empty if no window has a span.
        no_answer: The score of "no answer" minus that of the best span.
    """

    question: int
    text: str
    no_answer: float


def best_answers(windows: NDArray[np.float64], contexts: Sequence[str]) -> list[Answer]:
    """Return the best span of each question over its windows. Windows may occur more than once.

    Args:
        windows: Rows of (question, window, score, score of "no answer", begin, end), in any order.
        contexts: The context of every question.

    Returns:
        An answer for each question with a window, ordered by question number. The score of "no answer" is the minimum
        over the windows, as in the official preparation of predictions.
    """
    if not len(windows):
        return []
    order = np.lexsort((windows[:, 1], -windows[:, 2], windows[:, 0]))  # by question, best span first
    windows = windows[order]
    questions, first = np.unique(windows[:, 0].astype(int), return_index=True)
    null = np.minimum.reduceat(windows[:, 3], first)
    answers = []
    for question, row, no_answer in zip(questions, first, null, strict=True):
        score, begin, end = windows[row, 2], int(windows[row, 4]), int(windows[row, 5])
        text = contexts[question][begin:end] if np.isfinite(score) else ""
        # If there is no span, "no answer" wins by any margin. A finite one can be written as JSON.
        # The margin is in single precision, like the stored threshold, so that comparisons are consistent.
        margin = float(np.float32(no_answer - score)) if np.isfinite(score) else 1e6
        answers.append(Answer(int(question), text, margin))
    return answers


def squad_scores(
    answers: Sequence[Answer], golds: Sequence[Sequence[str]], null_threshold: float | None = None
) -> dict[str, float]:
    """Return the scores of answers in percent, averaged over the answered questions.

    Args:
        answers: The best spans with their margins of "no answer".
        golds: The correct answers of every question. Empty if it has no answer.
        null_threshold: "No answer" is predicted if its margin is above this threshold. ``None`` for SQuAD 1.1, where
            every question has an answer.

    Returns:
        ``exact_match`` and ``f1``. With a threshold, also those of questions with (``HasAns_...``) and without
        (``NoAns_...``) an answer, and the best scores over all thresholds with their thresholds (``best_f1``,
        ``best_f1_thresh``, ...).
    """
    version_2 = null_threshold is not None
    if not answers:
        return {"exact_match": 0.0, "f1": 0.0}
    # The script of SQuAD 2.0 ignores gold answers that are empty after normalization.
    correct = [[gold for gold in golds[a.question] if not version_2 or normalize(gold)] or [""] for a in answers]
    raw = {
        "exact_match": np.array(
            [max(exact_match(a.text, g) for g in own) for a, own in zip(answers, correct, strict=True)]
        ),
        "f1": np.array([max(f1(a.text, g, version_2) for g in own) for a, own in zip(answers, correct, strict=True)]),
    }
    if null_threshold is None:
        return {name: 100 * float(values.mean()) for name, values in raw.items()}
    has_answer = np.array([bool(len(golds[a.question])) for a in answers])
    margin = np.array([a.no_answer for a in answers])
    scores: dict[str, float] = {}
    for name, values in raw.items():
        decided = np.where(margin > null_threshold, ~has_answer, values)
        scores[name] = 100 * float(decided.mean())
        for prefix, chosen in (("HasAns", has_answer), ("NoAns", ~has_answer)):
            if chosen.any():
                scores[f"{prefix}_{name}"] = 100 * float(decided[chosen].mean())
        is_empty = np.array([not a.text for a in answers])
        scores[f"best_{name}"], scores[f"best_{name}_thresh"] = _best_threshold(values, margin, has_answer, is_empty)
    return scores


def _best_threshold(
    scores: NDArray[np.float64], margin: NDArray[np.float64], has_answer: NDArray[np.bool_], is_empty: NDArray[np.bool_]
) -> tuple[float, float]:
    """Return the best mean score over all thresholds, and its threshold.

    If it is best to always predict "no answer", the threshold is below all margins. In this case, the official script
    reports a threshold of 0, which does not reach its best score.
    """
    gain = np.where(has_answer, scores, np.where(is_empty, 0.0, -1.0))
    order = np.argsort(margin, kind="stable")
    reached = (~has_answer).sum() + np.concatenate([[0.0], np.cumsum(gain[order])])
    best = int(np.argmax(reached))
    return 100 * float(reached[best]) / len(scores), float(margin[order[best - 1]] if best else margin.min() - 1)


class SquadMetric(Metric):
    """Collect the best span of every window over all processes, and score each question once.

    Args:
        examples: Columns ``context`` and ``answers`` (with ``text``) of all questions, in order.
        null_threshold: As in :func:`squad_scores`.

    Example:
        >>> examples = {"context": ["a red sea"], "answers": [{"text": ["red sea"]}]}
        >>> metric = SquadMetric(examples)
        >>> metric.update(torch.tensor([[0, 0, 5.0, 1.0, 2, 9]]))
        >>> metric.compute()["f1"]
        tensor(100., dtype=torch.float64)
    """

    windows: list[Tensor]

    def __init__(self, examples: Mapping[str, Any], null_threshold: float | None = None) -> None:
        super().__init__()
        self.contexts = list(examples["context"])
        self.golds = [list(answers["text"]) for answers in examples["answers"]]
        self.null_threshold = null_threshold
        self.add_state("windows", default=[], dist_reduce_fx="cat")

    def update(self, windows: Tensor) -> None:
        """Add windows: rows of (question, window, score, score of "no answer", begin, end)."""
        self.windows.append(windows)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores of the questions with at least one window, in percent."""
        windows = dim_zero_cat(self.windows).cpu().double().numpy() if len(self.windows) else np.zeros((0, 6))
        scores = squad_scores(best_answers(windows, self.contexts), self.golds, self.null_threshold)
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in scores.items()}
