"""Infer from the name of a metric whether higher or lower values are better."""

from __future__ import annotations

import re
from typing import Literal

Mode = Literal["min", "max"]

#: Words in the names of losses and errors: lower is better.
LOWER = re.compile(
    r"(log)?loss(es)?|err(ors?)?|perplexity|ppl|r?mse|r?msle|s?mape|mae|nll|bce|ce|crossentropy|kld?|[cwe]er|ece|brier"
    r"|divergence|deviance|regret|bpc"
)

#: Words in the names of scores: higher is better.
HIGHER = re.compile(
    r"acc(uracy)?|f1|fbeta|precision|recall|auc|auroc|auprc|roc|m?ap|mcc|matthews|pearsonr?|spearmanr?|kendall(tau)?"
    r"|corr(elation)?|cosine|similarity|kappa|r2|em|bleu|rouge|meteor|bertscore|iou|jaccard|dice|ndcg|mrr|hits"
    r"|sensitivity|specificity|reward|match"
)

#: Words that may reverse the meaning of a name, such as ``neg_mean_squared_error`` and ``cosine_distance``.
REVERSING = re.compile(r"neg(ative)?|inverse|minus|drop|gap|reduction|improvement|dist(ance)?|std|variance")


def infer_mode(name: str) -> Mode | None:
    """Return ``"min"`` or ``"max"`` for a metric, or ``None`` if its name does not show which is better.

    Only whole words count. In a name with slashes, the last part that has a known word decides. If it has words of both
    kinds, it is a loss if it ends with a word for losses, as ``dice_loss`` does, else undecided. Names whose only known
    word is ``score`` are scores.

    Args:
        name: Name of the metric, as logged.

    Example:
        >>> [infer_mode(name) for name in ("val_loss", "val/F1", "valLoss/dataloader_idx_0", "lossless", "brier_score")]
        ['min', 'max', 'min', None, 'min']
    """
    known, words = _known_words(name), _split(name)
    if any(map(REVERSING.fullmatch, words)):
        return None
    if not known:
        return "max" if {"score", "scores"}.intersection(words) else None
    if LOWER.fullmatch(known[-1]):
        return "min"
    return None if any(map(LOWER.fullmatch, known)) else "max"


def contradicts(name: str, mode: Mode) -> bool:
    """Return whether a mode is certainly wrong for a metric. The word ``score`` alone is not certain."""
    return bool(_known_words(name)) and infer_mode(name) not in (mode, None)


def _known_words(name: str) -> list[str]:
    """Return the known words in the last part of a name that has any, without numbers such as that of ``rouge2``."""
    for part in reversed(name.split("/")):
        words = [word if HIGHER.fullmatch(word) else word.rstrip("0123456789") for word in _split(part)]
        if known := [word for word in words if LOWER.fullmatch(word) or HIGHER.fullmatch(word)]:
            return known
    return []


def _split(name: str) -> list[str]:
    """Split a name at all characters but letters and digits, and before a capital after a lowercase letter or digit."""
    return re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower())
