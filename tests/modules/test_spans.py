"""The best span of a window, compared with an exhaustive search."""

from __future__ import annotations

import pytest
import torch

from pgb_lightning.modules.spans import best_spans


def make_offsets(inside: list[bool]) -> torch.Tensor:
    return torch.tensor([[2 * n, 2 * n + 1] if here else [-1, -1] for n, here in enumerate(inside)])


@pytest.mark.parametrize("seed", range(8))
def test_with_enough_candidates_the_span_is_optimal(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    start, end = torch.randn(2, 1, 12, generator=generator)
    inside = [False, False, *[True] * 8, False, False]
    offsets = make_offsets(inside)
    score, span, null = best_spans(start, end, offsets.unsqueeze(0), n_best=12, max_answer_length=3)
    scores = {
        (first, last): float(start[0, first] + end[0, last])
        for first in range(12)
        for last in range(first, min(first + 3, 12))
        if inside[first] and inside[last]
    }
    first, last = max(scores, key=scores.__getitem__)
    assert float(score) == scores[first, last]
    assert span.tolist() == [[2 * first, 2 * last + 1]]
    assert float(null) == float(start[0, 0] + end[0, 0])


def test_only_the_best_starts_and_ends_are_combined() -> None:
    start, end = torch.tensor([[0.0, 5.0, 4.0, 1.0]]), torch.tensor([[0.0, 9.0, 2.0, 3.0]])
    offsets = make_offsets([False, True, True, True]).unsqueeze(0)
    assert best_spans(start, end, offsets, n_best=1)[1].tolist() == [[2, 3]]
    end[0, 1] = -9.0
    assert float(best_spans(start, end, offsets, n_best=1)[0]) == 8.0


def test_a_window_without_context_has_no_span() -> None:
    score, span, _ = best_spans(torch.ones(1, 4), torch.ones(1, 4), torch.full((1, 4, 2), -1))
    assert score.item() == -torch.inf
    assert span.shape == (1, 2)
