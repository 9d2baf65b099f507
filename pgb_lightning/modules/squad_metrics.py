"""Exact match and F1 as the official SQuAD scripts compute them, over windows that may lie on many processes.

torchmetrics has version 1.1's scores, but computes them in single precision, and counts two answers of which
normalization leaves nothing as F1 1, where the official script says 0.
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
    """Write an answer in small letters, without punctuation, articles and double spaces.

    Example:
        >>> normalize("The  Sea-Eagle, a bird!")
        'seaeagle bird'
    """
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, gold: str) -> float:
    """Tell (1 or 0) whether two answers are the same after normalization."""
    return float(normalize(prediction) == normalize(gold))


def f1(prediction: str, gold: str, empty_agrees: bool = True) -> float:
    """Compare two answers as bags of words.

    Args:
        prediction: What was predicted.
        gold: What is right.
        empty_agrees: What two answers without a word count: 1 as in SQuAD 2.0's script, or 0 as in 1.1's.

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
    """What was found for one question.

    Args:
        question: The question's number among the examples.
        text: The best span, whatever the score of "no answer" is; empty if no window has one.
        no_answer: How much better "no answer" scores than the best span.
    """

    question: int
    text: str
    no_answer: float


def best_answers(windows: NDArray[np.float64], contexts: Sequence[str]) -> list[Answer]:
    """Choose each question's best span among its windows, of which some may occur twice.

    Args:
        windows: Rows of (question, window, score, score of "no answer", begin, end), in any order.
        contexts: The context of every question.

    Returns:
        An answer for each question that has a window, by number. "No answer" scores what it scores in the
        window where it scores least, as in the official preparation of predictions.
    """
    if not len(windows):
        return []
    order = np.lexsort((windows[:, 1], -windows[:, 2], windows[:, 0]))  # by question, the best span first
    windows = windows[order]
    questions, first = np.unique(windows[:, 0].astype(int), return_index=True)
    null = np.minimum.reduceat(windows[:, 3], first)
    found = []
    for question, row, nothing in zip(questions, first, null, strict=True):
        score, begin, end = windows[row, 2], int(windows[row, 4]), int(windows[row, 5])
        text = contexts[question][begin:end] if np.isfinite(score) else ""
        # Where no span is possible, "no answer" wins by any margin; a finite one can be written as JSON.
        # In single precision, as modules keep the threshold: the best one then decides as it did when it was found.
        margin = float(np.float32(nothing - score)) if np.isfinite(score) else 1e6
        found.append(Answer(int(question), text, margin))
    return found


def squad_scores(
    answers: Sequence[Answer], golds: Sequence[Sequence[str]], null_threshold: float | None = None
) -> dict[str, float]:
    """Score answers in percent, over the questions that have one.

    Args:
        answers: What was found, "no answer" not yet decided.
        golds: The right answers of every question of the set; none if it has no answer.
        null_threshold: "No answer" is said where it scores better by more than this; ``None`` for SQuAD 1.1,
            where every question is answered.

    Returns:
        `exact_match` and `f1`. With a threshold also those of the questions that have (`HasAns_...`) and have not
        (`NoAns_...`) an answer, and the best that any threshold reaches, with the threshold (`best_f1`,
        `best_f1_thresh`, ...).
    """
    version_2 = null_threshold is not None
    if not answers:
        return {"exact_match": 0.0, "f1": 0.0}
    # SQuAD 2.0's script leaves out gold answers of which normalization leaves nothing.
    wanted = [[gold for gold in golds[a.question] if not version_2 or normalize(gold)] or [""] for a in answers]
    raw = {
        "exact_match": np.array(
            [max(exact_match(a.text, g) for g in own) for a, own in zip(answers, wanted, strict=True)]
        ),
        "f1": np.array([max(f1(a.text, g, version_2) for g in own) for a, own in zip(answers, wanted, strict=True)]),
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
        silent = np.array([not a.text for a in answers])
        scores[f"best_{name}"], scores[f"best_{name}_thresh"] = _best_threshold(values, margin, has_answer, silent)
    return scores


def _best_threshold(
    scores: NDArray[np.float64], margin: NDArray[np.float64], has_answer: NDArray[np.bool_], silent: NDArray[np.bool_]
) -> tuple[float, float]:
    """Find the threshold with the best mean score, from saying "no answer" always to never.

    Where saying it always is best the threshold lies below all margins; the official script then reports 0, at which
    its best score is not reached.
    """
    gain = np.where(has_answer, scores, np.where(silent, 0.0, -1.0))
    order = np.argsort(margin, kind="stable")
    reached = (~has_answer).sum() + np.concatenate([[0.0], np.cumsum(gain[order])])
    best = int(np.argmax(reached))
    return 100 * float(reached[best]) / len(scores), float(margin[order[best - 1]] if best else margin.min() - 1)


class SquadMetric(Metric):
    """Collect the best span of every window, wherever it was computed, and score each question once.

    Args:
        examples: Columns `context` and `answers` (with `text`) of all questions, in order.
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
        """Score the questions of which a window was seen, in percent."""
        seen = dim_zero_cat(self.windows).cpu().double().numpy() if len(self.windows) else np.zeros((0, 6))
        scores = squad_scores(best_answers(seen, self.contexts), self.golds, self.null_threshold)
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in scores.items()}
