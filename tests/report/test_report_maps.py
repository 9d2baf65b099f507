"""Importance maps in block order."""

from __future__ import annotations

import pytest
import torch

from pgb_lightning.experiments.method_figures import example_importance
from pgb_lightning.grouping.permutation import group
from pgb_lightning.plan import Index, MatrixPlan
from pgb_lightning.report.maps import Block, blocks_of, importance_map


def matrix(rows: int, columns: int, inputs: Index, outputs: Index) -> MatrixPlan:
    return MatrixPlan(0, "W1", rows, columns, inputs, outputs)


def test_cells_are_in_block_order() -> None:
    importance = example_importance(12, 18, num_groups=3, seed=1)
    groups = group(importance, 3, "balanced", num_permutations=6)
    index = [tuple(map(tuple, part.tolist())) for part in (groups.rows, groups.columns)]
    found = importance_map(importance, matrix(12, 18, *index))
    shades = torch.tensor([[int(digit, 16) for digit in row] for row in found])
    permuted = importance[groups.rows.flatten()][:, groups.columns.flatten()]
    order = permuted.flatten().argsort()
    assert (shades.flatten()[order].diff() >= 0).all()  # shades are monotonic in importance
    inside = torch.block_diag(*[torch.ones(4, 6, dtype=torch.bool)] * 3)
    assert shades[inside].float().mean() > 2 * shades[~inside].float().mean()


def test_large_matrices_are_downsampled_by_means() -> None:
    importance = torch.zeros(200, 300)
    importance[:100, :150] = 1e-20  # as small as importances are
    found = importance_map(importance, matrix(200, 300, None, None), cells=2)
    assert found == ("f0", "00")
    assert [len(importance_map(importance, matrix(200, 300, None, None))), len(found[0])] == [96, 2]


def test_rows_and_columns_outside_the_blocks_come_last_in_their_order() -> None:
    importance = torch.diag(torch.tensor([1.0, 0.25, 0.0625, 0.0]))
    kept = ((2,),)
    assert importance_map(importance, matrix(4, 4, kept, kept)) == ("4000", "0f00", "0080", "0000")


def test_a_matrix_of_no_importance_at_all() -> None:
    assert importance_map(torch.zeros(3, 2), matrix(3, 2, (), ())) == ("00", "00", "00")


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        (None, None, [Block(0, 0, 1, 1)]),
        ((), (), []),
        (((0, 2),), ((1,),), [Block(0, 0, 0.5, 0.25)]),
        (((0,), (2,)), ((1, 3), (0, 2)), [Block(0, 0, 0.25, 0.5), Block(0.25, 0.5, 0.25, 0.5)]),
    ],
)
def test_blocks_lie_along_the_diagonal(inputs: Index, outputs: Index, expected: list[Block]) -> None:
    assert blocks_of(matrix(4, 4, inputs, outputs)) == expected
    covered = sum(block.height * block.width for block in expected)
    assert covered == matrix(4, 4, inputs, outputs).kept_share


def test_contains() -> None:
    block = Block(0.25, 0.5, 0.25, 0.5)
    assert block.contains(0.25, 0.5)
    assert not block.contains(0.5, 0.5)
    assert not block.contains(0.3, 0.49)


def test_importances_that_are_not_finite_are_drawn() -> None:
    dense = MatrixPlan(0, "Q", 2, 2, None, None)
    found = importance_map(torch.tensor([[float("nan"), float("inf")], [1.0, 0.0]]), dense)
    assert [len(row) for row in found] == [2, 2]
    assert found[0] == "0f"
