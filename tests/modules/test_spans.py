"""The best span of a window, against trying them all."""

from __future__ import annotations

import pytest
import torch

from pgb_lightning.modules.spans import best_spans


def offsets_of(inside: list[bool]) -> torch.Tensor:
    return torch.tensor([[2 * n, 2 * n + 1] if here else [-1, -1] for n, here in enumerate(inside)])


@pytest.mark.parametrize("seed", range(8))
def test_with_enough_candidates_no_span_is_better(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    start, end = torch.randn(2, 1, 12, generator=generator)
    inside = [False, False, *[True] * 8, False, False]
    places = offsets_of(inside)
    score, span, null = best_spans(start, end, places.unsqueeze(0), n_best=12, max_answer_length=3)
    tried = {
        (first, last): float(start[0, first] + end[0, last])
        for first in range(12)
        for last in range(first, min(first + 3, 12))
        if inside[first] and inside[last]
    }
    first, last = max(tried, key=tried.__getitem__)
    assert float(score) == tried[first, last]
    assert span.tolist() == [[2 * first, 2 * last + 1]]
    assert float(null) == float(start[0, 0] + end[0, 0])


def test_only_the_best_starts_and_ends_are_tried() -> None:
    start, end = torch.tensor([[0.0, 5.0, 4.0, 1.0]]), torch.tensor([[0.0, 9.0, 2.0, 3.0]])
    places = offsets_of([False, True, True, True]).unsqueeze(0)
    assert best_spans(start, end, places, n_best=1)[1].tolist() == [[2, 3]]
    end[0, 1] = -9.0
    assert float(best_spans(start, end, places, n_best=1)[0]) == 8.0


def test_a_window_without_context_has_no_span() -> None:
    score, span, _ = best_spans(torch.ones(1, 4), torch.ones(1, 4), torch.full((1, 4, 2), -1))
    assert score.item() == -torch.inf
    assert span.shape == (1, 2)
