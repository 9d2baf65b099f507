"""Find the best answer span of each window of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

#: The position of the CLS token, whose span means "no answer", in all supported families.
CLS_POSITION = 0


def best_spans(
    start_logits: Tensor, end_logits: Tensor, offsets: Tensor, n_best: int = 20, max_answer_length: int = 30
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the best span of each window among combinations of its ``n_best`` starts and ``n_best`` ends.

    Args:
        start_logits: Score of each token as the start of the answer, (B, S).
        end_logits: Score of each token as the end of the answer, (B, S).
        offsets: Character range in the context of each token, (B, S, 2), or -1 for tokens outside the context.
        n_best: Number of starts and of ends to combine.
        max_answer_length: Maximum length of an answer in tokens.

    Returns:
        The score of the best span, (B,), minus infinity if there is none; its characters [begin, end) in the context,
        (B, 2); and the score of "no answer", (B,).

    Example:
        >>> logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
        >>> offsets = torch.tensor([[[-1, -1], [0, 2], [3, 5], [6, 9]]])
        >>> score, span, _ = best_spans(logits, logits, offsets, max_answer_length=2)
        >>> float(score), span.tolist()
        (6.0, [[0, 2]])
    """
    start_logits, end_logits = start_logits.float(), end_logits.float()
    outside = offsets[..., 0] < 0
    count = min(n_best, start_logits.shape[1])
    starts, first = start_logits.masked_fill(outside, -torch.inf).topk(count)
    ends, last = end_logits.masked_fill(outside, -torch.inf).topk(count)
    length = last.unsqueeze(1) - first.unsqueeze(2) + 1
    scores = starts.unsqueeze(2) + ends.unsqueeze(1)
    scores = scores.masked_fill((length < 1) | (length > max_answer_length), -torch.inf).flatten(1)
    score, best = scores.max(1)
    rows = torch.arange(len(scores), device=scores.device)
    begin = offsets[rows, first[rows, best // count], 0]
    end = offsets[rows, last[rows, best % count], 1]
    null = start_logits[:, CLS_POSITION] + end_logits[:, CLS_POSITION]
    return score, torch.stack([begin, end], 1), null
