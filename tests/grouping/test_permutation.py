"""Algorithm 2: group numbers, the paper's example, and properties of all permutations."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pgb_lightning.grouping.group_numbers import allowed_groups, determine_group_number
from pgb_lightning.grouping.permutation import Blocks, balanced_groups, greedy_groups, group, permute


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, int]:
    """Draw an importance matrix, sometimes with many ties, and a group number that divides it."""
    groups = draw(st.integers(1, 4))
    rows, columns = groups * draw(st.integers(1, 5)), groups * draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    importance = torch.rand(rows, columns, generator=generator, dtype=torch.float64) ** draw(st.integers(1, 6))
    return (importance * 3).round() if draw(st.booleans()) else importance, groups


def test_the_paper_s_example() -> None:
    """Section 3.2: π_r = [1, 3, 2, 4] and π_c = [1, 4, 2, 3], counted from 1."""
    importance = torch.tensor([[1.0, 0, 0, 2], [0, 1, 1, 0], [2, 0, 0, 1], [0, 1, 1, 0]])
    for permutation in ("greedy", "balanced"):
        groups = group(importance, 2, permutation, num_permutations=6)
        assert (groups.rows.flatten() + 1).tolist() == [1, 3, 2, 4]
        assert (groups.columns.flatten() + 1).tolist() == [1, 4, 2, 3]
        permuted = importance[groups.rows.flatten()][:, groups.columns.flatten()]
        assert permuted.tolist() == [[1, 2, 0, 0], [2, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]


@settings(max_examples=100, deadline=None)
@given(cases(), st.sampled_from(["greedy", "balanced"]))
def test_permutations_are_bijections_and_blocks_are_disjoint(case: tuple[Tensor, int], permutation: str) -> None:
    importance, number = case
    groups = group(importance, number, permutation, num_permutations=6)  # type: ignore[arg-type]
    rows, columns = importance.shape
    assert sorted(groups.rows.flatten().tolist()) == list(range(rows))
    assert sorted(groups.columns.flatten().tolist()) == list(range(columns))
    assert groups.rows.shape == (number, rows // number)
    assert groups.columns.shape == (number, columns // number)
    mask = torch.zeros(rows, columns, dtype=torch.int)
    for r, c in zip(groups.rows, groups.columns, strict=True):
        mask[r[:, None], c] += 1
    assert mask.max() == 1
    assert mask.sum() == rows * columns // number
    torch.testing.assert_close(groups.kept_importance(importance).sum(), importance[mask.bool()].sum())


@settings(max_examples=100, deadline=None)
@given(cases())
def test_the_importance_of_a_block_never_decreases_during_its_sorts(case: tuple[Tensor, int]) -> None:
    importance, number = case
    height, width = importance.shape[0] // number, importance.shape[1] // number
    kept = importance[:height, :width].sum()
    for sorts in range(1, 7):
        rows, columns = permute(importance, height, width, num_permutations=sorts)
        now = importance[rows][:, columns].sum()
        assert now >= kept - 1e-12
        kept = now


@settings(max_examples=100, deadline=None)
@given(cases())
def test_balanced_grouping_keeps_at_least_as_much_as_greedy_grouping(case: tuple[Tensor, int]) -> None:
    importance, number = case
    greedy = greedy_groups(importance, number, num_permutations=6)
    balanced = balanced_groups(importance, greedy)
    assert balanced.kept_importance(importance).sum() >= greedy.kept_importance(importance).sum() * (1 - 1e-12)


def test_balanced_assignment_of_rows_is_optimal() -> None:
    """With fixed columns, no other assignment of the rows keeps more importance."""
    torch.manual_seed(0)
    for trial in range(20):
        importance = torch.rand(6, 6, dtype=torch.float64) ** 3
        if trial % 2:
            importance = (importance * 2).round()
        groups = balanced_groups(importance, greedy_groups(importance, 3, 6), max_rounds=100)
        best = max(
            Blocks(torch.tensor(order).view(3, 2), groups.columns).kept_importance(importance).sum()
            for order in itertools.permutations(range(6))
        )
        assert groups.kept_importance(importance).sum() == pytest.approx(float(best))


def test_balanced_grouping_keeps_clearly_more_than_greedy_grouping() -> None:
    torch.manual_seed(0)
    importance = torch.rand(96, 1) * torch.rand(1, 192) * torch.rand(96, 192) ** 4
    greedy = greedy_groups(importance, 4, num_permutations=6)
    balanced = balanced_groups(importance, greedy)
    assert balanced.kept_importance(importance).sum() > 1.02 * greedy.kept_importance(importance).sum()


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [(768, 3072, [1, 2, 3, 4, 6]), (384, 1536, [1, 2, 3, 4, 6]), (10, 15, [1, 5]), (7, 11, [1])],
)
def test_groups_are_common_divisors(rows: int, columns: int, expected: list[int]) -> None:
    assert allowed_groups(rows, columns, max_groups=6) == expected


@pytest.mark.parametrize(
    ("important", "expected"),
    [
        (144, 1),  # all weights are important
        (73, 1),  # 144 / 73 < 2
        (72, 2),  # exactly half: two groups can hold them
        (40, 3),  # 144 / 40 = 3.6
        (30, 4),  # 144 / 30 = 4.8, and 5 does not divide
        (24, 6),  # 144 / 24 = 6 = G_max
        (23, 0),  # 144 / 23 > G_max: the matrix is removed
        (0, 0),
    ],
)
def test_the_blocks_can_hold_the_important_weights(important: int, expected: int) -> None:
    assert determine_group_number(12, 12, important, max_groups=6) == expected


def test_a_group_number_that_does_not_divide_raises() -> None:
    with pytest.raises(ValueError, match=r"num_groups=5 .*12 x 12"):
        group(torch.ones(12, 12), 5, "greedy", 6)
